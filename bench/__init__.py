"""Benchmarks: `python -m bench` measures each figure beside its peer, in the same run, and prints the noise."""
