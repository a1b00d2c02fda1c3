"""Scripts on two processes, started as users do it."""

import os
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT
from helpers.processes import PATIENCE

RANKS = ROOT / "tests" / "training" / "ranks"
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # `--cpu` would start one process: accelerate starts several on a CPU by MPI or as it does for GPUs, gloo in either.
    "accelerate": [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ],
}  # fmt: skip


def launch(scripts: str, *arguments: str | Path, by: str = "torchrun") -> str:
    """Run scripts of tests/training/ranks on two processes, on CPUs, and return what they print.

    Args:
        scripts: their names, with commas between them.

    Raises:
        AssertionError: one of them fails.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, *LAUNCHERS[by], str(RANKS / "run.py"), scripts, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-8000:]
    assert done.stdout.count("ended in good order") == 2
    return done.stdout
