"""Calibration: where samples come from, which statistics are taken of them, and how they are run."""
