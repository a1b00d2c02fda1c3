"""Compile every kernel as the model launches it, for GPUs that need not be there, and read the machine code.

python -m bench.tools.compile_kernels            # all of it; writes the summary, bench/results/compiled.md
python -m bench.tools.compile_kernels --check    # and exits with 1 where a kernel has a fault
python -m bench.tools.compile_kernels --table --architecture sm_90 --dtype bfloat16    # prints every kernel
python -m bench.tools.compile_kernels --list     # prints the launches without compiling them; takes seconds

A driver that only names its GPU takes the place of Triton's, and the launchers are called with tensors on `meta`: they
choose from the tables of `kernels/configs.py`, and a launch compiles. Registers, stack and instructions are those of
ptxas and cuobjdump of Triton's wheel, or of LLVM's AMD assembly. Nothing here says how fast a kernel is.
"""

import argparse
import functools
import hashlib
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bench.engine.environment import RESULTS
from bench.engine.shapes import MAX_POSITIONS, TWO_LAYERS
from bench.report.markdown import markdown
from erniem_fast.kernels import (
    activation,
    attention,
    common,
    configs,
    embedding,
    layer_norm,
    linear,
    linear_cross_entropy,
    segment_sum,
)
from erniem_fast.kernels.dropout import Dropout
from erniem_fast.kernels.jit import HeldKernel

from .machine_code import disassemble, read_amd, read_nvidia

REPORT = RESULTS / "compiled.md"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
DTYPES = ("bfloat16", "float16", "float32")
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
"""KiB of shared memory that a program may take; those of sm_86 and sm_89, which are less, count for sm_80."""
TENSOR_MEMORY = 512
"""Columns of tensor memory; a kernel of sm_100 that takes more is refused at its launch, and compiles to nothing."""
KNOWN = {
    r"sm_120 \S+ attn_bwd_(dq|dkdv)_kernel, d128 .*: spills: 8 bytes.*": "2 loads and stores",
    r"sm_120 float32 cross_entropy_fwd_kernel, n250002: spills: 8 bytes .*, 0 of them in loops": "once a row",
    r"sm_90 \S+ attn_(fwd|bwd_single_tile)_kernel, d(16|26|64) .*: spills: \d\d? bytes .*, 0 of them in loops": (
        "under a cap that makes room for another program; in no loop (`counts.md` has the bytes)"
    ),
    r"sm_90 \S+ attn_tiles_kernel, any: spills: 8 bytes .*, 0 of them in loops": "once a forward (Triton 3.9)",
    r"gfx942 float32 attn_bwd_single_tile_kernel, d128 .* dropout.*: spills: 0 bytes .*, 0 of them in loops": (
        "to accumulators, not to memory; in no loop"
    ),
}
"""Faults that no blocks and warps avoid or that pay, and why; the check counts them and passes them over."""
TOKENS, HEADS, HIDDEN, INTERMEDIATE = 65536, TWO_LAYERS.num_heads, TWO_LAYERS.hidden_size, TWO_LAYERS.intermediate_size
CHUNK = 400
"""Rows of logits at a time, of a table of 16 bits."""
EPS = 1e-5
ATTENTION_TILES = ((16, 16, 16), (32, 32, 32), (64, 64, 64), (64, 512, 64), (128, 512, 512))
"""(tile, longest sequence, mean length) such that the launcher takes that tile; lists of tiles where one is longer."""


@dataclass(frozen=True)
class CompileCase:
    """One call of a launcher, forward and backward.

    Attributes:
        architecture: such as "sm_90".
        dtype: dtype of the operands.
        launch: a key of LAUNCHES.
        size: head_dim for attention, else columns of a row.
        dropout: True with dropout.
        option: for attention: an index into ATTENTION_TILES.
        prefix: True with prefix_lens.
        causal: True for causal attention.
    """

    architecture: str
    dtype: str
    launch: str
    size: int
    dropout: bool = False
    option: int = 0
    prefix: bool = False
    causal: bool = False

    @property
    def label(self) -> str:
        """Words that tell it from other calls of the same kernels."""
        if self.launch == "tiles":
            return "any"
        operation, _, variant = self.launch.partition(", ")
        words = [f"{'d' if operation == 'attention' else 'n'}{self.size}"]
        if operation == "attention":
            tile, longest, _ = ATTENTION_TILES[self.option]
            words += [f"tile {tile}", "list"] if longest > tile else [f"tile {tile}"]
        return " ".join(
            words
            + ["dropout"] * self.dropout
            + ["prefix"] * self.prefix
            + ["causal"] * self.causal
            + [variant] * bool(variant)
        )


@dataclass(frozen=True)
class Launch:
    """A kernel as it is launched. `stages` is 0 where the launcher leaves them to Triton."""

    architecture: str
    dtype: str
    kernel: str
    case: str
    warps: int
    stages: int


@dataclass(frozen=True)
class Compiled(Launch):
    """A launch and its machine code. `matrix`: it multiplies matrices; `code`: see `machine_code`."""

    matrix: bool
    code: dict[str, int]

    @property
    def spilt(self) -> int:
        return self.code["spills"] + self.code["scalar_spills"]


Record = Callable[[JITFunction, dict[str, Any], Callable[[], Any]], None]
"""Receives each launch: the kernel, its keyword arguments (and `grid`), and the function that compiles it."""


def a_driver(architecture: str) -> Any:
    """As much of a driver as compiling needs."""
    amd, index = architecture.startswith("gfx"), ARCHITECTURES.index(architecture)
    name = architecture if amd else int(architecture.removeprefix("sm_"))
    target = GPUTarget("hip" if amd else "cuda", name, 64 if amd else 32)
    return SimpleNamespace(
        is_active=lambda: True,
        get_current_target=lambda: target,
        get_active_torch_device=lambda: torch.device("meta"),
        get_current_device=lambda: index,  # Triton keeps compiled kernels by it
        get_current_stream=lambda device=None: 0,
        map_python_to_cpp_type=lambda name: name,
    )


@contextmanager
def launching(architecture: str, record: Record) -> Iterator[None]:
    """Launches go to `record` instead of a GPU. The driver stays: this process launches nothing else.

    Raises:
        RuntimeError: the kernels are interpreted.
    """
    if common.INTERPRETED:
        raise RuntimeError("the kernels were imported to be interpreted: unset TRITON_INTERPRET")

    def getitem(kernel: JITFunction, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            record(kernel, options | {"grid": grid}, lambda: kernel.run(*args, grid=grid, warmup=True, **options))

        return launch

    driver.set_active(a_driver(architecture))
    with (
        patch.object(JITFunction, "__getitem__", getitem),
        patch.object(HeldKernel, "__getitem__", getitem),
        patch.object(configs, "architecture", lambda device: architecture),
    ):
        yield


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_attention(case: CompileCase, dtype: torch.dtype, dropout: Dropout | None) -> None:
    _, longest, mean = ATTENTION_TILES[case.option]
    num_sequences = TOKENS // mean
    tiles = empty(TOKENS // 16 + num_sequences + 1, 4)
    qkv = empty(TOKENS, 3, HEADS, case.size, dtype=dtype)
    prefix_lens = empty(num_sequences) if case.prefix else None
    rest = (empty(num_sequences + 1), tiles, longest, 0, prefix_lens, case.causal, dropout)
    out, lse = attention.varlen_attention.forward(qkv, *rest)
    attention.varlen_attention_backward.forward(out, qkv, out, lse, *rest)


def launch_tiles(case: CompileCase, dtype: torch.dtype, dropout: Dropout | None) -> None:
    for num_sequences in (TOKENS // 128, TOKENS // 16):  # counted by the same kernel, and by one of its own
        attention.attention_tiles.forward(empty(num_sequences + 1), 512, TOKENS, 0)


def launch_layer_norm(case: CompileCase, dtype: torch.dtype, dropout: Dropout | None, save: bool = True) -> None:
    x, vector = empty(TOKENS, case.size, dtype=dtype), empty(case.size, dtype=dtype)
    operands = (x, x, vector, vector, vector, EPS, dropout, save)
    y, z, mean, rstd = layer_norm.dropout_add_layer_norm.forward(*operands)
    if save:
        layer_norm.dropout_add_layer_norm_backward.forward(y, z, mean, rstd, vector, dtype, dtype, True, dropout)


def launch_embedding(case: CompileCase, dtype: torch.dtype, dropout: Dropout | None, save: bool = True) -> None:
    ids, vector = empty(TOKENS, dtype=torch.int64), empty(case.size, dtype=dtype)
    words, positions = (empty(rows, case.size, dtype=dtype) for rows in (TWO_LAYERS.vocab_size, MAX_POSITIONS))
    tables = (ids, words, ids, positions, vector)
    y, mean, rstd = embedding.embedding_layer_norm.forward(*tables, vector, EPS, 1, 1, dropout, save)
    if save:
        embedding.embedding_layer_norm_backward.forward(y, *tables, mean, rstd, 1, 1, dropout, False, False)


def launch_activation(case: CompileCase, dtype: torch.dtype, dropout: Dropout | None) -> None:
    x, bias = empty(TOKENS, case.size, dtype=dtype), empty(case.size, dtype=dtype)
    activation.bias_activation_dropout.forward(x, bias, "gelu", dropout)
    activation.bias_activation_dropout_backward.forward(x, x, bias, "gelu", dropout, True)


def launch_linear(case: CompileCase, dtype: torch.dtype, dropout: Dropout | None, act: str | None = None) -> None:
    x, weight = empty(TOKENS, HIDDEN, dtype=dtype), empty(case.size, HIDDEN, dtype=dtype)
    linear.launch_linear(x, weight, empty(case.size, dtype=dtype), act, dropout, save=dropout is not None)


def launch_segment_sum(case: CompileCase, dtype: torch.dtype, dropout: Dropout | None) -> None:
    rows, ids = empty(TOKENS, case.size, dtype=dtype), empty(TOKENS, dtype=torch.int64)
    segment_sum.segment_sum(rows, ids, TWO_LAYERS.vocab_size, 1, dtype)


def launch_linear_cross_entropy(
    case: CompileCase, dtype: torch.dtype, dropout: Dropout | None, scale: float | None = 1.0
) -> None:
    logits = empty(CHUNK, case.size + -case.size % 64, dtype=dtype)[:, : case.size]
    linear_cross_entropy.compare(logits, empty(CHUNK, dtype=torch.int64), empty(CHUNK, dtype=torch.float32), scale)


LAUNCHES: dict[str, Callable[[CompileCase, torch.dtype, Dropout | None], None]] = {
    "attention": launch_attention,
    "tiles": launch_tiles,
    "layer_norm": launch_layer_norm,
    "layer_norm, unsaved": functools.partial(launch_layer_norm, save=False),
    "embedding": launch_embedding,
    "embedding, unsaved": functools.partial(launch_embedding, save=False),
    "activation": launch_activation,
    "linear": launch_linear,
    "linear, gelu": functools.partial(launch_linear, act="gelu"),
    "segment_sum": launch_segment_sum,
    "linear_cross_entropy": launch_linear_cross_entropy,
    "linear_cross_entropy, loss alone": functools.partial(launch_linear_cross_entropy, scale=None),
}


def cases(architectures: Iterable[str] = ARCHITECTURES, dtypes: Iterable[str] = DTYPES) -> Iterator[CompileCase]:
    """Calls that are compiled, in the order of the table."""
    both = (False, True)
    for of in product(architectures, dtypes):
        for size, option, prefix, dropout in product((64, 128), range(len(ATTENTION_TILES)), both, both):
            yield CompileCase(*of, "attention", size, dropout, option, prefix)
        if of == ("sm_90", "bfloat16"):  # head_dims that do not fill their block, and one below it
            for size, option, rest in product((16, 26, 80), (1, 4), both):
                yield CompileCase(*of, "attention", size, rest, option, rest)
            for option in (1, 2, 4):
                yield CompileCase(*of, "attention", 64, option=option, causal=True)
        yield CompileCase(*of, "attention", 64, True, 4, causal=True)
        yield CompileCase(*of, "tiles", 0)
        for size, dropout in product((768, 4096), both):
            for launch in ("layer_norm", "layer_norm, unsaved", "embedding", "embedding, unsaved"):
                yield CompileCase(*of, launch, size, dropout)
        for dropout in both:
            yield CompileCase(*of, "activation", INTERMEDIATE, dropout)
            yield CompileCase(*of, "linear, gelu", INTERMEDIATE, dropout)
        yield CompileCase(*of, "linear", 3 * HIDDEN)
        for size in (768, 4096):
            yield CompileCase(*of, "segment_sum", size)
        for size in (HIDDEN, TWO_LAYERS.vocab_size):
            yield CompileCase(*of, "linear_cross_entropy", size)
        yield CompileCase(*of, "linear_cross_entropy, loss alone", TWO_LAYERS.vocab_size)


def call(case: CompileCase, record: Record) -> None:
    """Call a case's launcher; `record` receives its launches."""
    with launching(case.architecture, record):
        dropout = Dropout(0.1, empty(1, dtype=torch.int64), 1) if case.dropout else None
        LAUNCHES[case.launch](case, getattr(torch, case.dtype), dropout)


def describe(case: CompileCase, kernel: JITFunction, options: dict[str, Any]) -> Launch:
    name, stages = kernel.fn.__name__.strip("_"), options.get("num_stages", 0)
    return Launch(case.architecture, case.dtype, name, case.label, options["num_warps"], stages)


def launches(case: CompileCase) -> list[Launch]:
    """The launches of a case, without compiling them."""
    found: list[Launch] = []
    call(case, lambda kernel, options, _: found.append(describe(case, kernel, options)))
    return found


def compile_case(case: CompileCase) -> list[Compiled]:
    """The launches of a case, compiled."""
    found: list[Compiled] = []
    call(case, lambda kernel, options, make: found.append(inspect(describe(case, kernel, options), make())))
    return found


def inspect(launch: Launch, kernel: Any) -> Compiled:
    """Read a compiled kernel."""
    amd = "amdgcn" in kernel.asm
    code = read_amd(kernel.asm["amdgcn"]) if amd else read_nvidia(disassemble(kernel.asm["cubin"]))
    code |= {"shared": kernel.metadata.shared, "tensor_memory": getattr(kernel.metadata, "tmem_size", None) or 0}
    return Compiled(**vars(launch), matrix="tt.dot" in kernel.asm["ttir"], code=code)


def faults(kernel: Compiled) -> list[str]:
    """Faults of a kernel: spills, matrix products without tensor cores, more memory than there is."""
    found, code, limit = [], kernel.code, SHARED[kernel.architecture]
    if code["stack"] or kernel.spilt:
        found.append(
            f"spills: {code['stack']} bytes of stack, {kernel.spilt} registers, loads or stores, "
            f"{code['looped_spills']} of them in loops"
        )
    if kernel.matrix and kernel.dtype != "float32":  # float32 may be exact
        if not code["mma"]:
            found.append("multiplies matrices without tensor cores")
        elif kernel.architecture == "sm_90" and not code["hgmma"]:
            found.append("multiplies matrices without HGMMA")
    if code["tensor_memory"] > TENSOR_MEMORY:
        found.append(f"takes {code['tensor_memory']} of {TENSOR_MEMORY} columns of tensor memory")
    if code["shared"] > limit * 1024:
        found.append(f"takes {code['shared'] / 1024:.1f} of {limit} KiB of shared memory")
    return found


def complaints(kernel: Compiled) -> Iterator[tuple[str, bool]]:
    """Each fault of a kernel on a line, and whether it is a known one."""
    for fault in faults(kernel):
        line = f"{kernel.architecture} {kernel.dtype} {kernel.kernel}, {kernel.case}: {fault}"
        yield line, any(re.fullmatch(pattern, line) for pattern in KNOWN)


def compile_all(chosen: Sequence[CompileCase], jobs: int) -> list[Compiled]:
    """Every launch of the cases, in order."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        progress = tqdm(pool.imap(compile_case, chosen), total=len(chosen), unit="case")
        return [kernel for kernels in progress for kernel in kernels]


def table(kernels: Sequence[Compiled]) -> str:
    """Every kernel and all that was read."""
    names = [field.name for field in fields(Launch)]
    lines = [[getattr(kernel, name) for name in names] + list(kernel.code.values()) for kernel in kernels]
    return markdown([*names, *kernels[0].code], [[str(cell) for cell in line] for line in lines])


def digest(kernels: Iterable[Launch]) -> str:
    """Digest of the launches (kernel, case, warps, stages), in any order."""
    lines = sorted(f"{one.kernel} {one.case} {one.warps} {one.stages}" for one in kernels)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def summary(kernels: Iterable[Compiled]) -> str:
    """The report: a line for each architecture and dtype."""
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.architecture, kernel.dtype), []).append(kernel)
    head = [
        "architecture",
        "dtype",
        "kernels",
        "launches",
        "most registers",
        "most stack",
        "most spills",
        "most shared",
    ]
    lines = []
    for of, chosen in groups.items():
        found = [known for kernel in chosen for _, known in complaints(kernel)]
        most = max(chosen, key=lambda kernel: kernel.code["registers"])
        stack, shared = (max(kernel.code[name] for kernel in chosen) for name in ("stack", "shared"))
        cells = [*of, len(chosen), digest(chosen), f"{most.code['registers']} ({most.kernel}, {most.case})", stack]
        cells += [max(kernel.spilt for kernel in chosen), f"{shared / 1024:.0f} KiB", found.count(False)]
        cells += [found.count(True)]
        lines.append([str(cell) for cell in cells])
    known = "\n".join(f"- `{pattern}`: {cause}" for pattern, cause in KNOWN.items())
    return f"""# Compiled kernels

Made by `python -m bench.tools.compile_kernels` with triton {triton.__version__}; no GPU had a part in it. With
`--table` it prints every kernel. Launches: a digest of names, cases, warps and stages (`--list` prints them). Registers
and stack are a thread's; spills are loads and stores of local memory (AMD: registers spilt). A fault is a spill, a
16-bit matrix product without tensor cores (sm_90: without HGMMA), or more shared or tensor memory than there is.

{markdown([*head, "faults", "known faults"], lines)}

Known faults:

{known}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", action="append", choices=ARCHITECTURES, help="repeatable; all")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; all")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a kernel has a fault")
    parser.add_argument("--table", action="store_true", help="print every kernel")
    parser.add_argument("--list", action="store_true", help="print the launches without compiling them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args(argv)
    if triton.knobs.runtime.interpret:
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels are not compiled. Unset it.")
    chosen = list(cases(options.architecture or ARCHITECTURES, options.dtype or DTYPES))
    if options.list:
        for launch in (launch for case in chosen for launch in launches(case)):
            print(*vars(launch).values(), sep="\t")
        return 0
    kernels = compile_all(chosen, options.jobs)
    if options.table:
        print(table(kernels))
    if not options.architecture and not options.dtype:
        REPORT.write_text(summary(kernels), encoding="utf-8")
        print(f"Written: {REPORT}")
    found = [complaint for kernel in kernels for complaint in complaints(kernel)]
    wrong = [line for line, known in found if not known]
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    print(f"{len(kernels)} kernels compiled with triton {triton.__version__}, {len(wrong)} faults", end=", ")
    print(f"{len(found) - len(wrong)} known ones")
    return 1 if options.check and wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
