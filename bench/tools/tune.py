"""Sweep the kernels' tables on the GPU at hand and write what is faster to kernels/tuned.json.

python -m bench.tools.tune                         # about seven minutes; needs a checkout, no installation
python -m bench.tools.tune --only "attention fwd"

Each 16-bit row of `kernels/tables.py` is tried with other blocks, warps and stages, on lengths and sizes that take it.
All candidates are compiled first, by all cores; one that spills a register, or does not fit, never runs. The fastest
takes the row's place if, timed in turns with it, it is faster by 2 %. The file is written after every row, so that an
interrupted sweep keeps what it has; rows for which the time did not suffice stay as they are, and are named.

Check and measure before, commit the file, and check and measure again: it changes every kernel's launch.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch
from tqdm import tqdm

from bench.engine.environment import describe
from bench.engine.results import write_whole
from bench.engine.timing import in_turns
from erniem_fast.kernels import configs
from erniem_fast.kernels.linear import launch_linear

from . import compile_kernels
from .workloads import fused_gelu_times, linears, run_all, workload

SECONDS = 420.0
COMPILING = 0.6
"""Share of the time that compiling may take."""
SECONDS_A_ROW = 1.5
"""Seconds of timing a row's candidates, about."""
GAIN = 0.98
"""Greatest share of the present row's time that a candidate may take."""
DTYPE, BITS, HEAD_DIM = "bfloat16", 16, 64
Entry = tuple[Any, ...]
"""Name of a row, as `configs.Entry`."""


@dataclass(frozen=True)
class Trial:
    """A candidate in the place of a row of the tables."""

    entry: Entry
    row: Any


def name_of(entry: Entry) -> str:
    """Name of a row, such as "attention fwd 16x64 64 dropout"."""
    flags = {"attention": "dropout", "rows": "wide", "linear": "gelu"}
    words = [str(part) for part in entry if not isinstance(part, bool)]
    return " ".join(words + [flags[entry[0]]] * (entry[-1] is True))


def entries() -> Iterator[Entry]:
    """The rows that are tuned, the most important first."""
    tiles = {"fwd": (64, 128, 32, 16), "bwd_single_tile": (64, 32, 16), "bwd_dq": (128, 64), "bwd_dkdv": (128, 64)}
    for kernel, of_kernel in tiles.items():
        for tile, dropout in product(of_kernel, (False, True)):
            yield "attention", kernel, f"{BITS}x{HEAD_DIM}", tile, dropout
    yield from (("linear", BITS, False), ("linear", BITS, True))
    for operation, wide in (("layer_norm", False), ("activation", True), ("embedding", False)):
        for direction in ("fwd", "bwd"):
            yield "rows", f"{operation}_{direction}", wide


def present(entry: Entry, device: torch.device) -> Any:
    """The row as it is now."""
    dtype = getattr(torch, DTYPE)
    if entry[0] == "attention":
        _, kernel, _, tile, dropout = entry
        return configs.attention_config(kernel, device, tile, dtype, HEAD_DIM, dropout)
    if entry[0] == "rows":
        return configs.row_config(entry[1], device, 4096 if entry[2] else 768)
    return configs.linear_config(device, dtype, entry[2])


def candidates(entry: Entry, row: Any) -> list[Any]:
    """Rows that are tried in place of a row; the row itself is the first."""
    changes: Iterable[dict[str, int]]
    if entry[0] == "attention":
        kernel, tile = entry[1], entry[3]
        if tile < 64:
            changes = [
                {"num_warps": warps, "num_stages": stages, "heads_per_tile": heads}
                for warps, stages, heads in product((4, 8), (1, 2), (1, 2, 4))
            ]
        else:
            # The side that a program owns is the tile's; the other one is walked through in steps.
            step = "block_m" if kernel == "bwd_dkdv" else "block_n"
            blocks: tuple[int, ...] = (getattr(row, step),) if kernel == "bwd_single_tile" else (16, 32, 64, 128)
            changes = [
                {step: block, "num_warps": warps, "num_stages": stages}
                for block, warps, stages in product(blocks, (4, 8), (1, 2, 3))
            ]
    elif entry[0] == "rows":
        backward = entry[1].endswith("bwd")
        programs, stages = ((528, 1056), (1, 3)) if backward else ((row.max_programs,), (row.num_stages,))
        blocks = (512, 1024, 2048) if entry[1].startswith("activation") else (row.block_n,)
        changes = [
            {"block_m": rows, "num_warps": warps, "max_programs": most, "block_n": block, "num_stages": depth}
            for rows, warps, most, block, depth in product((1, 2, 4, 8), (2, 4, 8), programs, blocks, stages)
            if rows * (block or 1024) <= 8192
        ]
    else:
        sizes = ((64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
        changes = [
            {"block_m": rows, "block_n": columns, "block_k": step, "num_warps": warps, "num_stages": stages}
            for (rows, columns), step, warps, stages in product(sizes, (32, 64), (4, 8), (3, 4, 5))
        ]
    return list(dict.fromkeys([row, *(replace(row, **change) for change in changes)]))


def kernel_of(entry: Entry) -> str:
    """Name of the kernel that is launched with a row."""
    stem = {"attention": f"attn_{entry[1]}", "rows": entry[1], "linear": "linear_fwd"}[entry[0]]
    return f"{stem}_kernel"


def is_of(entry: Entry, case: compile_kernels.CompileCase) -> bool:
    """True if a case launches the kernel of an entry with its row."""
    if entry[0] == "linear":
        return False  # see `launch_linears`
    if entry[0] == "rows":
        launch = entry[1].rpartition("_")[0]
        return case.launch.partition(",")[0] == launch and (case.size > 1024) == entry[2]
    tile = compile_kernels.ATTENTION_TILES[case.option][0]
    return (case.launch, case.size, case.dropout, tile) == ("attention", HEAD_DIM, entry[4], entry[3])


def launch_linears(gelu: bool) -> None:
    """The model's linear layers, without data."""
    empty, dtype = compile_kernels.empty, getattr(torch, DTYPE)
    for size, out in linears(gelu):
        x, weight, bias = (empty(*shape, dtype=dtype) for shape in ((4096, size), (out, size), (out,)))
        launch_linear(x, weight, bias, "gelu" if gelu else None)


def is_sound(trial: Trial, architecture: str) -> bool:
    """True if all launches with a candidate compile without a fault. Fills triton's cache."""
    sound = True

    def record(kernel: Any, options: dict[str, Any], make: Callable[[], Any]) -> None:
        nonlocal sound
        name = kernel.fn.__name__.strip("_")
        if sound and name == kernel_of(trial.entry):
            stages = options.get("num_stages", 0)
            launch = compile_kernels.Launch(architecture, DTYPE, name, "", options["num_warps"], stages)
            sound = not compile_kernels.faults(compile_kernels.inspect(launch, make()))

    configs.TUNED[architecture] = configs.TUNED.get(architecture, {}) | {trial.entry: trial.row}
    try:
        if trial.entry[0] == "linear":
            with compile_kernels.launching(architecture, record):
                launch_linears(trial.entry[2])
        for case in compile_kernels.cases([architecture], [DTYPE]):
            if is_of(trial.entry, case):
                compile_kernels.call(case, record)
    except Exception:  # a candidate that the compiler refuses is of no use
        return False
    finally:
        del configs.TUNED[architecture][trial.entry]
    return sound


def _is_sound(job: tuple[Trial, str]) -> tuple[Trial, bool]:
    return job[0], is_sound(*job)


def compile_trials(trials: list[Trial], architecture: str, seconds: float) -> set[Trial]:
    """Trials without fault, of as many as the time suffices for; by all cores."""
    end, sound = monotonic() + seconds, set()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        done = pool.imap(_is_sound, [(trial, architecture) for trial in trials])
        for _ in tqdm(trials, desc="compiling", unit="row"):
            try:
                trial, good = done.next(max(end - monotonic(), 0.01))
            except multiprocessing.TimeoutError:
                break
            if good:
                sound.add(trial)
    return sound


def fastest(rows: list[Any], times_of: Callable[[list[Any]], dict[Any, float]]) -> Any:
    """The first row, unless another is faster by GAIN, also when the two are timed again.

    Args:
        rows: candidates.
        times_of: seconds of some of them, taken in turns; those that cannot run are missing.
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
    is_over: Callable[[], bool],
) -> list[str]:
    """Time the sound candidates, entry by entry, and put the fastest into `configs.TUNED`.

    Returns:
        Names of the entries that were left out.
    """
    left_out = []
    for entry in tqdm(chosen, desc="timing", unit="row"):
        rows = [row for row in trials[entry] if Trial(entry, row) in sound]
        if is_over() or trials[entry][0] not in rows:
            left_out.append(name_of(entry))
            continue
        best = fastest(rows, partial(times_of, entry))
        if best != trials[entry][0]:
            configs.TUNED.setdefault(architecture, {})[entry] = best
            write()
    return left_out


def time_candidates(entry: Entry, rows: list[Any], architecture: str) -> dict[Any, float]:
    """Seconds of a row's candidates on the GPU, taken in turns; those that cannot run are missing."""
    tuned, calls = configs.TUNED.setdefault(architecture, {}), workload(entry, "cuda")
    before, names = dict(tuned), {str(index): row for index, row in enumerate(rows)}

    def run(row: Any) -> None:
        tuned[entry] = row
        run_all(calls)

    try:
        times, failures = in_turns({name: partial(run, row) for name, row in names.items()}, "cuda", SECONDS_A_ROW)
    finally:
        tuned.clear()
        tuned.update(before)
    for name, message in failures.items():
        print(f"{name_of(entry)}: {names[name]} failed: {message}")
    return {names[name]: median(taken.device_s) for name, taken in times.items()}


def write_tuned(path: Path, architecture: str, about: dict[str, Any]) -> None:
    """Write the tuned rows of an architecture; those of others stay."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = [[list(entry), asdict(row)] for entry, row in configs.TUNED.get(architecture, {}).items()]
    content[architecture] = about | {"fused_gelu": configs.FUSED_GELU.get(architecture), "rows": rows}
    write_whole(path, json.dumps(content, indent=1) + "\n")


def rows_from_which(pairs: list[tuple[int, float, float]]) -> int | None:
    """Least number of rows from which the first of two ways is faster by GAIN at every larger number, too.

    Args:
        pairs: (rows, seconds, seconds of the other way).
    """
    least = None
    for rows, one, two in sorted(pairs, reverse=True):
        if one > GAIN * two:
            break
        least = rows
    return least


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="begin of the rows' names; all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds that it may take")
    parser.add_argument("--output", type=Path, default=configs.TUNED_FILE, help="file that is written")
    options = parser.parse_args(argv)
    chosen = [entry for entry in entries() if name_of(entry).startswith(options.only)]
    if not chosen:
        print(f"--only must begin the name of a row, such as {name_of(next(entries()))!r}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, nothing was tuned")
        return 0
    end, device = monotonic() + options.seconds, torch.device("cuda")
    architecture, about = configs.architecture(device), describe("cuda")
    trials = {entry: candidates(entry, present(entry, device)) for entry in chosen}
    jobs = [Trial(entry, row) for entry, rows in trials.items() for row in rows]
    sound = compile_trials(jobs, architecture, COMPILING * options.seconds)
    print(f"{len(sound)} of {len(jobs)} candidates compile without fault, or in time")
    write = partial(write_tuned, options.output, architecture, about)
    times_of = partial(time_candidates, architecture=architecture)
    left_out = tune(architecture, chosen, sound, trials, times_of, write, lambda: monotonic() > end)
    if not options.only and monotonic() < end:
        least = rows_from_which(fused_gelu_times("cuda"))
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
