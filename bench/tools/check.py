"""Check on a GPU: `python -m bench.gpu check`; needs a checkout, no installation.

Runs the tests of the kernels, of the model on them, of the golden cases and of what only a GPU can show, then
compute-sanitizer over each kernel where that is installed, and writes a report. The exit code is 1 if anything is
wrong.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from bench.engine.environment import RESULTS, ROOT, describe
from bench.engine.results import dump, write_whole

TESTS = (
    "gpu",
    "kernels",
    "model/test_golden.py",
    "inference/test_batch_invariance.py",
    "inference/test_graphs.py",
    "cli/test_warm_up.py",
)
"""Files and folders of tests, slow ones included: what is slow where kernels are interpreted is quick on a GPU."""
SECONDS = 420.0
"""Seconds that the check may take, the import of torch excluded."""
SANITIZER_SECONDS = 100
SANITIZED = """
import torch
from erniem_fast import ErnieMConfig
from erniem_fast.cli.warm_up import warm_up
torch.manual_seed(0)
sizes = dict(hidden_size=128, num_attention_heads=2, intermediate_size=256, max_position_embeddings=514)
warm_up(ErnieMConfig(act_dropout=0.1, **sizes), torch.device("cuda"), torch.bfloat16, training=True)
torch.cuda.synchronize()
"""


def run_tests(timeout: float) -> dict[str, Any]:
    """Numbers of tests that passed and were skipped, names and messages of those that failed, seconds taken."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=15"]
        command += [f"--junitxml={report}", *(f"tests/{name}" for name in TESTS)]
        if find_spec("xdist"):  # most of the time goes into compiling
            command += ["-n", str(min(12, os.cpu_count() or 1))]
        begin = monotonic()
        # A session of its own, so that workers end with it; interrupted, pytest still writes what it has.
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
        late = {}
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = {"all": f"did not end within {timeout:.0f} s"}
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        counted: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": {}}
        if report.exists():
            counted = summary(report)
        else:
            late = late or {"all": f"pytest ended with {process.returncode} and left no report"}
        counted["failed"] |= late
        return counted | {"seconds": round(monotonic() - begin)}


def summary(report: Path) -> dict[str, Any]:
    """Numbers of tests that passed and were skipped in a JUnit report, names and messages of those that failed."""
    counted: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": {}}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            name = f"{case.get('classname')}::{case.get('name')}"
            counted["failed"][name] = (wrong[0].get("message") or "")[:500]
        else:
            counted["skipped" if any(child.tag == "skipped" for child in case) else "passed"] += 1
    return counted


def run_sanitizer(timeout: float) -> str:
    """Verdict of compute-sanitizer's memcheck on every kernel, forward and backward."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return "not installed"
    command = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    command += [sys.executable, "-c", SANITIZED]
    variables = environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # a cache hides reads past a tensor's end
    try:
        done = subprocess.run(command, cwd=ROOT, env=variables, timeout=timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return f"not finished within {timeout:.0f} s"
    lines = (done.stdout + done.stderr).strip().splitlines()
    if any("not supported" in line for line in lines):
        return "not usable on this machine"
    return "no errors" if done.returncode == 0 else "\n".join(lines[-30:])


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0"}
    variables.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)  # some images set it: float32 products would be TF32
    return variables


def main(folder: Path = RESULTS, seconds: float = SECONDS) -> int:
    """Check for at most so many seconds and write a report into a folder; the exit code."""
    if not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, nothing was checked")
        return 0
    begin, about = monotonic(), describe("cuda")
    capability = torch.cuda.get_device_capability()
    # Beside the tests the same kernels are compiled once without the sanitizer; triton keeps them on disk.
    ahead = subprocess.Popen([sys.executable, "-c", SANITIZED], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    tests = run_tests(seconds - SANITIZER_SECONDS)
    ahead.kill()
    sanitizer = run_sanitizer(seconds - (monotonic() - begin))
    about |= {"capability": "{}.{}".format(*capability), "tests": tests, "compute_sanitizer": sanitizer}
    name = about["processor"].lower().replace("nvidia ", "").replace(" ", "-")
    path = folder / f"gpu-check-{name}-{about['date'][:10]}.json"
    write_whole(path, dump(about))
    print(f"{dump(about)}written to {path}")
    harmless = sanitizer == "no errors" or sanitizer.startswith("not ")
    return 1 if tests["failed"] or not tests["passed"] or not harmless else 0
