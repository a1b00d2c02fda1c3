"""Sweeps the kernels' tables on the GPU at hand and writes what is faster to kernels/tuned.json.

    python -m bench.tune                         # about seven minutes; needs a checkout, no installation
    python -m bench.tune --only "attention forward"

Each row of `kernels/configs.py` for 16 bits is tried with other blocks, warps and stages, on lengths and sizes that
take it. All candidates are compiled first, by all cores; one that spills a register, or does not fit, never runs. The
fastest takes the row's place if, timed in turns with it, it is faster by 2 %. What was found is written after every
row, so that an interrupted sweep keeps it; rows that the time did not suffice for stay as they are, and are named.

Check and measure before, commit the file, and check and measure again: it changes what every kernel is launched with.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from tqdm import tqdm

from . import compiled
from .run import git
from .timing import in_turns
from .tune_cases import linears, workload

SECONDS = 420
COMPILING = 0.6
"""Share of the time that compiling may take."""
SECONDS_A_ROW = 1.5
"""Of timing its candidates, about."""
GAIN = 0.98
"""A candidate must take at most this share of the present row's time."""
DTYPE = "bfloat16"
KERNELS = {
    "forward": "attention_forward forward", "in_one": "attention_backward backward_in_one",
    "rows": "attention_backward backward_rows", "columns": "attention_backward backward_columns",
    "layer_norm_forward": "layer_norm forward", "layer_norm_backward": "layer_norm backward",
    "embedding_forward": "embedding forward", "embedding_backward": "embedding backward",
    "gelu_forward": "activation forward", "gelu_backward": "activation backward",
}  # fmt: skip
"""Names of the report of compiled kernels."""
Entry = tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """A row of the tables with a candidate in its place."""

    entry: Entry
    row: Any


def name_of(entry: Entry) -> str:
    """Such as "attention forward 16x64 64 dropout"."""
    flags = {"attention": "dropout", "rows": "wide", "linear": "gelu"}
    words = [str(part) for part in entry if not isinstance(part, bool)]
    return " ".join(words + [flags[entry[0]]] * (entry[-1] is True))


def entries() -> Iterator[Entry]:
    """The rows that are tuned, the most important before all."""
    tiles = {"forward": (64, 128, 32, 16), "in_one": (64, 32, 16), "rows": (128, 64), "columns": (128, 64)}
    for kernel, of_kernel in tiles.items():
        for tile, dropout in product(of_kernel, (False, True)):
            yield "attention", kernel, "16x64", tile, dropout
    yield from (("linear", 16, False), ("linear", 16, True))
    for kernel in ("layer_norm_forward", "layer_norm_backward"):
        yield "rows", kernel, False
    for kernel in ("gelu_forward", "gelu_backward"):
        yield "rows", kernel, True
    for kernel in ("embedding_forward", "embedding_backward"):
        yield "rows", kernel, False


def present(entry: Entry, device: torch.device) -> Any:
    """The row as it is now."""
    from erniem_fast.kernels import configs

    dtype = getattr(torch, DTYPE)
    if entry[0] == "attention":
        _, kernel, _, tile, dropout = entry
        return configs.attention_config(kernel, device, tile, dtype, 64, dropout)
    if entry[0] == "rows":
        return configs.row_config(entry[1], device, 4096 if entry[2] else 768)
    return configs.linear_config(device, dtype, entry[2])


def candidates(entry: Entry, row: Any) -> list[Any]:
    """What is tried in place of a row; the row itself is the first."""
    changes: Iterable[dict[str, int]]
    if entry[0] == "attention":
        kernel, tile = entry[1], entry[3]
        if tile < 64:
            changes = [
                {"block": tile, "warps": warps, "stages": stages, "heads": heads}
                for warps, stages, heads in product((4, 8), (1, 2), (1, 2, 4))
            ]
        else:
            blocks = [block for block in (16, 32, 64, 128) if kernel != "in_one" or block == min(tile, 64)]
            changes = [
                {"block": block, "warps": warps, "stages": stages}
                for block, warps, stages in product(blocks, (4, 8), (1, 2, 3))
            ]
    elif entry[0] == "rows":
        backward = entry[1].endswith("backward")
        programs, stages = ((528, 1056), (1, 3)) if backward else ((row.programs,), (row.stages,))
        blocks = [512, 1024, 2048] if entry[1].startswith("gelu") else [row.block]
        changes = [
            {"rows": rows, "warps": warps, "programs": number, "block": block, "stages": depth}
            for rows, warps, number, block, depth in product((1, 2, 4, 8), (2, 4, 8), programs, blocks, stages)
            if rows * (block or 1024) <= 8192
        ]
    else:
        sizes = ((64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
        changes = [
            {"rows": rows, "columns": columns, "step": step, "warps": warps, "stages": stages}
            for (rows, columns), step, warps, stages in product(sizes, (32, 64), (4, 8), (3, 4, 5))
        ]
    return list(dict.fromkeys([row, *(replace(row, **change) for change in changes)]))


def is_of(entry: Entry, case: compiled.Case) -> bool:
    """Whether a case of the report launches the kernel of an entry with its row."""
    if entry[0] == "linear":
        return False  # see `launch_linears`
    if entry[0] == "rows":
        launch = entry[1].rpartition("_")[0]
        return case.launch.partition(",")[0] == launch and (case.size > 1024) == entry[2]
    _, _, _, tile, dropout = entry
    return (
        case.launch == "attention"
        and case.size == 64
        and case.dropout == dropout
        and compiled.ATTENTION_TILES[case.option][0] == tile
    )


def launch_linears(gelu: bool) -> None:
    """What the model would launch: without data, to be recorded."""
    from erniem_fast.kernels import linear

    dtype = getattr(torch, DTYPE)
    for size, out in linears(gelu):
        x, weight, bias = (compiled.empty(*shape, dtype=dtype) for shape in ((4096, size), (out, size), (out,)))
        linear.launch_linear(x, weight, bias, gelu)


def is_sound(trial: Trial, architecture: str) -> bool:
    """Whether all that would be launched with a candidate compiles without a fault. Fills triton's cache."""
    from erniem_fast.kernels import configs

    sound = True

    def record(kernel: Any, options: dict[str, Any], compile_it: Callable[[], Any]) -> None:
        nonlocal sound
        name, kinds = compiled.kernel_name(kernel), (KERNELS.get(trial.entry[1]), "linear linear")
        if sound and name in kinds:
            launch = compiled.Launch(architecture, DTYPE, name, "", options["num_warps"], options.get("num_stages", 0))
            sound = not compiled.faults(compiled.inspect(launch, compile_it()))

    configs.TUNED[architecture] = configs.TUNED.get(architecture, {}) | {trial.entry: trial.row}
    try:
        if trial.entry[0] == "linear":
            with compiled.launching(architecture, record):
                launch_linears(trial.entry[2])
        for case in compiled.cases([architecture], [DTYPE]):
            if is_of(trial.entry, case):
                compiled.call(case, record)
    except Exception:  # whatever the compiler stumbles over, the candidate is of no use
        return False
    finally:
        del configs.TUNED[architecture][trial.entry]
    return sound


def _is_sound(job: tuple[Trial, str]) -> tuple[Trial, bool]:
    return job[0], is_sound(*job)


def compile_trials(trials: list[Trial], architecture: str, seconds: float) -> set[Trial]:
    """Those without fault, of as many as the time suffices for; by all cores."""
    end, sound = time.monotonic() + seconds, set()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        done = pool.imap(_is_sound, [(trial, architecture) for trial in trials])
        for _ in tqdm(trials, desc="compiling", unit="row"):
            try:
                trial, good = done.next(max(end - time.monotonic(), 0.01))
            except multiprocessing.TimeoutError:
                break
            if good:
                sound.add(trial)
    return sound


def fastest(rows: list[Any], times_of: Callable[[list[Any]], dict[Any, float]]) -> Any:
    """The first row, unless another is faster by GAIN, also when the two are timed again.

    Args:
        rows: candidates.
        times_of: seconds of some of them, taken in turns; those that can't run are missing.
    """
    first, times = rows[0], times_of(rows)
    best = min(times, key=times.__getitem__, default=first)
    if best == first or first not in times:
        return first
    again = times_of([first, best])
    return best if again.get(best, float("inf")) <= GAIN * again.get(first, 0.0) else first


def tune(
    architecture: str,
    chosen: list[Entry],
    sound: set[Trial],
    trials: dict[Entry, list[Any]],
    times_of: Callable[[Entry, list[Any]], dict[Any, float]],
    write: Callable[[], None],
    end: float,
) -> list[str]:
    """Times what compiled, entry by entry, and puts the fastest into `configs.TUNED`. Returns what was left out."""
    from erniem_fast.kernels import configs

    left_out = []
    for entry in tqdm(chosen, desc="timing", unit="row"):
        rows = [row for row in trials[entry] if Trial(entry, row) in sound]
        if time.monotonic() > end or trials[entry][0] not in rows:
            left_out.append(name_of(entry))
            continue
        best = fastest(rows, partial(times_of, entry))
        if best != trials[entry][0]:
            configs.TUNED.setdefault(architecture, {})[entry] = best
            write()
    return left_out


def write_tuned(path: Path, architecture: str, about: dict[str, Any]) -> None:
    """The tuned rows of an architecture; those of others stay."""
    from erniem_fast.kernels import configs

    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = [[list(entry), asdict(row)] for entry, row in configs.TUNED.get(architecture, {}).items()]
    content[architecture] = about | {"fused_gelu": configs.FUSED_GELU.get(architecture), "rows": rows}
    text = json.dumps(content, indent=1) + "\n"
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def rows_from_which(pairs: list[tuple[int, float, float]]) -> int | None:
    """The least number of rows from which the first of two ways is faster by GAIN at every larger number, too.

    Args:
        pairs: (rows, seconds, seconds of the other way).
    """
    least = None
    for rows, one, two in sorted(pairs, reverse=True):
        if one > GAIN * two:
            break
        least = rows
    return least


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="begin of the rows' names; all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that it may take")
    parser.add_argument("--output", type=Path, help="file that is written; kernels/tuned.json")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, nothing was tuned")
        return 0
    from erniem_fast.kernels import configs

    from .tune_cases import fused_gelu_times

    begin, device = time.monotonic(), torch.device("cuda")
    end, architecture = begin + options.seconds, configs.architecture(device)
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
    }
    chosen = [entry for entry in entries() if name_of(entry).startswith(options.only)]
    if not chosen:
        print(f"--only must begin the name of a row, such as {name_of(next(entries()))!r}", file=sys.stderr)
        return 2
    trials = {entry: candidates(entry, present(entry, device)) for entry in chosen}
    jobs = [Trial(entry, row) for entry, rows in trials.items() for row in rows]
    sound = compile_trials(jobs, architecture, COMPILING * options.seconds)
    print(f"{len(sound)} of {len(jobs)} candidates compile without fault, or in time")

    def times_of(entry: Entry, rows: list[Any]) -> dict[Any, float]:
        tuned, run = configs.TUNED.setdefault(architecture, {}), workload(entry, device)
        before = dict(tuned)

        def with_row(row: Any) -> None:
            tuned[entry] = row
            run()

        names = {str(place): row for place, row in enumerate(rows)}
        try:
            runs = {name: partial(with_row, row) for name, row in names.items()}
            times, failures = in_turns(runs, "cuda", SECONDS_A_ROW)
        finally:
            tuned.clear()
            tuned.update(before)
        for name, message in failures.items():
            print(f"{name_of(entry)}: {names[name]} failed: {message}")
        return {names[name]: median(taken.device_s) for name, taken in times.items()}

    def write() -> None:
        write_tuned(options.output or configs.TUNED_FILE, architecture, about)

    left_out = tune(architecture, chosen, sound, trials, times_of, write, end)
    if not options.only and time.monotonic() < end:
        least = rows_from_which(fused_gelu_times(device))
        configs.FUSED_GELU.pop(architecture, None)
        if least is not None:
            configs.FUSED_GELU[architecture] = least
        write()
    for entry, row in configs.TUNED.get(architecture, {}).items():
        print(f"{name_of(entry)}: {row}")
    print(f"linear1 takes GELU into its epilogue from {configs.FUSED_GELU.get(architecture)} rows on")
    if left_out:
        print(f"Left out, for want of time or of a present row without fault: {', '.join(left_out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
