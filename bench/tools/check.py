"""Check on a GPU: `python -m bench.gpu check`; needs a checkout, no installation.

Compiles the model's kernels by all cores, runs the tests of the kernels, of the model on them, of the golden cases and
of what only a GPU can show, then compute-sanitizer over each kernel where that is installed. The report is written
before the sanitizer begins, too. The exit code is 1 if anything is wrong or did not end; `--resume` goes on with the
tests that have not ended.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, time
from typing import Any

import torch

from bench.engine.environment import RESULTS, ROOT, SOURCES, describe, device_name, digest
from bench.engine.processes import run_for
from bench.engine.results import ResultFile, dump, write_whole

from . import check_plugin, pool

TESTS = (
    "cli/test_warm_up.py",
    "inference/test_graphs.py",
    "inference/test_batch_invariance.py",
    "gpu",
    "model/test_golden.py",
    "kernels",
)
"""Files and folders of tests, the longest first; slow ones too: what is slow when interpreted is quick on a GPU."""
TINY_TESTS = ("kernels/test_configs.py",)
SECONDS = 420.0
"""Seconds that the check may take, the import of torch excluded."""
COMPILING_SECONDS = 60.0
SANITIZER_SECONDS = 100
HUNG_SECONDS = 120.0
"""A test that has not come back after that has failed when the time is over; others are left for the next run."""
SANITIZED = """
import torch
from erniem_fast import ErnieMConfig
from erniem_fast.cli.warm_up import warm_up
torch.manual_seed(0)
sizes = dict(hidden_size=128, num_attention_heads=2, intermediate_size=256, max_position_embeddings=514)
warm_up(ErnieMConfig(act_dropout=0.1, **sizes), torch.device("cuda"), torch.bfloat16, training=True)
torch.cuda.synchronize()
"""


def compile_ahead(architecture: str, seconds: float) -> None:
    """Compile the kernels of a model by all cores, so that neither tests nor benchmarks wait for them."""
    from . import compile_kernels

    if architecture in compile_kernels.ARCHITECTURES:
        found = compile_kernels.cases([architecture], compile_kernels.DTYPES)
        usual = [case for case in found if not case.prefix and (case.launch != "attention" or case.size == 64)]
        pool.in_time(_compile, usual, seconds)


def _compile(case: Any) -> None:
    from . import compile_kernels

    try:
        compile_kernels.call(case, lambda kernel, options, make: make())
    except Exception as error:  # a test says so, too
        print(f"{case.label} was not compiled: {error}")


def run_tests(timeout: float, before: dict[str, Any], tests: tuple[str, ...] = TESTS) -> dict[str, Any]:
    """Run the tests that have not ended before; how they ended, as `report` counts them."""
    with tempfile.TemporaryDirectory() as folder:
        log, done = Path(folder) / "log", Path(folder) / "done.json"
        log.touch()
        done.write_text(json.dumps(before.get("done", [])), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", check_plugin.__name__]
        command += ["--continue-on-collection-errors"]
        command += [f"tests/{name}" for name in tests]
        if find_spec("xdist"):  # most of the time goes into compiling
            command += ["-n", str(min(12, os.cpu_count() or 1)), "--dist", "worksteal"]
        variables = environment() | {check_plugin.LOG: str(log), check_plugin.DONE: str(done)}
        code = run_for(command, timeout, ROOT, variables)
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return report(lines, before, code)


def report(lines: list[dict[str, Any]], before: dict[str, Any], code: int | None) -> dict[str, Any]:
    """Numbers of tests that passed and were skipped, messages of those that failed, the slowest, and which are done.

    `lines` are those of `check_plugin`, `before` the report that is added to, `code` pytest's; None if it was killed.
    """
    counted = {"passed": 0, "skipped": 0, "failed": {}, **before.get("tests", {})}
    begun = {line["test"]: line["begun"] for line in lines if "begun" in line}
    ended: dict[str, dict[str, Any]] = {}
    for line in lines:  # a teardown may fail after the test has passed
        if "outcome" in line and ended.get(line["test"], {}).get("outcome") != "failed":
            ended[line["test"]] = line
    for outcome in ("passed", "skipped"):
        counted[outcome] += sum(line["outcome"] == outcome for line in ended.values())
    hung = {test for test, moment in begun.items() if test not in ended and time() - moment > HUNG_SECONDS}
    failed = {test: text for test, text in counted["failed"].items() if test != "all"}
    failed |= {test: line["message"] for test, line in ended.items() if line["outcome"] == "failed"}
    failed |= dict.fromkeys(hung, f"did not end within {HUNG_SECONDS:.0f} s")
    if code not in (None, 0, 1, 5):  # 5: no test was left
        failed["all"] = f"pytest ended with {code}"
    slowest = sorted(((round(line["seconds"], 1), test) for test, line in ended.items()), reverse=True)[:15]
    left_out = ["tests that have not ended"] * (code is None) + ["compute-sanitizer"]
    tests = counted | {"failed": failed, "slowest": {test: seconds for seconds, test in slowest}}
    return {"tests": tests, "left_out": left_out, "done": sorted({*before.get("done", []), *ended, *hung})}


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
    if any("Device not supported" in line for line in lines):
        return "Device not supported"
    return "no errors" if done.returncode == 0 else "\n".join(lines[-30:])


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0"}
    variables.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)  # some images set it: float32 products would be TF32
    # The process that starts tests is no worker, even if a worker of pytest-xdist has started it.
    return {name: value for name, value in variables.items() if not name.startswith("PYTEST_XDIST")}


def main(folder: Path = RESULTS, seconds: float = SECONDS, resume: bool = False, tiny: bool = False) -> int:
    """Check for at most so many seconds and write a report into a folder; the exit code."""
    if not tiny and not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, nothing was checked")
        return 0
    begin, device = monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    about = describe(device) | {"tests_sources": digest(*SOURCES, "tests"), "tiny": tiny}
    prefix, before = f"gpu-check-{device_name(about)}", {}
    path, earlier = (
        folder / f"{prefix}-{about['date'][:10]}.json",
        ResultFile.newest(folder, prefix) if resume else None,
    )
    if earlier is not None and not earlier.differences(about):
        path, before = earlier.path, earlier.content
    sanitizer, ahead = before.get("compute_sanitizer", "not begun"), None
    reserved = 0.0 if tiny else min(SANITIZER_SECONDS, seconds / 4)
    if not tiny:
        major, minor = torch.cuda.get_device_capability()
        about["capability"] = f"{major}.{minor}"
        compile_ahead(f"sm_{major}{minor}", min(COMPILING_SECONDS, seconds / 4))
        # Beside the tests the sanitizer's kernels are compiled without it; triton keeps them on disk.
        ahead = subprocess.Popen(
            [sys.executable, "-c", SANITIZED], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
        )
    about |= run_tests(seconds - reserved - (monotonic() - begin), before, TINY_TESTS if tiny else TESTS)
    about["compute_sanitizer"] = sanitizer
    if ahead is not None:
        ahead.kill()
    write_whole(path, dump(about))
    if not tiny and sanitizer != "no errors":
        about["compute_sanitizer"] = sanitizer = run_sanitizer(seconds - (monotonic() - begin))
    if not sanitizer.startswith("not finished"):
        about["left_out"].remove("compute-sanitizer")
    write_whole(path, dump(about))
    tests = about["tests"]
    print(f"passed: {tests['passed']}, skipped: {tests['skipped']}, compute-sanitizer: {sanitizer}, failed:")
    print(*(f"{test}: {message}" for test, message in tests["failed"].items()), f"written to {path}", sep="\n")
    return int(is_wrong(about) or bool(about["left_out"]))


def is_wrong(content: dict[str, Any]) -> bool:
    """True if a report names anything that is wrong."""
    tests, sanitizer = content["tests"], content["compute_sanitizer"]
    harmless = content.get("tiny") or sanitizer in ("no errors", "not installed", "Device not supported")
    return bool(tests["failed"] or not tests["passed"] or not harmless)
