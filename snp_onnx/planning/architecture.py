"""Architecture: the numbers that generation code and converters keep beside a transformer, after a plan.

Named as in the config.json of published checkpoints; one number where all layers agree, otherwise one for each layer in
graph order. Everything is read off the groups: a head group's producers hold r d + 2 d columns for each key-value head
(r query heads, one key, one value, d entries each), its consumer r d; as much where key-value heads stay and only
queries go, one of each that shares the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snp_onnx.tracing import Group, Kind, Linear, Trace
from snp_onnx.tracing.groups import Mask

Numbers = Mapping[str, int | list[int]]


def architecture(
    trace: Trace, alive: Mask, dense: Trace | None = None, removed: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Head counts and widths after `alive` and, under "dense", before; None where none changed or no attention is.

    Where blocks were `removed` before (their names), `dense` is the trace with them.
    """
    whole = dense or trace
    heads = any(group.kind is Kind.HEADS for group in whole.groups)
    if not (heads or whole.products or any("Attention" in op.type for op in whole.ops)):
        return None
    before = _numbers(whole, np.ones(whole.label_count, dtype=np.bool_))
    after: dict[str, Any] = {**_numbers(trace, alive)}
    if removed:
        after["removed_blocks"] = list(removed)
    return None if before == after else {**after, "dense": before}


def _numbers(trace: Trace, alive: Mask) -> dict[str, int | list[int]]:
    heads = [group for group in trace.groups if group.kind is Kind.HEADS]
    inside = [group for group in trace.groups if group.kind is Kind.HEAD_DIMS]
    hidden = [group for group in trace.groups if _is_hidden(trace, group)]
    found = {
        "num_attention_heads": [_left(group, alive) * _at_once(trace, group) for group in heads],
        "num_key_value_heads": [
            _left(group, alive) if _queries(trace, group) else _at_once(trace, group) for group in heads
        ],
        "head_dim": [_left(group, alive) for group in inside if group.products],
        "v_head_dim": [_left(group, alive) for group in inside if group.consumers],
        "hidden_size": [_left(group, alive) for group in trace.groups if group.kind is Kind.STREAM],
        "intermediate_size": [_left(group, alive) for group in hidden],
    }
    return {name: values[0] if len(set(values)) == 1 else values for name, values in found.items() if values}


def _left(group: Group, alive: Mask) -> int:
    return int(np.count_nonzero(alive[group.labels]))


def _is_hidden(trace: Trace, group: Group) -> bool:
    """Hidden units of a feed-forward layer: channels between matrix products, beside attention."""
    if group.kind is not Kind.CHANNELS or group.is_stream:
        return False
    return all(linear.op.type in ("MatMul", "Gemm", "FusedMatMul") for linear in (*group.producers, *group.consumers))


def _queries(trace: Trace, group: Group) -> int:
    """How many query heads share a key-value head; 0 where the units are query heads, whose keys and values stay."""
    made = _columns(trace, group, [(linear, linear.out_axis) for linear in group.producers])
    read = _columns(trace, group, [(linear, linear.in_axis) for linear in group.consumers[:1]])
    entries, rest = divmod(made - read, 2)
    if entries == 0:
        return 0
    return read // entries if not rest and entries > 0 and read % entries == 0 else 1


def _at_once(trace: Trace, group: Group) -> int:
    """Query heads in one unit: those of a key-value head, or where these stay, one of each that shares its own."""
    for product in trace.products:
        for labels in trace.axes[product.op.outputs[0]]:
            if (count := int(np.isin(labels, group.labels[:1]).sum())) > 0:
                return count
    return max(1, _queries(trace, group))


def _columns(trace: Trace, group: Group, places: Sequence[tuple[Linear, int]]) -> int:
    """Positions of weight axes that one unit of the group holds."""
    labels = [trace.axes[linear.weight][axis] for linear, axis in places]
    return sum(int(np.isin(part, group.labels).sum()) for part in labels) // len(group)
