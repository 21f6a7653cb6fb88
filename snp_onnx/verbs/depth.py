"""Depth: blocks go one after the other, the one without which the representation stays most alike first.

After each of them the layers that stay are solved anew towards the sums of the dense model, and the others are ranked
again on what that gives. Layer pruning by representation similarity, arXiv 2405.17081, with refits in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from snp_onnx.calibration.ranking import block_similarities, ranking_batches, represented
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.errors import PlanError
from snp_onnx.passes import EliminateDead, FoldWeights, Pass, RemoveBlocks, rewrite
from snp_onnx.planning.options import BlockScore, Choices, Refine
from snp_onnx.planning.plan import BlockDecision
from snp_onnx.sources.samples import Part
from snp_onnx.subspace.similarity import Similarity
from snp_onnx.tracing import find_blocks
from snp_onnx.tracing.blocks import Block, BlockKind
from snp_onnx.tracing.representation import Representation, find_representation
from snp_onnx.verbs.clocked import block_times
from snp_onnx.verbs.measure import Calibration, on_fewer_samples
from snp_onnx.verbs.refit import refit_layers
from snp_onnx.verbs.settle import errors_of, first_harmless
from snp_onnx.verbs.subject import Depth, Subject, retraced


@dataclass(frozen=True)
class Descent:
    """The way down from a subject with all its blocks."""

    whole: Subject
    choices: Choices
    runtime: Runtime
    calibration: Calibration | None = None
    """Without samples blocks can be removed by name, and nothing is solved anew."""
    is_clocked: bool = False
    """Whether blocks count for the time that they take, not for their MACs."""

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the whole model."""
        return find_blocks(self.whole.prepared, self.whole.flow)

    @cached_property
    def representation(self) -> Representation:
        return find_representation(self.whole.flow, self.blocks, self.choices.representation)

    @cached_property
    def reference(self) -> Any:
        """The whole model's representation."""
        mask = self._row_mask(self.whole)
        return represented(self.whole.prepared, self.representation, self._batches(), self.runtime, mask)

    def steps(self) -> Iterator[Subject]:
        """The subject with one more block gone each time, until no other may go."""
        subject = self.whole
        while (block := self._next(subject)) is not None:
            subject = self.without(subject, *block)
            yield subject

    def named(self, decisions: Sequence[BlockDecision]) -> Subject:
        """The subject without the blocks of a plan; PlanError for one that isn't there or may not go."""
        subject = self.whole
        for decision in decisions:
            block = self._present(subject).get(decision.block)
            if block is None or not block.is_removable:
                why = "there is no such block" if block is None else block.reason
                raise PlanError(f"the plan removes block {decision.block}: {why}: wrong model?")
            subject = self.without(subject, block, decision.similarity)
        return self.finished(subject)

    def without(self, subject: Subject, block: Block, similarity: float | None) -> Subject:
        """The subject without a block of it, its layers solved anew if the choices say so and that does no harm."""
        depth = subject.depth or Depth(self.whole, self.blocks)
        gone = (*depth.blocks, *(whole for whole in self.blocks if whole.name == block.name))
        shallow = without_block(subject, block, replace(depth, blocks=gone), self.runtime)
        if self.calibration is not None:
            shallow = self._refitted(shallow, on_fewer_samples(self.calibration))
        share = shallow.cost_now().macs / max(self.whole.dense_cost().macs, 1e-9)
        decision = BlockDecision(block.name, str(block.kind), similarity, share)
        assert shallow.depth is not None
        return replace(shallow, depth=replace(shallow.depth, decisions=(*depth.decisions, decision)))

    def finished(self, subject: Subject) -> Subject:
        """The subject with the layers that stay solved anew on all samples: on the way down few do."""
        calibration = self.calibration
        if subject.depth is None or calibration is None:
            return subject
        return self._refitted(subject, calibration)

    def _refitted(self, subject: Subject, calibration: Calibration) -> Subject:
        """The subject with the layers that stay refitted; itself where that surely does harm."""
        if self.choices.refine is Refine.NONE:
            return subject
        assert subject.depth is not None
        keep = subject.dense.keep
        with calibration.clock("refit"):
            alive = np.ones(subject.trace.label_count, dtype=np.bool_)
            values = refit_layers(
                subject.flow, subject.aim, subject.prepared, alive, self.choices.ridge, calibration, keep, subject.gone
            )
            refitted = rewrite(subject.prepared, [FoldWeights(values)], subject.dense.store)
        if not refitted.changed:
            return subject
        model = refitted.model
        with calibration.clock("settle"):
            feeds = calibration.batches(Part.CHOOSING)
            errors = errors_of(subject.dense.proto, [model, subject.prepared], calibration, feeds)
        if self.choices.fallback and first_harmless(errors) > 0:
            return subject
        depth = replace(subject.depth, values={**subject.depth.values, **values})
        found = retraced(subject, self.runtime, model)
        return replace(found, depth=depth)

    def _next(self, subject: Subject) -> tuple[Block, float | None] | None:
        """The block to go next, and the similarity without it; None where none may."""
        allowed = self._allowed(subject)
        if not allowed:
            return None
        assert self.calibration is not None
        with self.calibration.clock("rank"):
            scores = self._scores(subject, allowed)
            saved = self._saved(subject, allowed)
        losses = {b.name: (1.0 - scores[b.name]) / max(saved[b.name], 1e-9) for b in allowed}
        if not self._is_alignment:
            losses = {name: -score for name, score in scores.items()}
        best = min(allowed, key=lambda block: losses[block.name])
        found = scores[best.name] if self._is_alignment and np.isfinite(scores[best.name]) else None
        return best, found

    def _saved(self, subject: Subject, blocks: Sequence[Block]) -> Mapping[str, float]:
        """What each block's going saves of what the target counts."""
        if not self.is_clocked:
            return block_shares(subject, blocks)
        assert self.calibration is not None
        return block_times(subject, blocks, self.calibration, self.choices.latency_batch)

    @property
    def _is_alignment(self) -> bool:
        return self.choices.similarity not in (BlockScore.MAGNITUDE, BlockScore.RANDOM)

    def _scores(self, subject: Subject, blocks: Sequence[Block]) -> Mapping[str, float]:
        """By name; the highest goes."""
        score = self.choices.similarity
        if score is BlockScore.RANDOM:
            rng = np.random.default_rng([self.choices.seed, len(blocks)])
            return dict(zip((block.name for block in blocks), rng.random(len(blocks)).tolist(), strict=True))
        if score is BlockScore.MAGNITUDE:
            return {block.name: -magnitude(subject, block) for block in blocks}
        assert self.calibration is not None
        progress = self.calibration.progress
        return block_similarities(
            subject.prepared,
            blocks,
            self.representation,
            self._batches(),
            self.runtime,
            Similarity(str(score)),
            self._row_mask(subject),
            lambda number, count: progress("rank blocks", number, count),
            self.reference,
        )

    def _row_mask(self, subject: Subject) -> str | None:
        """The mask that says which positions of the representation count."""
        tensor = self.representation.tensor
        return subject.trace.padding(tensor, len(subject.trace.facts.shapes[tensor]) - 1)

    def _batches(self) -> Iterator[Any]:
        assert self.calibration is not None
        return ranking_batches(self.calibration.batches(Part.CALIBRATION), self.choices.ranking_samples)

    def _present(self, subject: Subject) -> dict[str, Block]:
        return {block.name: block for block in find_blocks(subject.prepared, subject.flow)}

    def _allowed(self, subject: Subject) -> list[Block]:
        """What may go next: every stage keeps as many blocks as were asked for; whole layers count as their parts."""
        present = self._present(subject)
        stages = {block.name: block.stage for block in self.blocks}
        single = [block for block in self.blocks if block.kind is not BlockKind.LAYER]
        left = {block.name for block in single} - _gone(subject)
        allowed = []
        for block in present.values():
            stage = stages.get(block.name)
            if not block.is_removable or stage is None:
                continue
            going = {block.name, *block.parts}
            staying = [name for name in left - going if stages[name] == stage]
            if len(staying) >= self.choices.min_blocks:
                allowed.append(block)
        return allowed


def _gone(subject: Subject) -> set[str]:
    """Names of what is gone, with the parts of whole layers."""
    blocks = () if subject.depth is None else subject.depth.blocks
    return {name for block in blocks for name in (block.name, *block.parts)}


def without_block(subject: Subject, block: Block, depth: Depth, runtime: Runtime) -> Subject:
    """The subject without a block of it, traced anew."""
    passes: list[Pass] = [RemoveBlocks((block,)), EliminateDead()]
    found = rewrite(subject.prepared, passes, subject.dense.store)
    shallow = retraced(subject, runtime, found.model)
    return replace(shallow, depth=depth)


def block_shares(subject: Subject, blocks: Sequence[Block]) -> dict[str, float]:
    """The share of the subject's MACs in each block, by name."""
    macs = subject.macs_by_node()
    every = sum(macs.values())
    ops = subject.trace.ops
    shares = {}
    for block in blocks:
        names = {ops[index].name for index in block.nodes}
        shares[block.name] = sum(macs.get(name, 0.0) for name in names) / every if every else 0.0
    return shares


def magnitude(subject: Subject, block: Block) -> float:
    """The mean absolute weight of a block's layers: the baseline that needs no samples."""
    inside = set(block.nodes)
    arrays = [
        np.asarray(subject.flow.weights.array(linear.weight), dtype=np.float64)
        for linear in subject.trace.linears
        if linear.op.index in inside and subject.flow.weights.knows(linear.weight)
    ]
    return float(np.mean([np.abs(array).mean() for array in arrays])) if arrays else 0.0
