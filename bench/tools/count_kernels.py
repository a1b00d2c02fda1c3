"""Count the machine code of the hot kernels on sm_90 (bfloat16, head_dim 64), and hold it against the committed table.

python -m bench.tools.count_kernels            # exits with 1 where a count is worse than the table, or a bar is missed
python -m bench.tools.count_kernels --write    # writes the table anew, bench/results/counts.md: a change on purpose

Kernels are compiled as `compile_kernels` does; no GPU has a part in it. Other versions of Triton make other code, so
the counts are those of one, and the command does nothing under another.
"""

import argparse
import functools
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from bench.engine.shapes import TWO_LAYERS
from bench.report.counts import COUNTS, LAUNCH, PIPES, Count, read, table
from bench.report.prediction import Model

from .compile_kernels import CHUNK, INTERMEDIATE, CompileCase, call, describe
from .machine_code import count, disassemble, instructions_of, parts_of, read_nvidia

TRITON = "3.7.1"
SLACK = 0.03
NOT_MORE = ("stack", "local", "f2f", "prmt", "bar")


def cases() -> Iterator[CompileCase]:
    """Calls whose kernels are counted."""
    case = functools.partial(CompileCase, "sm_90", "bfloat16")
    for option, dropout in product((4, 3, 2, 1), (False, True)):
        yield case("attention", 64, dropout, option)
    yield case("attention", 64, option=4, causal=True)
    for launch, dropout in product(("layer_norm", "embedding"), (False, True)):
        yield case(launch, 768, dropout)
        yield case(f"{launch}, unsaved", 768, dropout)
    yield case("activation", INTERMEDIATE)
    yield case("activation", INTERMEDIATE, True)
    yield case("linear, gelu", INTERMEDIATE)
    yield case("linear_cross_entropy", TWO_LAYERS.vocab_size)


def programs(registers: int, warps: int, shared: int) -> int:
    """Programs that a multiprocessor of sm_90 holds.

    It has 65,536 registers, given to a warp by 256, 64 warps, 32 programs, and 228 KiB of shared memory, of which a
    program takes 1 KiB for itself.
    """
    a_warp = -(-registers * 32 // 256) * 256
    return min(65536 // (a_warp * warps), 64 // warps, 32, 228 * 1024 // (shared + 1024))


def count_case(case: CompileCase) -> list[Count]:
    """The parts of all kernels that a case launches."""
    found: list[Count] = []

    def record(kernel: JITFunction, options: dict[str, Any], make: Any) -> None:
        launch, compiled = describe(case, kernel, options), make()
        text = disassemble(compiled.asm["cubin"])
        read_out, parts = read_nvidia(text), parts_of(instructions_of(text))
        block_m, block_n, chunks, heads = map(options.get, ("BLOCK_M", "BLOCK_N", "CHUNKS", "HEADS_PER_TILE"))
        block = (block_m or 0, (block_n or 0) * (chunks or 1), heads or 1, options["grid"][0], launch.warps)
        same = dict(zip(LAUNCH, block, strict=True)) | {name: read_out[name] for name in ("registers", "stack")}
        same["programs"] = programs(read_out["registers"], launch.warps, compiled.metadata.shared)
        for index, part in enumerate(parts, 1):
            name = f"loop {index}" if index < len(parts) else "outside"
            found.append(Count(launch.kernel, launch.case, name, same | count(part)))

    call(case, record)
    return found


def differences(counts: Sequence[Count], committed: Sequence[Count]) -> list[str]:
    """What is not as in the table, each on a line."""
    now, then = ({label(one): one for one in some} for some in (counts, committed))
    found = [f"{name}: not in the table" for name in now.keys() - then.keys()]
    found += [f"{name}: in the table, but not compiled" for name in then.keys() - now.keys()]
    for part in now.keys() & then.keys():
        for name in (*LAUNCH, *PIPES, "programs", *NOT_MORE):
            new, old = now[part][name], then[part][name]
            worse = new < old if name == "programs" else new > old if name in NOT_MORE else new != old
            if worse and not (name in PIPES and abs(new - old) <= SLACK * old):
                found.append(f"{part}: {name} {new}, the table has {old}")
    return sorted(found)


def label(one: Count) -> str:
    return f"{one.kernel}, {one.case}, {one.part}"


def faults(counts: Sequence[Count]) -> list[str]:
    """Faults that no table excuses, and bars that are missed."""
    found = [f"{label(one)}: F2F" for one in counts if one["f2f"]]
    found += [f"{label(one)}: local memory in a loop" for one in counts if one["local"] and one.part != "outside"]
    return found + [f"{bar.what}: {bar.value:.4g}, bar {bar.bar:g}" for bar in Model(counts).bars() if not bar.met]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table anew")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args(argv)
    if triton.__version__ != TRITON:
        print(f"Skipped: counts are made by triton {TRITON}, this is {triton.__version__}")
        return 0
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        counts = [one for found in pool.map(count_case, cases(), chunksize=1) for one in found]
    if options.write:
        COUNTS.write_text(PAGE.format(triton=TRITON, chunk=CHUNK, table=table(counts)), encoding="utf-8")
    wrong = faults(counts) + ([] if options.write else differences(counts, read()))
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    print(f"{len(counts)} parts counted with triton {TRITON}, {len(wrong)} complaints")
    return int(bool(wrong))


PAGE = """# Counted machine code

Made by `python -m bench.tools.count_kernels --write` with triton {triton}: sm_90, bfloat16, head_dim 64; no GPU had a
part in it. `make counted` compiles the kernels and compares: a change of more than 3 % in a pipe, a program fewer on a
multiprocessor, or anything more of stack, local memory, F2F, PRMT or BAR fails, and so does another launch.

A line is a hot loop of a kernel, a trip of it, or all of its code outside of them. `rows`, `columns`, `heads`: a
program's block; `grid`: programs for 65,536 tokens (cross_entropy: for {chunk} rows); `programs`: those that a
multiprocessor holds at once; `stack`: bytes a thread. `issue` (the number of instructions) to `shared` are cycles of a
sub-partition that a warp takes of each pipe; [roofline.md](roofline.md) has the costs and what follows from them.
`local`, `f2f`, `prmt`, `bar`: instructions.

{table}
"""


if __name__ == "__main__":
    raise SystemExit(main())
