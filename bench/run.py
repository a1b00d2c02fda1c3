"""Times the cases of the registry and writes one JSON file with the results.

    python -m bench.run                      # all cases: some minutes; writes bench/results/cpu-<date>.json
    python -m bench.run --only encoder       # some of them; printed, and written only where --output says
    python -m bench.run --tiny               # a dry run on tiny shapes; likewise

`bench/results/README.md` says what the fields mean.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

import erniem_fast

from .table import cases_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


def summarise(benchmark: dict[str, Any]) -> dict[str, Any]:
    """A case of the results from a benchmark of pytest-benchmark's JSON."""
    info, times = benchmark["extra_info"], benchmark["stats"]["data"]
    pairs = zip(times, info["baseline_times"] or times, strict=True)
    middle = median(times)
    case = {name: info[name] for name in ("operation", "shape", "provider", "dtype")}
    case |= {"rounds": len(times), "median_s": middle, "min_s": min(times)}
    case |= {"p10_s": float(np.percentile(times, 10)), "p90_s": float(np.percentile(times, 90))}
    case |= {"baseline": info["baseline"], "ratio": median(time / baseline for time, baseline in pairs)}
    case |= {name: info[name] for name in ("real_tokens", "padded_tokens")}
    case |= {"real_tokens_per_s": info["real_tokens"] / middle, "max_error": info["max_error"]}
    if info["memory"] is not None:
        case["memory_bytes"] = info["memory"]
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in case.items()}


def git(*arguments: str) -> str | None:
    """Output of git in the repository; None where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def processor(device: str) -> str:
    """Name of the processor that computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """What the results were measured on."""
    status = git("status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(status) if status is not None else None,
        "tiny": options.tiny,
        "device": options.device,
        "processor": processor(options.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "pytest-benchmark")},
            "erniem_fast": erniem_fast.__version__,
        },
    }


def busy_seconds() -> tuple[float, float] | None:
    """Processor time so far: of all processes, and of those that this one has waited for. None outside Linux."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, soft_irq, steal = map(int, fields[:8])
    times = os.times()
    total = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
    return total, times.children_user + times.children_system


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the cases through pytest-benchmark. A case that fails leaves no time, and its message on the screen."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "bench/test_cases.py", "-q", "--benchmark-columns=min,median,max"]
        command += ["-p", "no:cacheprovider", f"--benchmark-json={report}", f"--only={options.only}"]
        command += [f"--device={options.device}", f"--dtype={options.dtype}", f"--threads={options.threads}"]
        code = subprocess.run(command + ["--tiny"] * options.tiny, cwd=ROOT).returncode
        if code not in (0, 1) or not report.exists():
            raise SystemExit(f"pytest ended with {code}: nothing was measured")
        benchmarks = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    if code:
        print("Some cases failed; they are left out.", file=sys.stderr)
    return [summarise(benchmark) for benchmark in benchmarks]


def dump(result: dict[str, Any]) -> str:
    """Compact JSON, a field or a case a line."""
    head = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items() if key != "cases"]
    rows = ",\n  ".join(json.dumps(case) for case in result["cases"])
    return "{\n " + ",\n ".join([*head, f'"cases": [\n  {rows}\n ]']) + "\n}\n"


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that operation/shape/provider must contain")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a dry run")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="folder of the result; bench/results where all cases are run")
    options = parser.parse_args(argv)
    result, before, begin = describe(options), busy_seconds(), perf_counter()
    cases = measure(options)
    elapsed, after = perf_counter() - begin, busy_seconds()
    if before is not None and after is not None:
        others = (after[0] - before[0]) - (after[1] - before[1])
        result["others_busy_cores"] = round(others / elapsed, 2)
    result["cases"] = cases
    print(cases_table(result))
    folder = options.output or (None if options.tiny or options.only else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{options.device}-{result['date'][:10]}.json"
        path.write_text(dump(result), encoding="utf-8")
        print(f"Written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
