"""Recover: distil the dense model into the pruned one, and write the weights back into the same graph."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from snp_onnx import model_io
from snp_onnx.calibration.sessions import Runtime, open_session
from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.planning.training import Augmentation, Checkpoints, Training
from snp_onnx.sources.samples import Part, Samples
from snp_onnx.tracing.padding import mask_of
from snp_onnx.tracing.surface import Surface, drop_foreign_surface
from snp_onnx.verbs.compare import require_same_surface
from snp_onnx.verbs.fidelity import Fidelity, fidelity_between, remarks
from snp_onnx.verbs.reading import read_samples
from snp_onnx.verbs.recovered import RecoverReport, RecoverResult
from snp_onnx.verbs.result import MADE_BY, Stopwatch, config_of, versions
from snp_onnx.verbs.settings import DATA_OPTIONS, Data, Progress, check_options, data_from, runtime_from
from snp_onnx.verbs.settle import mean_error
from snp_onnx.verbs.verify import verify

if TYPE_CHECKING:
    from snp_onnx.recovery.train import Trained

TRAINING_OPTIONS = [field.name for field in fields(Training)]
PROVENANCE = "snp_onnx.recovery"


def recover(
    dense: str | os.PathLike[str] | onnx.ModelProto,
    pruned: str | os.PathLike[str] | onnx.ModelProto,
    calibration: Any,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 5.0,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> RecoverResult:
    """Train the pruned model to do what the dense one does, on unlabelled samples; needs torch.

    The graph stays as it is: nodes, names, operator sets, inputs, outputs and element types; only weights change. A
    twentieth of the samples (at most 256) chooses what is kept, and a tenth, used for nothing else, is reported. If
    nothing is better than the pruned model as it came, that is the result, and the report says so.

    Parameters
    ----------
    dense : path or onnx.ModelProto, the model that the other was pruned from. pruned : the model to train.
    calibration : any SOURCE, as for `prune`; thousands of samples do more than hundreds. Labels are used only if
        `label_array` names them.
    checkpoint : a file that gets the state of the training every `every` minutes; with `resume` the training goes on
        from it. `save` of the result removes it.
    progress : called as `progress(stage, done, total)`.
    options : of the training: those of `planning.training.Training` (epochs, time_limit, batch_size, optimiser, lr,
        ...); of the data: input_array, label_array, mean, std, scale, layout, samples, input_shapes, seed, provider,
        threads, custom_ops, as on the command line. `batch_size` is that of the training.

    Raises
    ------
    ModelError where a node can't be trained through or the models don't belong together, CalibrationError and
    PlanError for wrong input or where torch is missing; PassError if the result fails verification.
    """
    check_options(options, sorted({*DATA_OPTIONS, *TRAINING_OPTIONS}))
    chosen = {name: value for name, value in options.items() if name in TRAINING_OPTIONS and value is not None}
    training = Training(**chosen)
    data, runtime = data_from(calibration, options), runtime_from(options)
    if Augmentation.MIX in training.augment and options.get("label_array"):
        raise PlanError("--augment mix leaves images without a class: drop it, or --label-array")
    if data.source is None:
        raise CalibrationError("no calibration samples given: pass a SOURCE (--calibration data.npz)")
    if resume and checkpoint is None:
        raise PlanError("--resume goes on from a checkpoint: name it with --checkpoint FILE")
    checkpoints = None if checkpoint is None else Checkpoints(Path(checkpoint), every, resume)
    _require_torch(training.device)
    if checkpoints is not None:
        _check_checkpoint(checkpoints)
    return _Job(training, data, runtime, checkpoints, progress or _silent).run(dense, pruned)


def _silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def _require_torch(device: str) -> None:
    """PlanError where torch, or the device asked for, isn't there."""
    if find_spec("torch") is None:
        raise PlanError("recover needs torch: pip install 'snp-onnx[torch]'")
    try:
        import torch
    except ImportError as error:
        raise PlanError(f"recover needs torch, which is installed but can't be loaded: {error}") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PlanError(f"--device {device}: torch can't use it here: {reason}") from error


def _check_checkpoint(checkpoints: Checkpoints) -> None:
    path = checkpoints.path
    model_io.check_destination(path, None, force=True)
    if path.exists() and not checkpoints.resume:
        raise PlanError(f"{path}: a checkpoint is there: add --resume to go on from it, or remove it to start again")


@dataclass(frozen=True, slots=True, eq=False)
class _Models:
    """Both models, and what the pruned one keeps of inputs and outputs; samples are the dense model's."""

    dense: model_io.Model
    pruned: model_io.Model
    surface: Surface


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One run of `recover` with its options checked."""

    training: Training
    data: Data
    runtime: Runtime
    checkpoints: Checkpoints | None
    progress: Progress

    def run(self, dense_source: str | os.PathLike[str] | onnx.ModelProto, pruned_source: Any) -> RecoverResult:
        clock = Stopwatch()
        self.progress("prepare", 0, 0)
        with clock("prepare"):
            dense, pruned = model_io.load(dense_source), model_io.load(pruned_source)
            for model in (dense, pruned):
                drop_foreign_surface(model.proto)
                open_session(model.proto, self.runtime)
            models = _Models(dense, pruned, require_same_surface(dense.proto, pruned.proto))
        with clock("read samples"):
            samples = read_samples(self.data, dense.proto, self.runtime)
        with samples:
            with clock("train"):
                trained = self._train(models, samples)
            return self._finish(models, samples, trained, clock)

    def _train(self, models: _Models, samples: Samples) -> Trained:
        import torch

        from snp_onnx.recovery.features import features_of, shared_features
        from snp_onnx.recovery.graph import GraphModule
        from snp_onnx.recovery.pool import Pool, Rows
        from snp_onnx.recovery.teacher import teacher_of
        from snp_onnx.recovery.train import Task, train

        dense, pruned = models.dense, models.pruned
        student = GraphModule(pruned.proto)  # first: what can't be trained is said before anything is read
        features, sums = shared_features(dense.proto, pruned.proto), features_of(dense.proto)
        device = torch.device(self.training.device)
        teacher = teacher_of(dense.proto, (*student.outputs, *sums), device, self.runtime)
        size = self.data.batch_size
        labels = _labels(samples)
        self.progress("read samples", 0, 0)
        choosing = [Rows(feed, None) for feed in samples.batches(size, Part.CHOOSING)]
        batches = samples.batches(size, Part.CALIBRATION)
        with Pool(batches, labels, samples.fixed_batch, samples.is_whole) as pool:
            task = Task(
                student, teacher, features, pool, choosing, mask_of(dense.proto), self.training, self.progress,
                self.checkpoints, self._fingerprint(models, samples), sums, models.surface,
            )  # fmt: skip
            return train(task)

    def _fingerprint(self, models: _Models, samples: Samples) -> str:
        """What must be the same for a checkpoint to be gone on from."""
        free = ("device", "threads", "time_limit", "patience")
        options = {name: value for name, value in self.training.record().items() if name not in free}
        data = (samples.count, repr(self.data.preprocess))
        known = [models.dense.sha256, models.pruned.sha256, data, options]
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()

    def _finish(self, models: _Models, samples: Samples, trained: Trained, clock: Stopwatch) -> RecoverResult:
        """Write back, verify, judge both by the runtime; the pruned model itself where nothing got better."""
        pruned = models.pruned
        self.progress("verify", 0, 0)
        notes, proto = [*samples.notes, samples.split, *trained.notes], pruned.proto
        if trained.weights:
            with clock("verify"):
                proto = self._written_back(models, samples, trained)
        with clock("fidelity"):
            changed = bool(trained.weights) and self._is_better(models, proto, samples)
            before = after = self._fidelity(models, pruned.proto, samples, Part.HELD_OUT)
            if changed:
                after = self._fidelity(models, proto, samples, Part.HELD_OUT)
        if not changed:
            proto = pruned.proto
            notes.append("nothing did better on the samples that choose: the result is the pruned model as it was")
        report = RecoverReport(
            changed, before, after, trained.history, _elements(trained), len(trained.features),
            samples.part_count(Part.CALIBRATION), trained.passes, dict(clock.seconds), self._options(samples),
            _versions(), tuple(notes), (*_warnings(samples), *remarks(after, None)),
        )  # fmt: skip
        checkpoint = None if self.checkpoints is None else self.checkpoints.path
        return RecoverResult(proto, report, pruned.store, _config_beside(pruned), checkpoint)

    def _written_back(self, models: _Models, samples: Samples, trained: Trained) -> onnx.ModelProto:
        """The pruned graph with the trained weights, verified to be as well formed."""
        from snp_onnx.recovery.write_back import with_weights

        proto = with_weights(models.pruned.proto, trained.weights, models.pruned.store)
        model_io.with_provenance(proto, {PROVENANCE: json.dumps({"dense_sha256": models.dense.sha256})})
        feed = models.surface.cut(next(iter(samples.batches(self.data.batch_size, Part.HELD_OUT))))
        verify(_plain(models.pruned.proto), _plain(proto), self.runtime, feed)
        return proto

    def _is_better(self, models: _Models, proto: onnx.ModelProto, samples: Samples) -> bool:
        """Whether the trained model does better than the pruned one on the samples that choose."""
        errors = [
            mean_error(self._fidelity(models, one, samples, Part.CHOOSING)) for one in (proto, models.pruned.proto)
        ]
        return errors[0] < errors[1]

    def _fidelity(self, models: _Models, pruned: onnx.ModelProto, samples: Samples, part: Part) -> tuple[Fidelity, ...]:
        return fidelity_between(models.dense.proto, pruned, samples, self.data.batch_size, self.runtime, part)

    def _options(self, samples: Samples) -> dict[str, Any]:
        return {**self.training.record(), "samples": samples.count, "provider": self.runtime.provider}


def _labels(samples: Samples) -> Any:
    """Classes of the samples that train, one each; None if there are none."""
    labels = samples.labels(Part.CALIBRATION)
    if labels is None:
        return None
    found = np.asarray(labels)
    if found.size != len(found) or found.dtype.kind not in "iub" or found.min(initial=0) < 0:
        raise CalibrationError(f"labels of shape {found.shape} and type {found.dtype}: give one class number a sample")
    return found.reshape(-1).astype(np.int64)


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the initialisers that it also lists as inputs, as `verify` knows models."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) == len(model.graph.input):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    copy.ir_version = max(copy.ir_version, 4)
    return copy


def _versions() -> dict[str, str]:
    import torch

    return {**versions(), "torch": str(torch.__version__)}


def _elements(trained: Trained) -> int:
    return sum(int(np.prod(values.shape)) for values in trained.weights.values())


def _warnings(samples: Samples) -> tuple[str, ...]:
    noise = ("RANDOM samples: trained on noise; use real inputs",) if samples.is_random else ()
    return (*noise, *samples.warnings)


def _config_beside(pruned: model_io.Model) -> str | None:
    """The file with head counts that `prune` left beside the model, if it is ours."""
    if pruned.path is None or not (path := config_of(pruned.path)).is_file():
        return None
    text = path.read_text()
    return text if MADE_BY in text else None
