"""The JSON report: the same facts as the table, for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

from snp_onnx.verbs.recovered import RecoverReport
from snp_onnx.verbs.result import Comparison, Inspection, Report


def to_json(result: Report | Inspection | Comparison | RecoverReport) -> str:
    """Any result as indented JSON with sorted keys; numbers that aren't finite become null."""
    return json.dumps(_plain(asdict(result)), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    if isinstance(value, float):
        return None
    return value
