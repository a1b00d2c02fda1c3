"""Are the kernels right on this GPU? `python -m bench.gpu_check`; needs a checkout, no installation.

Runs the tests of the kernels, of the model on them, of the golden cases and of what only a GPU can show, then
compute-sanitizer over each kernel where that is installed, and writes a report to bench/results/. Without a GPU it says
so and does nothing. Exit code 1 if something is wrong.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from .run import RESULTS, ROOT, git

TESTS = (
    "gpu/test_gpu",
    "kernels/test_attention",
    "kernels/test_rows",
    "kernels/test_linear",
    "kernels/test_backend",
    "model/test_golden",
    "inference/test_batch_invariance",
    "inference/test_graphs",
    "cli/test_warm_up",
)
SECONDS = 420
"""All that the check may take, the import of torch aside."""
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
    """Counts, and the names and messages of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [f"tests/{name}.py" for name in TESTS]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=15"]
        command += ["-m", "not slow", f"--junitxml={report}", *files]
        if find_spec("xdist"):  # most of the time goes into compiling
            command += ["-n", str(min(12, os.cpu_count() or 1))]
        begin = time.monotonic()
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
        return counted | {"seconds": round(time.monotonic() - begin)}


def summary(report: Path) -> dict[str, Any]:
    """What a JUnit report says."""
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
    """What memcheck says of every kernel, forward and backward."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return "not installed"
    command = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    command += [sys.executable, "-c", SANITIZED]
    variables = environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # a cache hides what lies past a tensor
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, timeout=timeout, check=False, capture_output=True, text=True
        )
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the report")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, nothing was checked")
        return 0
    import triton

    begin, now = time.monotonic(), datetime.now(UTC)
    device = torch.cuda.get_device_properties(0)
    # Beside the tests the same kernels are compiled once without the tool, which triton keeps on disk.
    ahead = subprocess.Popen(
        [sys.executable, "-c", SANITIZED],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    tests = run_tests(SECONDS - SANITIZER_SECONDS)
    ahead.kill()
    sanitizer = run_sanitizer(SECONDS - (time.monotonic() - begin))
    status = git("status", "--porcelain", "--", ".", ":!bench/results")
    report = {
        "date": now.isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "device": device.name,
        "capability": f"{device.major}.{device.minor}",
        "versions": {
            "python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda,
            "triton": triton.__version__, "transformers": transformers.__version__,
        },
        "tests": tests,
        "compute_sanitizer": sanitizer,
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    name = device.name.lower().replace("nvidia ", "").replace(" ", "-")
    path = options.output / f"gpu-check-{name}-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    print(f"written to {path}")
    harmless = sanitizer == "no errors" or sanitizer.startswith("not ")
    return 1 if tests["failed"] or not tests["passed"] or not harmless else 0


if __name__ == "__main__":
    sys.exit(main())
