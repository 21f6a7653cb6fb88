"""`python -m snp_onnx.cli`."""

from snp_onnx.cli import main

main()
