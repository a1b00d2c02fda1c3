"""Compiles every kernel as the model launches it, for GPUs that need not be there, and reads the machine code.

    python -m bench.compiled                                          # all of it; writes bench/results/compiled.md
    python -m bench.compiled --check                                  # and exits with 1 where a kernel has a fault
    python -m bench.compiled --architecture sm_90 --dtype bfloat16    # some of it; written only where --output says
    python -m bench.compiled --list                                   # what would be compiled; takes seconds

A driver that only names its GPU stands in for Triton's, and the launchers are called with tensors on `meta`: they
choose from the tables of `kernels/configs.py`, and a launch compiles. Registers, stack and instructions are those of
ptxas and cuobjdump of Triton's wheel, or of LLVM's AMD assembly. Nothing here says how fast a kernel is.
"""

import argparse
import functools
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from .machine_code import read_amd, read_nvidia
from .markdown import markdown

RESULTS = Path(__file__).parent / "results" / "compiled.md"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
DTYPES = ("bfloat16", "float16", "float32")
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}
"""KiB that a program may take; sm_80 stands for sm_86 and sm_89, too, which have less than it."""
TENSOR_MEMORY = 512
"""Columns; a kernel of sm_100 that takes more is refused at its launch, and compiles to nothing."""
KNOWN = {
    r"sm_120 \S+ \S+ backward_(rows|columns), d128 .*: spills: 8 bytes.*": "2 loads and stores",
}
"""Faults that no blocks and warps avoid, and why; the check counts them and passes them over."""
TOKENS, HEADS, DROPOUT = 65536, 12, 0.1
VOCABULARY, POSITIONS, INTERMEDIATE, EPS = 250002, 514, 3072, 1e-5
ATTENTION_TILES = ((16, 16, 16), (32, 32, 32), (64, 64, 64), (64, 512, 64), (128, 512, 512))
"""(tile, longest sequence, mean length) such that the launcher takes that tile; lists of tiles where one is longer."""


@dataclass(frozen=True)
class Case:
    """One call of a launcher (forward and backward for attention).

    Attributes:
        architecture: such as "sm_90".
        dtype: of the operands.
        launch: the function below that calls it.
        size: head_dim for attention, else columns of a row.
        dropout: whether there is any.
        option: of attention: an index into ATTENTION_TILES.
        prefix: whether there are prefix_lens.
    """

    architecture: str
    dtype: str
    launch: str
    size: int
    dropout: bool = False
    option: int = 0
    prefix: bool = False

    @property
    def label(self) -> str:
        """What tells it from other calls of the same launcher."""
        parts = [f"{'d' if self.launch == 'attention' else 'n'}{self.size}"]
        if self.launch == "attention":
            tile, longest, _ = ATTENTION_TILES[self.option]
            parts += [f"tile {tile}", "list"] if longest > tile else [f"tile {tile}"]
        return " ".join(parts + ["dropout"] * self.dropout + ["prefix"] * self.prefix)


@dataclass(frozen=True)
class Launch:
    """A kernel as it was launched. `stages` is 0 where the launcher leaves them to Triton."""

    architecture: str
    dtype: str
    kernel: str
    case: str
    warps: int
    stages: int


@dataclass(frozen=True)
class Compiled(Launch):
    """A launch and its machine code.

    Attributes:
        matrix: whether it multiplies matrices.
        registers: a thread (AMD: vector registers).
        stack: bytes a thread (AMD: scratch).
        spills: loads and stores of local memory (AMD: vector registers spilt).
        scalar_spills: AMD only.
        shared: bytes of shared memory.
        tensor_memory: columns of it (sm_100).
        instructions: in all.
        hgmma: products of four warps.
        mma: all products on tensor cores, those included.
        loads: from global memory.
        wide: of them, those of at least 128 bits.
    """

    matrix: bool
    registers: int
    stack: int
    spills: int
    scalar_spills: int
    shared: int
    tensor_memory: int
    instructions: int
    hgmma: int
    mma: int
    loads: int
    wide: int


Record = Callable[[JITFunction, dict[str, Any], Callable[[], Any]], None]
"""Is told of each launch: the kernel, its keyword arguments and what compiles it."""


class Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, architecture: str) -> None:
        amd = architecture.startswith("gfx")
        name = architecture if amd else int(architecture.removeprefix("sm_"))
        self.target = GPUTarget("hip" if amd else "cuda", name, 64 if amd else 32)
        self.index = ARCHITECTURES.index(architecture)

    def is_active(self) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_current_device(self) -> int:
        """Another for each target: kernels that are compiled are kept by it."""
        return self.index

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@contextmanager
def launching(architecture: str, record: Record) -> Iterator[None]:
    """Launches go to `record` instead of a GPU. The driver stays: this process launches nothing else.

    Raises:
        RuntimeError: the kernels are interpreted.
    """
    from erniem_fast.kernels import common, configs

    if common.INTERPRETED:
        raise RuntimeError("the kernels were imported to be interpreted: unset TRITON_INTERPRET")

    def getitem(kernel: JITFunction, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            record(kernel, options, lambda: kernel.run(*args, grid=grid, warmup=True, **options))

        return launch

    driver.set_active(Driver(architecture))
    with (
        patch.object(JITFunction, "__getitem__", getitem),
        patch.object(configs, "architecture", lambda device: architecture),
    ):
        yield


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_attention(case: Case, dtype: torch.dtype, p: float, seed: torch.Tensor) -> None:
    from erniem_fast.kernels import attention

    _, longest, mean = ATTENTION_TILES[case.option]
    num_sequences = TOKENS // mean
    cu_seqlens, tiles = empty(num_sequences + 1), empty(TOKENS // 16 + num_sequences + 1, 2)
    prefix_lens = empty(num_sequences) if case.prefix else None
    qkv = empty(TOKENS, 3, HEADS, case.size, dtype=dtype)
    rest = (cu_seqlens, tiles, longest, prefix_lens, p, seed, 1, False)
    out, lse = attention.varlen_attention.forward(qkv, *rest)
    attention.varlen_attention_backward.forward(out, qkv, out, lse, *rest)


def launch_tiles(case: Case, dtype: torch.dtype, p: float, seed: torch.Tensor) -> None:
    from erniem_fast.kernels import attention

    attention.attention_tiles.forward(empty(TOKENS // 128 + 1), 512, TOKENS, False)


def launch_layer_norm(case: Case, dtype: torch.dtype, p: float, seed: torch.Tensor, save: bool = True) -> None:
    from erniem_fast.kernels import layer_norm

    x, vector = empty(TOKENS, case.size, dtype=dtype), empty(case.size, dtype=dtype)
    y, z, mean, rstd = layer_norm.dropout_add_layer_norm.forward(x, x, vector, vector, vector, EPS, p, seed, 1, save)
    if save:
        layer_norm.dropout_add_layer_norm_backward.forward(y, z, mean, rstd, vector, dtype, dtype, True, p, seed, 1)


def launch_embedding(case: Case, dtype: torch.dtype, p: float, seed: torch.Tensor, save: bool = True) -> None:
    from erniem_fast.kernels import embedding

    ids, vector = empty(TOKENS, dtype=torch.int64), empty(case.size, dtype=dtype)
    words, positions = empty(VOCABULARY, case.size, dtype=dtype), empty(POSITIONS, case.size, dtype=dtype)
    y, mean, rstd = embedding.embedding_layer_norm.forward(
        ids, words, ids, positions, vector, vector, EPS, 1, 1, p, seed, 0, save
    )
    if save:
        embedding.embedding_layer_norm_backward.forward(
            y, ids, words, ids, positions, vector, mean, rstd, 1, 1, p, seed, 0, False, False
        )


def launch_gelu(case: Case, dtype: torch.dtype, p: float, seed: torch.Tensor) -> None:
    from erniem_fast.kernels import activation

    x, bias = empty(TOKENS, case.size, dtype=dtype), empty(case.size, dtype=dtype)
    activation.bias_gelu_dropout.forward(x, bias, p, seed, 1)
    activation.bias_gelu_dropout_backward.forward(x, x, bias, p, seed, 1, True)


def launch_linear(case: Case, dtype: torch.dtype, p: float, seed: torch.Tensor, gelu: bool = False) -> None:
    from erniem_fast.kernels import linear

    x, weight, bias = empty(TOKENS, 768, dtype=dtype), empty(case.size, 768, dtype=dtype), empty(case.size, dtype=dtype)
    linear.launch_linear(x, weight, bias, gelu, p, seed, 1, save=p > 0)


def launch_segment_sum(case: Case, dtype: torch.dtype, p: float, seed: torch.Tensor) -> None:
    from erniem_fast.kernels import segment_sum

    ids = empty(TOKENS, dtype=torch.int64)
    segment_sum.segment_sum(empty(TOKENS, case.size, dtype=dtype), ids, VOCABULARY, 1, dtype)


LAUNCHES: dict[str, Callable[[Case, torch.dtype, float, torch.Tensor], None]] = {
    "attention": launch_attention,
    "tiles": launch_tiles,
    "layer_norm": launch_layer_norm,
    "layer_norm, nothing saved": functools.partial(launch_layer_norm, save=False),
    "embedding": launch_embedding,
    "embedding, nothing saved": functools.partial(launch_embedding, save=False),
    "gelu": launch_gelu,
    "linear": launch_linear,
    "linear, gelu": functools.partial(launch_linear, gelu=True),
    "segment_sum": launch_segment_sum,
}


def cases(architectures: Iterable[str] = ARCHITECTURES, dtypes: Iterable[str] = DTYPES) -> Iterator[Case]:
    """What is compiled, in the order of the report."""
    both = (False, True)
    for architecture, dtype in product(architectures, dtypes):
        of = (architecture, dtype)
        for size, option, prefix, dropout in product((64, 128), range(len(ATTENTION_TILES)), both, both):
            yield Case(*of, "attention", size, dropout, option, prefix)
        if of == ("sm_90", "bfloat16"):  # head_dims that do not fill their block, and one below it
            for size, option, rest in product((16, 80), (1, 4), both):
                yield Case(*of, "attention", size, rest, option, rest)
        yield Case(*of, "tiles", 0)
        for size, dropout in product((768, 4096), both):
            for launch in ("layer_norm", "layer_norm, nothing saved", "embedding", "embedding, nothing saved"):
                yield Case(*of, launch, size, dropout)
        for dropout in both:
            yield Case(*of, "gelu", INTERMEDIATE, dropout)
        yield Case(*of, "linear", 3 * 768)
        for dropout in both:
            yield Case(*of, "linear, gelu", INTERMEDIATE, dropout)
        for size in (768, 4096):
            yield Case(*of, "segment_sum", size)


def call(case: Case, record: Record) -> None:
    """Calls a case's launcher; `record` is told of its launches."""
    with launching(case.architecture, record):
        dtype = getattr(torch, case.dtype)
        LAUNCHES[case.launch](case, dtype, DROPOUT * case.dropout, empty(1, dtype=torch.int64))


def kernel_name(kernel: JITFunction) -> str:
    """Of its file, and its own."""
    return f"{kernel.fn.__module__.rpartition('.')[2]} {kernel.fn.__name__.strip('_')}"


def describe(case: Case, kernel: JITFunction, options: dict[str, Any]) -> Launch:
    """What is known of a launch before it is compiled."""
    name, label = kernel_name(kernel), case.label
    for launch, word in (("nothing saved", "unsaved"), ("gelu", "gelu")):
        label += f" {word}" * case.launch.endswith(f", {launch}")
    if case.launch == "tiles":
        label = "any"
    return Launch(case.architecture, case.dtype, name, label, options["num_warps"], options.get("num_stages", 0))


def launches(case: Case) -> list[Launch]:
    """The launches of a case, without compiling them."""
    found: list[Launch] = []
    call(case, lambda kernel, options, _: found.append(describe(case, kernel, options)))
    return found


def compile_case(case: Case) -> list[Compiled]:
    """The launches of a case, compiled."""
    found: list[Compiled] = []

    def record(kernel: JITFunction, options: dict[str, Any], compile_it: Callable[[], Any]) -> None:
        found.append(inspect(describe(case, kernel, options), compile_it()))

    call(case, record)
    return found


def inspect(launch: Launch, kernel: Any) -> Compiled:
    """Reads a compiled kernel."""
    read: dict[str, Any] = (
        read_amd(kernel.asm["amdgcn"]) if "amdgcn" in kernel.asm else read_nvidia(kernel.asm["cubin"])
    )
    read |= {"shared": kernel.metadata.shared, "tensor_memory": getattr(kernel.metadata, "tmem_size", None) or 0}
    return Compiled(**vars(launch), matrix="tt.dot" in kernel.asm["ttir"], **read)


def faults(kernel: Compiled) -> list[str]:
    """What is wrong with a kernel."""
    found = []
    if kernel.stack or kernel.spills or kernel.scalar_spills:
        spills = kernel.spills + kernel.scalar_spills
        found.append(f"spills: {kernel.stack} bytes of stack, {spills} registers, loads or stores")
    if kernel.matrix and kernel.dtype != "float32":  # those may be exact
        if not kernel.mma:
            found.append("multiplies matrices without tensor cores")
        elif kernel.architecture == "sm_90" and not kernel.hgmma:
            found.append("multiplies matrices without HGMMA")
    if kernel.tensor_memory > TENSOR_MEMORY:
        found.append(f"takes {kernel.tensor_memory} of {TENSOR_MEMORY} columns of tensor memory")
    limit = SHARED[kernel.architecture]
    if kernel.shared > limit * 1024:
        found.append(f"takes {kernel.shared / 1024:.1f} of {limit} KiB of shared memory")
    return found


def complaints(kernel: Compiled) -> Iterator[tuple[str, bool]]:
    """Each of a kernel's faults on a line, and whether it is a known one."""
    for fault in faults(kernel):
        line = f"{kernel.architecture} {kernel.dtype} {kernel.kernel}, {kernel.case}: {fault}"
        yield line, any(re.fullmatch(pattern, line) for pattern in KNOWN)


def compile_all(chosen: list[Case], jobs: int) -> list[Compiled]:
    """Every launch of the cases, in order."""
    environment = multiprocessing.get_context("spawn")
    with environment.Pool(jobs) as pool:
        progress = tqdm(pool.imap(compile_case, chosen), total=len(chosen), unit="case")
        return [kernel for kernels in progress for kernel in kernels]


def row(kernel: Compiled) -> list[str]:
    """Cells of the report."""
    stages = str(kernel.stages or "")
    spills = f"{kernel.spills}+{kernel.scalar_spills}" if kernel.scalar_spills else str(kernel.spills)
    products = f"{kernel.hgmma}/{kernel.mma}" if kernel.hgmma else str(kernel.mma)
    cells = [kernel.kernel, kernel.case, kernel.warps, stages, kernel.registers, kernel.stack, spills]
    cells += [kernel.shared, kernel.instructions, products, f"{kernel.wide}/{kernel.loads}"]
    return list(map(str, cells))


HEAD = ["kernel", "case", "warps", "stages", "registers", "stack", "spills", "shared", "instructions", "mma", "loads"]


def report(kernels: Iterable[Compiled], command: str) -> str:
    """The file: a table for each architecture and dtype."""
    tables: dict[tuple[str, str], list[Compiled]] = {}
    for kernel in kernels:
        tables.setdefault((kernel.architecture, kernel.dtype), []).append(kernel)
    parts = [
        "# Compiled kernels",
        f"Made by `{command}` with triton {triton.__version__}; no GPU had a part in it.",
        "Cases: head_dim (d) or columns (n), tile of the attention, whether some sequence is longer than it (list), "
        "dropout, prefix lengths. Stack: bytes a thread (AMD: scratch). Spills: loads and stores of local memory (AMD: "
        "vector + scalar registers spilt). Shared: bytes. mma: instructions on tensor cores, wgmma before all where "
        "there are any. Loads: from global memory, those of at least 128 bits before all. No stages: Triton's default, "
        "or those of the kernel's own loop.",
    ]
    for (architecture, dtype), rows in tables.items():
        rows.sort(key=lambda kernel: kernel.kernel)
        parts += [f"## {architecture}, {dtype}", markdown(HEAD, map(row, rows))]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", action="append", choices=ARCHITECTURES, help="repeatable; all")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; all")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a kernel is not as it should be")
    parser.add_argument("--list", action="store_true", help="only print what would be compiled")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--output", type=Path, help="file of the report; bench/results/compiled.md where all is compiled"
    )
    options = parser.parse_args(argv)
    if triton.knobs.runtime.interpret:
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels are not compiled. Unset it.")
    chosen = list(cases(options.architecture or ARCHITECTURES, options.dtype or DTYPES))
    if options.list:
        for launch in (launch for case in chosen for launch in launches(case)):
            print(*vars(launch).values(), sep="\t")
        return 0
    kernels = compile_all(chosen, options.jobs)
    output = options.output or (None if options.architecture or options.dtype else RESULTS)
    if output is not None:
        arguments = [f"--architecture {name}" for name in options.architecture or ()]
        arguments += [f"--dtype {name}" for name in options.dtype or ()]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(report(kernels, " ".join(["python -m bench.compiled", *arguments])), encoding="utf-8")
        print(f"Written: {output}")
    found = [complaint for kernel in kernels for complaint in complaints(kernel)]
    wrong = [line for line, known in found if not known]
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    print(f"{len(kernels)} kernels compiled with triton {triton.__version__}, {len(wrong)} faults", end=", ")
    print(f"{len(found) - len(wrong)} known ones")
    return 1 if options.check and wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
