"""Benchmarks: operations and models on many shapes by many providers, checked and timed side by side.

`python -m bench.run` measures on a CPU, `python -m bench.gpu` on a GPU, `python -m bench.report` makes the tables.
Imports run engine < ops < models < serving < training < report < tools < doors.
"""

import os

# Else inductor, on the first graph that it compiles, would move Triton's cache for the rest of the process.
_HOME = os.path.expanduser("~")
os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(os.environ.get("TRITON_HOME") or _HOME, ".triton", "cache"))
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(_HOME, ".cache", "torchinductor"))
