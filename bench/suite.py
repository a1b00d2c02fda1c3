"""The suite: its cases in order of importance, and how a process measures a part of them.

A part's results are written after every case. Cases that no longer fit into the time are listed as left out, and
`--resume` goes on with them. A case that breaks the CUDA context, or hangs, is the last of its process; another one
goes on behind it. Every figure's result has been compared with the oracle in the same run. `bench/results/README.md`
says what the fields mean.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import models, ops, serving
from .engine.environment import RESULTS, describe, device_name
from .engine.loop import LostContextError, run
from .engine.registry import CPU_PARTS, Benchmark, Case, is_module, load_providers
from .engine.results import ResultFile, carry
from .engine.shapes import BOTH, Setting
from .ops.inputs import DROPOUT_P, GPU_SHAPES
from .report.goals import needed

BENCHMARKS: dict[str, tuple[Benchmark, ...]] = {
    "cpu": (*models.BENCHMARKS, *ops.BENCHMARKS),
    "families": models.FAMILIES,
    "serving": serving.BENCHMARKS,
    "smoke": ops.BENCHMARKS,
    "kernels": ops.BENCHMARKS,
    "models": (*models.ON_GPUS, *serving.ON_GPUS),
}
"""Benchmarks of each part; those of a CPU measure in float32, serving in bfloat16, too; those of a GPU in 16 bits."""
SECONDS = {"cpu": 900.0, "families": 1200.0, "serving": 1200.0, "smoke": 60.0, "kernels": 420.0, "models": 420.0}
"""Seconds after which no case of a part is begun."""
OUR_PROVIDERS = ("erniem_fast", "padding-free", "all")
"""Begins of the names of providers whose failure is this project's."""
LOST = 75
"""Exit code after a lost CUDA context."""
NO_CASE = "--only matches the name of no case; one is attention/512-64k/2x768/bfloat16/forward/dropout 0"
TINY_VARIANTS = 4


def cases(part: str, device: str, tiny: bool) -> list[Case]:
    """Cases of a part, the most important first.

    First come one case of every operation, then those that a goal needs; within each group, and after them, the order
    is that of the shapes' priorities, then as they are listed.
    """
    if part == "smoke":
        return list(_smoke_cases(device, tiny))
    if tiny:
        return list(_tiny_cases(part, device))
    found, asked = [], needed(part)
    for benchmark in BENCHMARKS[part]:
        variants = benchmark.variants[:1] if part == "cpu" else benchmark.variants
        for shape in benchmark.shapes:
            for dtype, priority in shape.priority.items():
                if part == "serving" or (dtype == torch.float32) == (part in CPU_PARTS):
                    chosen = [Case(part, benchmark, shape, Setting(device, dtype, *variant)) for variant in variants]
                    found += [(_rank(case, asked), priority, case) for case in chosen]
    return [case for *_, case in sorted(found, key=lambda one: one[:2])]


def _rank(case: Case, asked: list[dict[str, Any]]) -> int:
    first = case.benchmark.shapes[0], case.benchmark.variants[0]
    if case.part == "kernels" and (case.shape, (case.setting.passes, case.setting.dropout_p)) == first:
        return 0
    fields = case.fields
    return 1 if any(all(fields.get(key, value) == value for key, value in one.items()) for one in asked) else 2


def _smoke_cases(device: str, tiny: bool) -> Iterator[Case]:
    for benchmark in BENCHMARKS["smoke"]:
        passes, p = (BOTH, DROPOUT_P) if (BOTH, DROPOUT_P) in benchmark.variants else benchmark.variants[0]
        shape = benchmark.tiny[0] if tiny else GPU_SHAPES[1]
        yield Case("smoke", benchmark, shape, Setting(device, _dtype(device), passes, p, tiny))


def _tiny_cases(part: str, device: str) -> Iterator[Case]:
    setting = Setting(device, torch.float32 if part in CPU_PARTS else _dtype(device), tiny=True)
    if part == "models":
        setting = replace(setting, dtype=torch.bfloat16)
    for benchmark in BENCHMARKS[part]:
        if part == "cpu" and not any(torch.float32 in shape.priority for shape in benchmark.shapes):
            continue
        for shape in benchmark.tiny:
            variants = benchmark.variants[: 1 if part == "cpu" or shape is not benchmark.tiny[0] else TINY_VARIANTS]
            for passes, p in variants:
                yield Case(part, benchmark, shape, replace(setting, passes=passes, dropout_p=p))


def _dtype(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def matching(part: str, options: argparse.Namespace) -> list[Case]:
    """Cases that `--only` names."""
    device = "cpu" if part in CPU_PARTS or not torch.cuda.is_available() else "cuda"
    return [case for case in cases(part, device, options.tiny) if re.search(options.only, case.name)]


def measure(part: str, options: argparse.Namespace) -> int:
    """Measure a part in this process; the exit code."""
    load_providers(options.provider)
    chosen = matching(part, options)
    if not chosen:
        print(NO_CASE, file=sys.stderr)
        return 2
    about = {"suite": part, "tiny": options.tiny, "providers": options.provider, "only": options.only}
    about |= describe(chosen[0].setting.device)
    if part == "serving":
        further = serving.describe()
        about |= further | {"versions": about["versions"] | further["versions"]}
    file = _file(part, options, about)
    if file is None:
        return 1
    lost = False
    if not file.content["runs"] or not file.is_whole:
        try:
            run(file, chosen, SECONDS[part] if options.seconds is None else options.seconds, options.tiny)
        except LostContextError as error:
            lost = True
            print(error)
    failed, content = file.content["failed"], file.content
    left = len(content["left_out"])
    print(f"{len(content['rows'])} figures, {len(failed)} failures, {left} cases left out: {file.path}", flush=True)
    if lost and left:
        return LOST
    return int(is_wrong(content))


def is_wrong(content: dict[str, Any]) -> bool:
    """True if a result file names a failure of this project's."""
    return any(failure["provider"].startswith(OUR_PROVIDERS) for failure in content["failed"])


def _file(part: str, options: argparse.Namespace, about: dict[str, Any]) -> ResultFile | None:
    """The file that the results go to, or None where that of `--resume` cannot be gone on with."""
    folder, prefix = output_of(options), part if part in CPU_PARTS else f"gpu-{part}-{device_name(about)}"
    before = ResultFile.newest(folder, prefix) if options.resume else None
    differences = [] if before is None else before.differences(about)
    if before is not None and differences:
        print(f"{before.path} cannot be gone on with: {', '.join(differences)} differ", file=sys.stderr)
        return None
    return before or ResultFile.new(folder / f"{prefix}-{about['date'][:10]}.json", about)


def output_of(options: argparse.Namespace) -> Path:
    """Folder of the results, with those of `--resume`; what is partial or a dry run must not lie among the results."""
    if options.output is None:
        partial = options.tiny or options.only
        options.output = Path(tempfile.mkdtemp(prefix="bench-")) if partial else RESULTS
    if isinstance(options.resume, Path):
        try:
            carry(options.resume, options.output)
        except FileNotFoundError as error:
            raise SystemExit(str(error)) from error
        options.resume = True
    return Path(options.output)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that all doors take."""
    parser.add_argument(
        "--output", type=Path, help="folder of the results; bench/results, or a temporary one for --only and --tiny"
    )
    parser.add_argument("--only", type=_regex, default="", metavar="REGEX", help="measure cases whose names match")
    parser.add_argument("--seconds", type=float, help="seconds after which no case of a part is begun")
    parser.add_argument(
        "--resume", type=Path, nargs="?", const=True, metavar="DIR",
        help="go on with the newest file of this folder, or of the results, if of the same device and sources",
    )  # fmt: skip
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
