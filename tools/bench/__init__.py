"""Benchmarks: one command each, tables to tools/bench/RESULTS.md."""
