"""The suite: its cases in order of importance, and the command that measures them.

A part's results are written after every case. Cases that no longer fit into the time are listed as left out, and
`--resume` goes on with them. A case that breaks the CUDA context is the last of its process; another one goes on.
Every figure's result has been compared with the oracle in the same run. `bench/results/README.md` says what the fields
mean.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

import torch

from . import models, ops
from .engine.environment import RESULTS, describe
from .engine.loop import LostContextError, run
from .engine.registry import Benchmark, Case, is_module, load_providers
from .engine.results import ResultFile
from .engine.shapes import Setting

BENCHMARKS: dict[str, tuple[Benchmark, ...]] = {
    "cpu": (*models.BENCHMARKS, *ops.BENCHMARKS),
    "kernels": ops.BENCHMARKS,
    "models": models.BENCHMARKS,
}
"""Benchmarks of each part; "cpu" measures in float32, the parts of a GPU in 16 bits."""
SECONDS = {"cpu": 900.0, "kernels": 420.0, "models": 420.0}
"""Seconds after which no case of a part is begun."""
OUR_PROVIDERS = ("erniem_fast", "padding-free", "all")
"""Begins of the names of providers whose failure is this project's."""
TINY_VARIANTS = 4


def cases(part: str, device: str, tiny: bool) -> list[Case]:
    """Cases of a part, the most important first: by the priority of their shapes, then as they are listed."""
    if tiny:
        return list(_tiny_cases(part, device))
    found = []
    for benchmark in BENCHMARKS[part]:
        variants = benchmark.variants[:1] if part == "cpu" else benchmark.variants
        for shape in benchmark.shapes:
            for dtype, priority in shape.priority.items():
                if (dtype == torch.float32) == (part == "cpu"):
                    settings = [Setting(device, dtype, passes, p) for passes, p in variants]
                    found += [(priority, Case(part, benchmark, shape, setting)) for setting in settings]
    return [case for _, case in sorted(found, key=lambda one: one[0])]


def _tiny_cases(part: str, device: str) -> Iterator[Case]:
    setting = Setting(device, torch.float32 if part == "cpu" or device == "cpu" else torch.bfloat16, tiny=True)
    if part == "models":
        setting = replace(setting, dtype=torch.bfloat16)
    for benchmark in BENCHMARKS[part]:
        if part == "cpu" and not any(torch.float32 in shape.priority for shape in benchmark.shapes):
            continue
        for shape in benchmark.tiny:
            variants = benchmark.variants[: 1 if part == "cpu" or shape is not benchmark.tiny[0] else TINY_VARIANTS]
            for passes, p in variants:
                yield Case(part, benchmark, shape, replace(setting, passes=passes, dropout_p=p))


def main(part: str, options: argparse.Namespace) -> int:
    """Measure a part; the exit code."""
    device = "cpu" if part == "cpu" or not torch.cuda.is_available() else "cuda"
    if device == "cpu" and part != "cpu" and not options.tiny:
        print("SKIPPED: no CUDA device, nothing was measured")
        return 0
    load_providers(options.provider)
    about = {"suite": part, "tiny": options.tiny, "providers": options.provider, "only": options.only}
    about |= describe(device)
    begun, file = monotonic(), _file(part, options, about)
    if file is None:
        return 1
    chosen = [case for case in cases(part, device, options.tiny) if re.search(options.only, case.name)]
    seconds = SECONDS[part] if options.seconds is None else options.seconds
    try:
        run(file, chosen, seconds, options.tiny)
    except LostContextError as error:
        left, rest = len(file.content["left_out"]), seconds - (monotonic() - begun)
        print(f"{error}; {left} cases are left", flush=True)
        if left and rest > 0:
            os.execv(sys.executable, again(part, options, file.path.parent, rest))
    failed, content = file.content["failed"], file.content
    left = len(content["left_out"])
    print(f"{len(content['rows'])} figures, {len(failed)} failures, {left} cases left out: {file.path}")
    return int(any(failure["provider"].startswith(OUR_PROVIDERS) for failure in failed))


def _file(part: str, options: argparse.Namespace, about: dict[str, object]) -> ResultFile | None:
    """The file that the results go to, or None where there is nothing to resume."""
    partial = options.tiny or options.only  # its file must not lie among the results
    folder = options.output or (Path(tempfile.mkdtemp(prefix="bench-")) if partial else RESULTS)
    name = str(about["processor"]).lower().replace("nvidia ", "").replace(" ", "-")
    prefix = "cpu" if part == "cpu" else f"gpu-{part}-{name if about['device'] == 'cuda' else 'cpu'}"
    paths = sorted(folder.glob(f"{prefix}-????-??-??.json"))
    if not options.resume or not paths:
        return ResultFile.new(folder / f"{prefix}-{str(about['date'])[:10]}.json", about)
    before = ResultFile.read(paths[-1])
    if before.continues(about):
        return before
    print(f"{paths[-1]} is whole, or of other code or another machine: nothing to go on with", file=sys.stderr)
    return None


def again(part: str, options: argparse.Namespace, folder: Path, seconds: float) -> list[str]:
    """Command that goes on with the part in a fresh process."""
    door = ["bench.run"] if part == "cpu" else ["bench.gpu", part]
    command = [sys.executable, "-m", *door, "--resume", "--seconds", f"{seconds:.0f}", "--output", str(folder)]
    command += ["--only", options.only] if options.only else []
    for module in options.provider:
        command += ["--provider", module]
    return command + ["--tiny"] * options.tiny


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that both doors take."""
    parser.add_argument(
        "--output", type=Path, help="folder of the results; bench/results, or a temporary one for --only and --tiny"
    )
    parser.add_argument("--only", type=_regex, default="", metavar="REGEX", help="measure cases whose names match")
    parser.add_argument("--seconds", type=float, help="seconds after which no case of a part is begun")
    parser.add_argument("--resume", action="store_true", help="go on with the newest file of this device and commit")
    parser.add_argument(
        "--provider", type=_module, action="append", default=[], metavar="MODULE",
        help="module that registers providers; repeatable",
    )  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a dry run, on a CPU too")


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


def _module(name: str) -> str:
    if not is_module(name):
        raise argparse.ArgumentTypeError(
            f"there is no module {name!r}; expected a name to import, such as mine for mine.py in this folder"
        )
    return name
