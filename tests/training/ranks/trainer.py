"""Run what Trainer does one after the other in the same processes, which take seconds to start."""

import runpy
from pathlib import Path

for name in ("train", "evaluate", "resume"):
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))
