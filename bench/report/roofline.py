"""The roofline page: least work of each kernel and of the whole model, least time, measured time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.engine.registry import OURS
from bench.engine.shapes import BASE, BOTH, FORWARD, LARGE, PASSES, K, Sizes, lengths_of, mixed, uniform
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
TOKENS, ITEMSIZE = 64 * K, 2


class Peak(NamedTuple):
    """Peak rates of a GPU by its maker: dense bfloat16 matrix products, memory, source of both."""

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


class Entry(NamedTuple):
    """A line: a computation, the work of its parts, and the fields of the row that has the time."""

    part: str
    what: str
    parts: list[Work]
    fields: dict[str, Any]


def entries() -> Iterator[Entry]:
    """The lines, kernels first."""
    hidden, inner, longest = BASE.hidden_size, BASE.intermediate_size, max(lengths_of("pairs"))

    def kernel(name: str, shape: str, passes: str, work: Work, p: float = 0.0) -> Entry:
        fields = {"operation": name, "shape": shape, "passes": passes, "dropout_p": p, "provider": OURS}
        return Entry("kernels", name, [work], fields)

    for shape in (*(mixed(name, TOKENS) for name in ("pairs", "xquad")), *(uniform(n, TOKENS) for n in (32, 128, 512))):
        for passes in PASSES:
            work = attention_work(shape.batches[0], BASE.num_heads, BASE.head_dim, ITEMSIZE, passes)
            yield kernel("attention", shape.name, passes, work)
    for passes in PASSES:
        for p in (0.0, DROPOUT_P):
            work = layer_norm_work(TOKENS, hidden, ITEMSIZE, passes, p > 0)
            yield kernel("add+layer-norm", "pairs-64k", passes, work, p)
    for passes in PASSES:
        yield kernel("bias+gelu", "pairs-64k", passes, activation_work(TOKENS, inner, ITEMSIZE, passes))
    for passes in PASSES:
        yield kernel("mlp", "pairs-64k", passes, mlp_work(TOKENS, hidden, inner, ITEMSIZE, passes))
    for passes in PASSES:
        work = embedding_work(TOKENS, TOKENS, longest, BASE.vocab_size, hidden, ITEMSIZE, passes)
        yield kernel("embedding+layer-norm", "pairs-64k", passes, work)
    for name, sizes in (("base", BASE), ("large", LARGE)):
        for histogram in ("pairs", "xquad"):
            yield from _model(name, histogram, sizes)


def _model(name: str, histogram: str, sizes: Sizes) -> Iterator[Entry]:
    shape = mixed(histogram, TOKENS, sizes)
    same = {"shape": shape.name, "layers": sizes.num_layers, "dtype": "bfloat16"}
    bound = {"operation": "inference", "provider": "matrix products", "passes": FORWARD, "dropout_p": 0.0}
    yield Entry("models", f"{name}: matrix products", [products_work(TOKENS, sizes, ITEMSIZE)], same | bound)
    for operation, passes, p in (("inference", FORWARD, 0.0), ("training", BOTH, DROPOUT_P)):
        ours = {"operation": operation, "provider": "padding-free", "passes": passes, "dropout_p": p}
        parts = encoder_parts(shape.batches[0], sizes, ITEMSIZE, passes, p > 0)
        yield Entry("models", f"{name}: encoder", parts, same | ours)


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
    lines = []
    for entry in entries():
        work, fields = sum(entry.parts, Work(0, 0)), entry.fields
        cells = [entry.what, fields["shape"], fields["passes"], f"{fields['dropout_p']:g}"]
        cells += [f"{work.bytes / 1e6:,.1f}", f"{work.flops / 1e9:,.1f}"]
        lines.append([*cells, *(f"{peak.floor_us(entry.parts):,.1f}" for peak in PEAKS), measured(entry)])
    peaks = [[peak.name, f"{peak.tflops:g} TFLOP/s", f"{peak.gbps:,} GB/s", peak.source] for peak in PEAKS]
    return f"""# Roofline

Made by `python -m bench.report --write`. 64 k tokens, bfloat16; kernels at base width. Bytes and FLOPs are those of the
formulas in `bench/ops` and `bench/models/work.py`: each operand read once, each result written once, FLOPs of matrix
products, no padding. The floor is the slower of the two at the maker's peak rates, which no program reaches: the GPU
suite measures the rates of PyTorch's own matrix product and copy, and states shares of those. The floor of a model is
that of its parts one after the other. `matrix products` are a model's linear layers alone.

{markdown(["GPU", "bfloat16, dense", "memory", "source"], peaks)}

{markdown(["what", "lengths", "pass", "dropout", "MB", "GFLOP", *floors, "measured, µs"], lines)}
"""
