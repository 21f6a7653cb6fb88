"""Doctests of the room that needs torch are left out where torch isn't installed; what needs Olive has none."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["snp_onnx/recovery/*"]
collect_ignore = ["snp_onnx/integrations/olive/prune_pass.py"]  # importing it would import Olive, for seconds
