"""Recipes that build and export networks with torch, and one small trained sample; never installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx


def export_bytes(name: str, exporter: str = "ts", batch: str = "dynamic", **options: Any) -> onnx.ModelProto:
    """Build recipe `name`, export it and return the model; `options` as in `models.exporting.export_bytes`."""
    from models.exporting import export_bytes as exported

    return exported(name, exporter=exporter, batch=batch, **options)
