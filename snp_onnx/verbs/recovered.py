"""What `recover` gives back: facts only; `snp_onnx.report` turns them into text and JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from snp_onnx import model_io
from snp_onnx.external import Store
from snp_onnx.verbs.fidelity import Fidelity
from snp_onnx.verbs.result import save_with_config
from snp_onnx.writing import Transaction, joined


@dataclass(frozen=True, slots=True)
class RecoverReport:
    """One recovery: fidelity on the samples held back before and after, and every check on the way.

    `changed` is False where nothing was better than the pruned model as it came: then the result is that model.
    `trained` counts the weights' elements that were trained, `features` the sums that both models were compared at.
    """

    changed: bool
    before: tuple[Fidelity, ...]
    after: tuple[Fidelity, ...]
    history: tuple[Mapping[str, float], ...]
    trained: int
    features: int
    samples: int
    passes: float
    """How often every sample was trained on."""
    timings: Mapping[str, float]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RecoverResult:
    """The recovered model and the report; nothing is on disk before `save`.

    The weights of a large model stay in the files of the pruned one and of `store`, as in `PruneResult`.
    """

    proto: onnx.ModelProto
    report: RecoverReport
    store: Store | None = None
    config: str | None = None
    """The text of the file with head counts beside the pruned model, if there was one of ours: it holds still."""
    checkpoint: Path | None = None
    """Where the state of the training is; needless once the model is saved."""

    @property
    def model(self) -> onnx.ModelProto:
        """The recovered model; of a large one its weights are read each time that this is asked for."""
        return model_io.gathered(self.proto)

    def save(
        self, path: str | os.PathLike[str], save_as_external_data: bool = False, within: Transaction | None = None
    ) -> int:
        """Write the model, the head counts of a pruned transformer beside it; returns its bytes on disk.

        What stood there stays until everything is written, and is replaced at once; `within` has other files of the
        same result.
        """
        with joined(within) as files:
            written = save_with_config(self.proto, Path(path), save_as_external_data, self.config, files)
            if self.checkpoint is not None:
                files.remove(self.checkpoint)
        return written
