"""Branches of an If that hand on tensors from outside: there the If only chooses, and labels pass through it."""

from __future__ import annotations

import onnx

from snp_onnx.external import bodies_of
from snp_onnx.tracing.op import STANDARD_DOMAINS, Op

OPENED = "opened::"
"""What outputs of a branch are called whose nodes stand in the main graph for the time being."""


def is_gate(tensor: str) -> bool:
    """Whether a tensor says of an opened branch if it is taken: of all rows of a batch together."""
    return tensor.startswith(f"{OPENED}taken::")


Handed = tuple[str, ...] | None


def handed_on(op: Op) -> tuple[Handed, ...]:
    """For each branch of an If the tensors from outside that its outputs are; None where it computes anything."""
    return tuple(handed_by(body) for _, body in bodies_of(op.node)) if op.is_standard and op.type == "If" else ()


def handed_by(body: onnx.GraphProto) -> Handed:
    """The tensors from outside that a body's outputs are copies of; None where it computes anything."""
    if any(node.op_type != "Identity" or node.domain not in STANDARD_DOMAINS for node in body.node):
        return None
    made = {node.output[0]: node.input[0] for node in body.node}
    names = [made.get(value.name, value.name) for value in body.output]
    own = made.keys() | {tensor.name for tensor in body.initializer}
    return None if any(name in own for name in names) else tuple(names)


def is_opened(body: onnx.GraphProto) -> bool:
    """Whether the nodes of a branch stand in the main graph for the time being."""
    return any(value.name.startswith(OPENED) for value in body.output)
