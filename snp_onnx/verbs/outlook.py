"""Outlook: what other targets would leave, from the statistics and curves that are there anyway."""

from __future__ import annotations

from snp_onnx.errors import TargetError
from snp_onnx.planning.options import Fold, Target, TargetKind
from snp_onnx.verbs.carry_out import Work, cut_only, folded
from snp_onnx.verbs.find_plan import deciding_by_macs
from snp_onnx.verbs.quantised import quantised_again
from snp_onnx.verbs.result import Outlook
from snp_onnx.verbs.settle import held_back_fidelity

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def outlook(work: Work) -> tuple[Outlook, ...]:
    """The outputs on the samples held back at shares of the MACs from large to small, as far as they can be reached.

    Cut and folded as chosen, but without a refit, which takes passes over the samples. Empty where no group was
    measured.
    """
    if work.calibration is None or not work.measured.moments:
        return ()
    dense, found = work.subject.dense.proto, list[Outlook]()
    try:
        deciding = deciding_by_macs(work)
        for share in SHARES:
            plan = deciding.plan(Target(TargetKind.MACS, share))
            candidate = cut_only(work, plan) if work.choices.fold is Fold.NONE else folded(work, plan)
            candidate = quantised_again(work.subject, candidate, work.calibration.runtime, work.external_as)
            with work.clock("outlook"):
                fidelity = held_back_fidelity(dense, candidate.model, work.calibration)
            found.append(Outlook(share, candidate.cost, fidelity))
    except TargetError:  # the smallest model keeps more than that
        pass
    return tuple(found)
