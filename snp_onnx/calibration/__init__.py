"""Calibration: which statistics are taken of the samples, and how they are run."""
