"""An If whose branches hand on tensors from outside; whatever they compute themselves is a barrier (`driver`)."""

from __future__ import annotations

from snp_onnx.tracing.branches import handed_on
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer


def choice(op: Op, tracer: Tracer) -> None:
    """Y is a tensor of one branch or of the other: aligned positions are one, if all branches have the same shape."""
    branches = handed_on(op)
    for place, output in enumerate(op.outputs):
        given = [names[place] for names in branches if names is not None]
        if output and len(given) == len(branches) and _are_alike(tracer, (output, *given)):
            for name in given[1:]:
                for first, other in zip(tracer.axes(given[0]), tracer.axes(name), strict=True):
                    tracer.classes.unite(first, other)
            tracer.set_axes(output, tracer.axes(given[0]))
            continue
        whole = len(given) == len(branches)
        reason = "the branches of this If give different shapes" if whole else "another branch of this If stays whole"
        for name in given:
            tracer.barrier_all(op, name, reason)
        tracer.set_still(output)


def _are_alike(tracer: Tracer, tensors: tuple[str, ...]) -> bool:
    return all(tracer.knows(name) for name in tensors) and len({tracer.shape(name) for name in tensors}) == 1
