"""Doctests of the room that needs torch are left out where torch isn't installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["snp_onnx/recovery/*"]
