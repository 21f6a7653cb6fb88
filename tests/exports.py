"""Exports of recipes, each made once for all processes that share the tests: torch takes seconds for many."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import onnx

import models

FOLDER = "SNP_ONNX_TEST_EXPORTS"
"""The variable that names the folder of exports; it lives as long as the run of the tests."""


def export_bytes(name: str, exporter: str = "ts", batch: str = "dynamic", **options: Any) -> onnx.ModelProto:
    """As `models.export_bytes`, which gives the same model for the same options every time."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return models.export_bytes(name, exporter, batch, **options)
    facts = repr((name, exporter, batch, sorted({"rows": 1, **options}.items())))
    path = Path(folder) / f"{hashlib.sha256(facts.encode()).hexdigest()}.onnx"
    if not path.exists():
        model = models.export_bytes(name, exporter, batch, **options)
        whole = path.with_suffix(f".{os.getpid()}")
        whole.write_bytes(model.SerializeToString())
        whole.replace(path)  # another process that reads it finds all of it
    return onnx.ModelProto.FromString(path.read_bytes())
