"""The roofline page: least work of each kernel and of the whole model, least time, measured time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engine.registry import OURS
from bench.engine.shapes import BASE, BOTH, FORWARD, LARGE, PASSES, K, Shape, Sizes, lengths_of, mixed, uniform
from bench.engine.work import Work
from bench.models.work import encoder_parts, products_work
from bench.ops.activation import activation_work
from bench.ops.attention import attention_work
from bench.ops.embedding import embedding_work
from bench.ops.inputs import DROPOUT_P
from bench.ops.layer_norm import layer_norm_work
from bench.ops.mlp import mlp_work

from .markdown import markdown
from .rows import Rows, newest

PAGE = "roofline.md"
TOKENS = 64 * K
ITEMSIZE = 2


@dataclass(frozen=True)
class Peak:
    """Peak rates of a GPU by its maker.

    Attributes:
        name: name of the GPU.
        tflops: rate of dense bfloat16 matrix products, in TFLOP/s.
        gbps: rate of its memory, in GB/s.
        source: source of both.
    """

    name: str
    tflops: float
    gbps: float
    source: str

    def floor_us(self, parts: Sequence[Work]) -> float:
        """Least microseconds of the parts one after the other."""
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
        what, shape, passes, dropout_p: the computation.
        parts: work of its parts, which come one after the other.
        part: part of the suite that measures it.
        fields: fields of the row that has the time.
    """

    what: str
    shape: Shape
    passes: str
    dropout_p: float
    parts: list[Work]
    part: str
    fields: dict[str, Any]


def entries() -> Iterator[Entry]:
    """The lines, kernels first."""
    hidden, inner, vocabulary = BASE.hidden_size, BASE.intermediate_size, BASE.vocab_size
    mix, longest = mixed("pairs", TOKENS), max(lengths_of("pairs"))
    for shape in (mix, mixed("xquad", TOKENS), *(uniform(length, TOKENS) for length in (32, 128, 512))):
        for passes in PASSES:
            amount = attention_work(shape.batches[0], BASE.num_heads, BASE.head_dim, ITEMSIZE, passes)
            yield _kernel("attention", shape, passes, amount)
    for passes in PASSES:
        for p in (0.0, DROPOUT_P):
            amount = layer_norm_work(TOKENS, hidden, ITEMSIZE, passes, p > 0)
            yield _kernel("add+layer-norm", mix, passes, amount, p)
    for passes in PASSES:
        yield _kernel("bias+gelu", mix, passes, activation_work(TOKENS, inner, ITEMSIZE, passes))
    for passes in PASSES:
        yield _kernel("mlp", mix, passes, mlp_work(TOKENS, hidden, inner, ITEMSIZE, passes))
    for passes in PASSES:
        amount = embedding_work(TOKENS, TOKENS, longest, vocabulary, hidden, ITEMSIZE, passes)
        yield _kernel("embedding+layer-norm", mix, passes, amount)
    for name, sizes in (("base", BASE), ("large", LARGE)):
        for histogram in ("pairs", "xquad"):
            yield from _model(name, mixed(histogram, TOKENS, sizes), sizes)


def _kernel(name: str, shape: Shape, passes: str, amount: Work, dropout_p: float = 0.0) -> Entry:
    fields = {"operation": name, "shape": shape.name, "passes": passes, "dropout_p": dropout_p, "provider": OURS}
    return Entry(name, shape, passes, dropout_p, [amount], "kernels", fields)


def _model(name: str, shape: Shape, sizes: Sizes) -> Iterator[Entry]:
    inference = {"operation": "inference", "shape": shape.name, "layers": sizes.num_layers, "dtype": "bfloat16"}
    products = [products_work(TOKENS, sizes, ITEMSIZE)]
    bound = inference | {"provider": "matrix products"}
    yield Entry(f"{name}: matrix products", shape, FORWARD, 0.0, products, "models", bound)
    for passes, p in ((FORWARD, 0.0), (BOTH, DROPOUT_P)):
        parts = encoder_parts(shape.batches[0], sizes, ITEMSIZE, passes, p > 0)
        ours = inference | {"provider": "padding-free", "passes": passes}
        yield Entry(f"{name}: encoder", shape, passes, p, parts, "models", ours)


def render(results: Path) -> str:
    """The page."""
    found = {part: newest(results, part) for part in ("kernels", "models")}

    def measured(entry: Entry) -> str:
        result = found[entry.part]
        try:
            row = (result.rows if result else Rows([])).find(**entry.fields)
        except KeyError:
            return "not measured"
        assert result is not None
        return f"{row['time_s'] * 1e6:,.1f} ({result.content['processor'].removeprefix('NVIDIA ')})"

    floors = [f"{peak.name}, µs" for peak in PEAKS]
    head = ["what", "lengths", "pass", "dropout", "MB", "GFLOP", *floors, "measured, µs"]
    lines = [
        [
            entry.what,
            entry.shape.name,
            entry.passes,
            f"{entry.dropout_p:g}",
            f"{sum(part.bytes for part in entry.parts) / 1e6:,.1f}",
            f"{sum(part.flops for part in entry.parts) / 1e9:,.1f}",
            *(f"{peak.floor_us(entry.parts):,.1f}" for peak in PEAKS),
            measured(entry),
        ]
        for entry in entries()
    ]
    peaks = markdown(
        ["GPU", "bfloat16, dense", "memory", "source"],
        [[peak.name, f"{peak.tflops:g} TFLOP/s", f"{peak.gbps:,} GB/s", peak.source] for peak in PEAKS],
    )
    return f"""# Roofline

Made by `python -m bench.report --write`. 64 k tokens, bfloat16; kernels at base width. Bytes and FLOPs are those of the
formulas in `bench/ops` and `bench/models/work.py`: each operand read once, each result written once, FLOPs of matrix
products, no padding. The floor is the slower of the two at the maker's peak rates, which no program reaches: the GPU
suite measures the rates of PyTorch's own matrix product and copy, and states shares of those. The floor of a model and
of the MLP is that of their parts one after the other. `matrix products` are a model's linear layers alone.

{peaks}

{markdown(head, lines)}
"""
