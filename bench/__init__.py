"""Benchmarks: a registry of operations, shapes and providers, timed side by side.

`python -m bench.run` runs those of a CPU, `python -m bench.gpu` the GPU suite.
"""
