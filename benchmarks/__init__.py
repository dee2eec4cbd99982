"""Measurements against peers, each run of both in one process on one machine: `python -m benchmarks.cpu`."""
