"""Training: steps towards the dense model, checks on the samples that choose, the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from snp_onnx.errors import CalibrationError, ModelError
from snp_onnx.planning.training import Checkpoints, Optimiser, Precision, Training
from snp_onnx.recovery.augment import augmented
from snp_onnx.recovery.checkpoint import State, read_state, write_state
from snp_onnx.recovery.coordinates import Coordinates
from snp_onnx.recovery.features import nearest
from snp_onnx.recovery.graph import GraphModule
from snp_onnx.recovery.losses import Loss, is_classifier, is_probability, relative_error
from snp_onnx.recovery.pool import Array, Pool, Rows
from snp_onnx.recovery.teacher import Teacher
from snp_onnx.tracing.surface import Surface

Progress = Callable[[str, int, int], None]

CHECKS = 50
"""Checks on the samples that choose in a whole training, at most."""

MOMENT_BATCHES = 4
"""Batches that the moments of the layers' inputs are taken from."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is trained towards what, on which samples."""

    student: GraphModule
    teacher: Teacher
    features: tuple[str, ...]
    """Names that both models have; those of other shapes are left out here."""
    pool: Pool
    held_back: Sequence[Rows]
    mask: str | None
    training: Training
    progress: Progress
    checkpoints: Checkpoints | None = None
    fingerprint: str = ""
    dense_features: tuple[str, ...] = ()
    """All that the dense model has, in its order; by default those that both have."""
    surface: Surface = field(default_factory=Surface)
    """What the pruned model has of the dense one's inputs and outputs; samples are the dense one's."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The best weights by their names in the graph, empty if none were better than those at the start."""

    weights: Mapping[str, npt.NDArray[np.generic]]
    start_error: float
    best_error: float
    history: tuple[Mapping[str, float], ...]
    features: tuple[str, ...]
    passes: float
    seconds: float
    notes: tuple[str, ...]


def train(task: Task) -> Trained:
    """Train until the epochs or the minutes are over, or nothing has got better for `patience` checks.

    The same task gives the same weights on one machine with one number of threads, interrupted and resumed or not,
    unless a time limit decides.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(task.training.threads or before)
    try:
        return _Run(task).run()
    finally:
        torch.set_num_threads(before)


class _Run:
    """One training on its way."""

    def __init__(self, task: Task) -> None:
        self.started = time.monotonic()
        self.task, self.state = task, State()
        self.notes: list[str] = []
        self.aimed: dict[str, str] = {}
        """The dense feature that each of the student's should come near."""
        self.device = torch.device(task.training.device)
        self.student = task.student.placed(self.device)
        if not self.student.weights:
            raise ModelError("the pruned model has no weights that recovery knows: there is nothing to train")
        self.loss = self._loss()
        self.coordinates = self._coordinates()
        self.optimiser = _optimiser(self.coordinates.trained, task.training)
        self.aims = [self._aims(rows) for rows in task.held_back]
        self.rates = _Rates(task.training, len(self._steps(0)))

    def run(self) -> Trained:
        self._resume_or_start()
        if not self.state.is_done:
            self._epochs()
            self.state.is_done = True
            self._write()
        return self._result()

    # what it is made of

    def _loss(self) -> Loss:
        """Which outputs and features count, seen on the first batch of those that choose."""
        task, rows = self.task, self.task.held_back[0]
        outputs, feed = self.student.outputs, self._feed(rows)
        names = (*outputs, *task.features)
        taught = (*outputs, *(task.dense_features or task.features))
        wanted = self._taught(feed, taught)
        with torch.no_grad():
            found = self.student.tensors(self._cut(feed), names)
        for name in outputs:
            if found[name].shape != wanted[name].shape:
                raise ModelError(
                    f"output {name} has shape {tuple(wanted[name].shape)} in the dense model and "
                    f"{tuple(found[name].shape)} in the pruned one: give the model it was pruned from"
                )
        floating = tuple(name for name in outputs if wanted[name].is_floating_point())
        if not floating:
            raise ModelError("the models have no floating-point output: there is nothing to train towards")
        if task.training.feature_weight:
            self.aimed = nearest(task.features, taught[len(outputs) :], found, wanted, self._real(feed))
        features = tuple(self.aimed)
        classifiers = {name: is_probability(wanted[name]) for name in floating if is_classifier(wanted[name])}
        _check_labels(task.pool, {wanted[name].shape[1] for name in classifiers})
        return Loss(floating, classifiers, features, task.training)

    def _coordinates(self) -> Coordinates:
        """The moments come from the first batches of an epoch that is never trained."""
        runs = [run for step in self._steps(-1 % 2**32)[:MOMENT_BATCHES] for run in step]
        feeds = (self._cut(self._feed(self.task.pool.rows(*run))) for run in runs)
        return Coordinates(self.student, feeds, self.task.training.whiten).to(self.device)

    def _feed(self, rows: Rows) -> dict[str, Tensor]:
        return {name: _tensor(values).to(self.device) for name, values in rows.feed.items()}

    def _cut(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The pruned model's part of the dense one's inputs or outputs."""
        found = dict(values)
        for name, axes in self.task.surface.kept.items():
            for axis, places in axes.items() if name in found else ():
                found[name] = found[name].index_select(axis, torch.from_numpy(places).to(self.device))
        return found

    def _taught(self, feed: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        return self._cut(self.task.teacher(feed, names))

    def _real(self, feed: Mapping[str, Tensor]) -> Tensor | None:
        mask = self.task.mask
        return None if mask is None or mask not in feed else feed[mask] != 0

    def _steps(self, epoch: int) -> list[list[tuple[int, Array]]]:
        return self.task.pool.epoch(self.task.training.batch_size, self.task.training.seed, epoch)

    # checks

    def _aims(self, rows: Rows) -> dict[str, Tensor]:
        return self._taught(self._feed(rows), self.loss.outputs)

    def _held_back_error(self) -> float:
        """√ of the mean over outputs of (‖b - a‖ / ‖a‖)² on the samples that choose; infinite if not finite.

        The mean is of squares, as in the judgement afterwards: outputs that are almost exact hardly count.
        """
        errors: dict[str, list[tuple[float, float]]] = {name: [] for name in self.loss.outputs}
        for rows, wanted in zip(self.task.held_back, self.aims, strict=True):
            feed = self._feed(rows)
            with torch.no_grad():
                found = self.student.tensors(self._cut(feed), self.loss.outputs, self.coordinates.weights())
            for name, parts in errors.items():
                size = float(wanted[name].double().square().sum())
                parts.append((float(relative_error(found[name], wanted[name], self._real(feed))) * size, size))
        total = [sum(e for e, _ in parts) / max(sum(s for _, s in parts), 1e-12) for parts in errors.values()]
        error = float(np.sqrt(np.mean(total)))
        return error if math.isfinite(error) else math.inf

    def _check(self, loss: float) -> None:
        """Measure, and keep the state if it is the best."""
        state, error = self.state, self._held_back_error()
        state.history.append(
            {"epoch": state.epoch, "loss": loss, "held_back_error": error, "seconds": round(self._seconds(), 1)}
        )
        if error < state.best_error:
            state.best_error, state.stale = error, 0
            state.best = {name: weight.detach().clone() for name, weight in self.coordinates.weights().items()}
        else:
            state.stale += 1

    # the way

    def _resume_or_start(self) -> None:
        checkpoints = self.task.checkpoints
        if checkpoints is not None and checkpoints.resume:
            if checkpoints.path.exists():
                self._resume(read_state(checkpoints.path, self.task.fingerprint))
                return
            self.notes.append(f"{checkpoints.path}: no checkpoint there to resume: started from the beginning")
        self.state.start_error = self.state.best_error = self._held_back_error()

    def _resume(self, state: State) -> None:
        self.state = state
        with torch.no_grad():
            for weight, values in zip(self.coordinates.trained, state.weights, strict=True):
                weight.copy_(values)
        self.optimiser.load_state_dict(state.optimiser)
        state.best = {name: values.to(self.device) for name, values in state.best.items()}
        self.started -= state.elapsed
        self.notes.append(f"resumed in epoch {state.epoch + 1} after {state.elapsed / 60:.1f} minutes")

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _epochs(self) -> None:
        chosen = self.task.training
        written = time.monotonic()
        for epoch in range(self.state.epoch, chosen.epochs):
            steps = self._steps(epoch)
            losses: list[float] = []
            for number in range(self.state.step, len(steps)):
                share = self.rates.share(epoch, number, self._seconds())
                if share >= 1:
                    self.notes.append(f"stopped by the time limit in epoch {epoch + 1} of {chosen.epochs}")
                    self._check(_mean(losses))
                    return
                self.task.progress("train", round(share * chosen.epochs * len(steps)), chosen.epochs * len(steps))
                losses.append(self._step(steps[number], (chosen.seed, epoch, number), share))
                if not math.isfinite(losses[-1]):
                    self.notes.append(f"the loss was not finite in epoch {epoch + 1}: stopped; give a lower --lr")
                    return
                self.state.epoch, self.state.step = epoch, number + 1
                if self.task.checkpoints is not None and time.monotonic() - written >= 60 * self.task.checkpoints.every:
                    self._write()
                    written = time.monotonic()
            self.state.epoch, self.state.step = epoch + 1, 0
            done = self.rates.share(epoch + 1, 0, self._seconds())
            if done - self.state.checked > 0.999 / CHECKS or epoch + 1 == chosen.epochs:
                self._check(_mean(losses))
                self.state.checked = done
                if chosen.patience and self.state.stale >= chosen.patience:
                    self.notes.append(f"stopped after epoch {epoch + 1}: no better for {chosen.patience} checks")
                    return

    def _write(self) -> None:
        """A checkpoint, if there are to be any."""
        checkpoints = self.task.checkpoints
        if checkpoints is None:
            return
        self.state.weights = [weight.detach() for weight in self.coordinates.trained]
        self.state.optimiser, self.state.elapsed = self.optimiser.state_dict(), self._seconds()
        write_state(self.state, checkpoints.path, self.task.fingerprint)

    def _step(self, runs: Sequence[tuple[int, Array]], key: tuple[int, int, int], share: float) -> float:
        """One step of the optimiser; the mean loss of its runs."""
        rng = np.random.default_rng(key)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rates.rate(share)
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for bucket, places in runs:
            loss = self._run_loss(self.task.pool.rows(bucket, places), rng) / len(runs)
            total += float(loss.detach())
            if not math.isfinite(total):
                return total
            loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.coordinates.trained, self.task.training.clip)
        if not math.isfinite(float(norm)):
            return math.inf
        self.optimiser.step()
        return total

    def _run_loss(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        task, names = self.task, (*self.loss.outputs, *self.loss.features)
        feed = augmented(self._feed(rows), task.training.augment, rng)
        feed = {name: _channels_last(values) for name, values in feed.items()}
        labels = None if rows.labels is None else torch.from_numpy(rows.labels).to(self.device)
        is_short = task.training.precision is Precision.BFLOAT16
        weights = self.coordinates.weights()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_short):
            dense = [self.aimed.get(name, name) for name in names]
            taught, found = self._taught(feed, dense), self.student.tensors(self._cut(feed), names, weights)
        wanted = {name: taught[other] for name, other in zip(names, dense, strict=True)}
        return self.loss(found, wanted, self._real(feed), labels)

    def _passes(self) -> float:
        return self.state.epoch + self.state.step / self.rates.steps

    def _result(self) -> Trained:
        state = self.state
        best = {name: values.cpu().contiguous().numpy() for name, values in state.best.items()}
        history, features = tuple(state.history), self.loss.features
        return Trained(
            best,
            state.start_error,
            state.best_error,
            history,
            features,
            self._passes(),
            self._seconds(),
            tuple(self.notes),
        )


@dataclass(frozen=True, slots=True)
class _Rates:
    """The learning rate over a training: a linear warm-up, then half a cosine."""

    training: Training
    steps: int
    """Of one epoch."""

    def share(self, epoch: int, number: int, seconds: float) -> float:
        """How much of the training is done: by steps or, if that is more, by time."""
        done = (epoch * self.steps + number) / max(1, self.training.epochs * self.steps)
        limit = self.training.time_limit
        return done if limit is None else max(done, seconds / (60 * limit))

    def rate(self, share: float) -> float:
        warm = self.training.warmup
        rising = min(1.0, (share + 1e-3) / warm) if warm else 1.0
        falling = 0.5 * (1 + math.cos(math.pi * max(0.0, share - warm) / (1 - warm)))
        return self.training.rate * rising * falling


def _check_labels(pool: Pool, classes: set[int]) -> None:
    if pool.labels is None:
        return
    if not classes:
        raise CalibrationError("labels were given, and no output of the model is scores of classes: leave them out")
    largest = int(pool.labels.max(initial=0))
    if largest >= min(classes):
        raise CalibrationError(f"label {largest} is too large for an output of {min(classes)} classes")


def _optimiser(weights: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """Weight decay is for weights of two axes and more only."""
    parts = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    parts = [part for part in parts if part["params"]]
    if training.optimiser is Optimiser.ADAMW:
        return torch.optim.AdamW(parts, lr=training.rate)
    return torch.optim.SGD(parts, lr=training.rate, momentum=training.momentum, nesterov=training.momentum > 0)


def _tensor(values: Array) -> Tensor:
    wide = values.astype(np.float32) if values.dtype.kind in "fV" and values.dtype.itemsize == 2 else values
    return torch.from_numpy(np.asarray(wide, order="C"))


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def _mean(losses: Sequence[float]) -> float:
    return float(np.mean(losses)) if losses else math.nan
