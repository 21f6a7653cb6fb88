"""The representation: the tensor in which a network has gathered what its last layer reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from snp_onnx.errors import ModelError, PlanError
from snp_onnx.tracing.blocks import Block
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.norm_ends import norm_ends


@dataclass(frozen=True, slots=True)
class Representation:
    """A tensor, and whether its features lie on the last axis, every position of the others being a row of them.

    Otherwise a row is a sample, and all that belongs to it are features.
    """

    tensor: str
    has_positions: bool = False


def find_representation(flow: Flow, blocks: Sequence[Block], name: str = "") -> Representation:
    """The tensor called `name`, or the input of the last layer that reaches an output with no other layer behind it.

    Where that layer lies inside a removable block, it is the output of the block (of the largest such): this is there
    without the block too. PlanError for a name that isn't there or lies inside a removable block; ModelError if no
    layer reaches an output.
    """
    if name:
        _check(flow, blocks, name)
        return Representation(name, _has_positions(flow, name))
    last = _last_layer(flow)
    around = _around(blocks, last)
    if around is None:
        linear = next(linear for linear in flow.trace.linears if linear.op.index == last)
        tensor = linear.input
    else:
        tensor = around.output
    while (outer := _holder(flow, blocks, tensor)) is not None:
        tensor = outer.output
    return Representation(tensor, _has_positions(flow, tensor))


def _check(flow: Flow, blocks: Sequence[Block], name: str) -> None:
    if flow.maker(name) is None:
        raise PlanError(f"no node of the model gives a tensor {name!r}: name another representation")
    holder = _holder(flow, blocks, name)
    if holder is not None:
        raise PlanError(f"the representation {name} would go with block {holder.name}: name a tensor outside of it")


def _last_layer(flow: Flow) -> int:
    """The index of the last layer, in graph order, from which an output is reached without another one."""
    layers = {linear.op.index for linear in flow.trace.linears}
    waiting = [name for op in flow.trace.ops for name in op.outputs if name and flow.is_output(name)]
    found, seen = set[int](), set[str]()
    while waiting:
        name = waiting.pop()
        op = flow.maker(name)
        if name in seen or op is None:
            continue
        seen.add(name)
        if op.index in layers:
            found.add(op.index)
        else:
            waiting.extend(op.reads)
    if not found:
        raise ModelError("no layer with weights reaches an output of the model: name the representation to compare")
    return max(found)


def _around(blocks: Iterable[Block], index: int) -> Block | None:
    """The largest removable block that a node belongs to."""
    held = [block for block in blocks if block.is_removable and index in block.nodes]
    return max(held, key=lambda block: len(block.nodes), default=None)


def _holder(flow: Flow, blocks: Iterable[Block], tensor: str) -> Block | None:
    """The largest removable block with which the tensor would go."""
    maker = flow.maker(tensor)
    others = [block for block in blocks if block.output != tensor]
    return None if maker is None else _around(others, maker.index)


def _has_positions(flow: Flow, tensor: str) -> bool:
    shape = flow.trace.facts.shapes.get(tensor, ())
    if len(shape) < 3:
        return False
    last = len(shape) - 1
    is_read = any(linear.input == tensor and linear.input_axis == last for linear in flow.trace.linears)
    return is_read or any(tensor in (norm.input, norm.output) for norm in norm_ends(flow).values())
