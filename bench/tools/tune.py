"""Sweep the kernels' tables on the GPU at hand and write what is faster to a file.

python -m bench.tools.tune attention       # or rows, or linear: seven minutes each; needs a checkout, no installation
python -m bench.tools.tune attention --only "attention fwd"

Each 16-bit row of `kernels/tables.py` is tried with other blocks, warps and stages, on lengths and sizes that take it.
All candidates are compiled first, by all cores; one that spills a register, or does not fit, never runs. The fastest
takes the row's place if, timed in turns with it, it is faster by 2 %. The file is written after every row, so that an
interrupted sweep keeps what it has; `--resume` goes on with the rows for which the time did not suffice.

The file is `tuned.json` in bench/results, or where `--output` says. Copied to `kernels/tuned.json`, it changes every
kernel's launch: `make compiled` then compiles them with prefix_lens, too. Check and measure before and after.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch
from tqdm import tqdm

from bench.engine.environment import RESULTS, SOURCES, describe, digest
from bench.engine.results import write_whole
from bench.engine.timing import in_turns
from erniem_fast.kernels import configs
from erniem_fast.kernels.linear import launch_linear

from . import compile_kernels, pool
from .workloads import TUNED, fused_gelu_times, linears, run_all, workload

FILE = "tuned.json"
FUSED = "fused gelu"
"""Name of the last step of "linear": from how many rows on GELU goes into the epilogue."""
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


def all_of(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of values of the fields."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def attention_changes(kernel: str, tile: int) -> list[dict[str, Any]]:
    """Fields of an attention row that are tried; those that the table lacks are passed over."""
    if tile < 64:
        return all_of(num_warps=(4, 8), num_stages=(1, 2), heads_per_tile=(1, 2, 4), max_registers=(0, 128))
    if kernel == "bwd_single_tile":
        return all_of(num_warps=(4, 8), num_stages=(1, 2, 3), max_registers=(0, 128))
    if kernel == "bwd_dkdv":  # a program owns columns, all of a tile's or half of them; a cap only makes it spill
        whole = all_of(block_m=(16, 32, 64, 128), block_n=(tile,), num_warps=(4, 8), num_stages=(1, 2, 3))
        return whole + all_of(block_m=(32, 64), block_n=(tile // 2,), num_warps=(4,), num_stages=(1, 2, 3))
    return all_of(block_n=(16, 32, 64, 128), num_warps=(4, 8), num_stages=(1, 2, 3), max_registers=(0, 128))


def row_changes(kernel: str) -> list[dict[str, Any]]:
    """Fields of a row kernel's row that are tried: (block_m, num_warps) by the others."""
    rows = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4), (2, 4), (4, 4), (8, 4), (1, 8), (4, 8), (8, 8)]
    if not kernel.startswith("activation") and kernel.endswith("bwd"):  # more rows than warps spill
        rows = [(m, warps) for m, warps in rows if m <= warps]
    blocks = {"block_n": (256, 512, 1024, 2048)} if kernel.startswith("activation") else {}
    programs = {"max_programs": (264, 528, 1056), "num_stages": (1, 2, 3)} if kernel.endswith("bwd") else {}
    return [{"block_m": m, "num_warps": warps} | more for m, warps in rows for more in all_of(**blocks, **programs)]


def linear_changes() -> list[dict[str, Any]]:
    """Fields of a linear row that are tried: (block_m, block_n) by the others."""
    tiles = ((64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
    more = all_of(block_k=(32, 64), num_warps=(4, 8), num_stages=(3, 4, 5), flatten=(True, False), programs=(1, 2))
    halves = all_of(
        block_m=(128,), block_n=(256,), num_warps=(8,), num_stages=(3, 4), flatten=(True, False), parts=(2,)
    )
    return [{"block_m": m, "block_n": n} | change for (m, n), change in product(tiles, more)] + halves


def candidates(entry: Entry, row: Any) -> list[Any]:
    """Rows that are tried in place of a row; the row itself is the first."""
    changes = {
        "attention": lambda: attention_changes(entry[1], entry[3]),
        "rows": lambda: row_changes(entry[1]),
        "linear": linear_changes,
    }[entry[0]]()
    names = {field.name for field in fields(row)}
    tried = [replace(row, **{name: change[name] for name in change if name in names}) for change in changes]
    return list(dict.fromkeys([row, *tried]))


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
    fields_of = (case.launch, case.size, case.dropout, case.prefix or case.causal, tile)
    return fields_of == ("attention", HEAD_DIM, entry[4], False, entry[3])  # with prefix_lens: by `make compiled`, last


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
    done = pool.in_time(_is_sound, [(trial, architecture) for trial in trials], seconds)
    return {trial for trial, good in done if good}


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
    write: Callable[[str], None],
    is_over: Callable[[], bool],
) -> list[str]:
    """Time the sound candidates, entry by entry, and put the fastest into `configs.TUNED`.

    Args:
        write: writes the rows so far; it is given the entry that has been tried.

    Returns:
        Names of the entries that were left out.
    """
    left_out = []
    for entry in tqdm(chosen, desc="timing", unit="row", mininterval=10):
        rows = [row for row in trials[entry] if Trial(entry, row) in sound]
        if is_over() or trials[entry][0] not in rows:
            left_out.append(name_of(entry))
            continue
        best = fastest(rows, partial(times_of, entry))
        if best != trials[entry][0]:
            configs.TUNED.setdefault(architecture, {})[entry] = best
        write(name_of(entry))
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


def names_of(part: str) -> set[str]:
    """Names of what a part tries."""
    return {name_of(entry) for entry in entries() if entry[0] == part} | ({FUSED} if part == "linear" else set())


def tried_in(path: Path) -> set[str]:
    """Names of what a file's sweeps have tried with these sources."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name for one in content.values() if one.get("sources") == digest(*SOURCES) for name in one["tried"]}


def write_tuned(path: Path, architecture: str, about: dict[str, Any], name: str) -> None:
    """Write the tuned rows of an architecture, and the name of what was tried; those of others, and before, stay."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tried = {"tried": sorted({*tried_in(path), name}), "fused_gelu": configs.FUSED_GELU.get(architecture)}
    rows = [[list(entry), asdict(row)] for entry, row in configs.TUNED.get(architecture, {}).items()]
    content[architecture] = about | tried | {"rows": rows}
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
    parser.add_argument("part", choices=tuple(TUNED))
    parser.add_argument("--only", default="", help="begin of the rows' names; all")
    parser.add_argument("--seconds", type=float, help="seconds that it may take")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"folder of {FILE}")
    parser.add_argument("--resume", action="store_true", help=f"go on with the output's {FILE}")
    options = parser.parse_args(argv)
    chosen = [entry for entry in entries() if entry[0] == options.part and name_of(entry).startswith(options.only)]
    if not chosen:
        print(f"--only must begin the name of a row, one of {', '.join(map(name_of, entries()))}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, nothing was tuned")
        return 0
    seconds = options.seconds or TUNED[options.part]
    end, device, path = monotonic() + seconds, torch.device("cuda"), options.output / FILE
    architecture, about = configs.architecture(device), describe("cuda")
    tried = tried_in(path)
    if tried:
        configs.load_tuned(path)
    left = names_of(options.part) - (tried if options.resume else set())
    chosen = [entry for entry in chosen if name_of(entry) in left]
    write = partial(write_tuned, path, architecture, about)
    trials = {entry: candidates(entry, present(entry, device)) for entry in chosen}
    jobs = [Trial(entry, row) for entry, rows in trials.items() for row in rows]
    sound = compile_trials(jobs, architecture, COMPILING * seconds)
    print(f"{len(sound)} of {len(jobs)} candidates compile without fault, or in time")
    times_of = partial(time_candidates, architecture=architecture)
    left_out = tune(architecture, chosen, sound, trials, times_of, write, lambda: monotonic() > end)
    if options.part == "linear" and FUSED in left and not options.only and monotonic() < end:
        least = rows_from_which(fused_gelu_times("cuda"))
        configs.FUSED_GELU.pop(architecture, None)
        if least is not None:
            configs.FUSED_GELU[architecture] = least
        write(FUSED)
    for entry, row in configs.TUNED.get(architecture, {}).items():
        print(f"{name_of(entry)}: {row}")
    print(f"linear1 takes GELU into its epilogue from {configs.FUSED_GELU.get(architecture)} rows on; see {path}")
    if left_out:
        print(f"Left out, for want of time or of a present row without fault: {', '.join(left_out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
