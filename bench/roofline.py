"""The roofline page: what each kernel and the whole model must do, how long that takes at least, and how long it took.

python -m bench.roofline --write    # bench/results/roofline.md
python -m bench.roofline --check    # exits with 1 if that is not what the formulas and the results say
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import work
from .gpu_shapes import BASE_MODEL, DROPOUT_P, LARGE_MODEL, K, lengths_of, mixed, uniform
from .gpu_tables import Rows, newest
from .markdown import markdown, write_or_check
from .run import RESULTS
from .shapes import Shape, Sizes
from .work import Work

PAGE = "roofline.md"
TOKENS = 64 * K
ITEMSIZE = 2
MAX_POSITIONS = 514


@dataclass(frozen=True)
class Peak:
    """What a GPU's maker says that it reaches.

    Attributes:
        name: of the GPU.
        tflops: of dense bfloat16 matrix products, in TFLOP/s.
        gbps: of its memory, in GB/s.
        source: of both.
    """

    name: str
    tflops: float
    gbps: float
    source: str

    def floor_us(self, parts: Sequence[Work]) -> float:
        """Microseconds of the parts one after the other."""
        return 1e6 * sum(part.floor_s(self.tflops * 1e12, self.gbps * 1e9) for part in parts)


PEAKS = (
    Peak("H200", 989.4, 4800, "NVIDIA H200 Tensor Core GPU datasheet, SXM: 1,979 TFLOP/s with sparsity, 4.8 TB/s"),
    Peak("H100", 989.4, 3350, "NVIDIA H100 Tensor Core GPU datasheet, SXM: 1,979 TFLOP/s with sparsity, 3.35 TB/s"),
    Peak("A100", 312, 2039, "NVIDIA A100 Tensor Core GPU datasheet, SXM, 80 GB: 312 TFLOP/s, 2,039 GB/s"),
)


@dataclass(frozen=True)
class Entry:
    """A line of the page.

    Attributes:
        what, shape, passes, dropout_p: what is computed.
        parts: how much that is; they come one after the other.
        part: of the suite that measures it.
        fields: of the row that has the time.
    """

    what: str
    shape: Shape
    passes: str
    dropout_p: float
    parts: list[Work]
    part: str
    fields: dict[str, object]


def entries() -> Iterator[Entry]:
    """The lines, kernels first."""
    sizes = BASE_MODEL
    hidden, heads = sizes.hidden_size, sizes.num_heads
    mix = mixed("pairs", TOKENS)
    for shape in (mix, mixed("xquad", TOKENS), *(uniform(length, TOKENS) for length in (32, 128, 512))):
        for passes in work.PASSES:
            amount = work.attention(shape.batches[0], heads, hidden // heads, ITEMSIZE, passes)
            yield _kernel("attention", shape, passes, 0.0, amount)
    for passes in work.PASSES:
        for p in (0.0, DROPOUT_P):
            yield _kernel(
                "add+layer-norm", mix, passes, p, work.add_layer_norm(TOKENS, hidden, ITEMSIZE, passes, p > 0)
            )
    for passes in work.PASSES:
        amount = work.bias_gelu(TOKENS, sizes.intermediate_size, ITEMSIZE, passes)
        yield _kernel("bias+gelu", mix, passes, 0.0, amount)
    for passes in work.PASSES:
        amount = work.linear_gelu(TOKENS, hidden, sizes.intermediate_size, ITEMSIZE, passes)
        yield _kernel("linear+gelu", mix, passes, 0.0, amount)
    for passes in work.PASSES:
        amount = work.embedding_layer_norm(
            TOKENS, TOKENS, max(lengths_of("pairs")), sizes.vocab_size, MAX_POSITIONS, hidden, ITEMSIZE, passes
        )
        yield _kernel("embedding+layer-norm", mix, passes, 0.0, amount)
    for name, sizes in (("base", BASE_MODEL), ("large", LARGE_MODEL)):
        for histogram in ("pairs", "xquad"):
            yield from _model(name, mixed(histogram, TOKENS, sizes), sizes)


def _kernel(name: str, shape: Shape, passes: str, dropout_p: float, amount: Work) -> Entry:
    fields = {"operation": name, "shape": shape.name, "passes": passes, "dropout_p": dropout_p, "provider": "triton"}
    return Entry(name, shape, passes, dropout_p, [amount], "kernels", fields)


def _model(name: str, shape: Shape, sizes: Sizes) -> Iterator[Entry]:
    inference = {"operation": "inference", "shape": shape.name, "layers": sizes.num_layers, "dtype": "bfloat16"}
    lengths = shape.batches[0]
    products = [work.matrix_products(TOKENS, sizes, ITEMSIZE)]
    bound = inference | {"provider": "matrix products"}
    yield Entry(f"{name}: matrix products", shape, work.FORWARD, 0.0, products, "models", bound)
    for passes, p in ((work.FORWARD, 0.0), (work.BOTH, DROPOUT_P)):
        parts = work.encoder_parts(lengths, sizes, ITEMSIZE, passes, p > 0)
        ours = inference | {"provider": "padding-free", "passes": passes}
        yield Entry(f"{name}: encoder", shape, passes, p, parts, "models", ours)


def measured(entry: Entry, results: Path) -> str:
    """The time in microseconds, and on what."""
    found = newest(results, entry.part)
    if found is None:
        return "not measured"
    try:
        row = Rows(found[1]["rows"]).find(**entry.fields)
    except KeyError:
        return "not measured"
    return f"{row['time_s'] * 1e6:,.1f} ({found[1]['processor'].removeprefix('NVIDIA ')})"


def render(results: Path) -> str:
    """The page."""
    head = [
        "what",
        "lengths",
        "pass",
        "dropout",
        "MB",
        "GFLOP",
        *(f"{peak.name}, µs" for peak in PEAKS),
        "measured, µs",
    ]
    lines = [
        [
            entry.what,
            entry.shape.name,
            entry.passes,
            f"{entry.dropout_p:g}",
            f"{sum(part.bytes for part in entry.parts) / 1e6:,.1f}",
            f"{sum(part.flops for part in entry.parts) / 1e9:,.1f}",
            *(f"{peak.floor_us(entry.parts):,.1f}" for peak in PEAKS),
            measured(entry, results),
        ]
        for entry in entries()
    ]
    peaks = markdown(
        ["GPU", "bfloat16, dense", "memory", "source"],
        [[peak.name, f"{peak.tflops:g} TFLOP/s", f"{peak.gbps:,} GB/s", peak.source] for peak in PEAKS],
    )
    return f"""# Roofline

Made by `python -m bench.roofline --write`. 64 k tokens, bfloat16; kernels at base width. Bytes and FLOPs are those of
`bench/work.py`: each operand read once, each result written once, FLOPs of matrix products, no padding. The floor is
the slower of the two at the maker's peak rates, which no program reaches: the GPU suite measures what PyTorch's own
matrix product and copy reach, and states shares of that. The floor of a model is that of its parts one after the
other. `matrix products` are its linear layers alone.

{peaks}

{markdown(head, lines)}
"""


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results, and of the page")
    options = parser.parse_args(argv)
    path = options.results / PAGE
    return write_or_check(path, render(options.results), options.write, "python -m bench.roofline --write")


if __name__ == "__main__":
    raise SystemExit(main())
