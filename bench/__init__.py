"""Benchmarks: operations and models on many shapes by many providers, checked and timed side by side.

`python -m bench.run` measures on a CPU, `python -m bench.gpu` on a GPU, `python -m bench.report` makes the tables.
Imports run engine < ops < models < report < tools < doors.
"""
