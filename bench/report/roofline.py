"""The roofline page: least work of each kernel and of the whole model, least time, measured time."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bench.engine.registry import OURS
from bench.engine.shapes import BASE, BOTH, FORWARD, LARGE, PASSES, K, Sizes, mixed, uniform
from bench.engine.work import Work
from bench.models.work import encoder_parts, products_work
from bench.ops.attention import attention_work
from bench.ops.inputs import DROPOUT_P
from bench.ops.mlp import mlp_work

from . import counts
from .markdown import markdown
from .prediction import CLOCK, COPY, LATENCY, MATRIX, MULTIPROCESSORS, READS, ROWS, Model
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
    """A line: a computation, the work of its parts, fields of the row with the time, seconds if predicted."""

    part: str
    what: str
    parts: list[Work]
    fields: dict[str, Any]
    predicted: float | None = None


def entries(model: Model) -> Iterator[Entry]:
    """The lines, kernels first."""

    def kernel(name: str, shape: str, passes: str, work: Work, predicted: float | None, p: float = 0.0) -> Entry:
        fields = {"operation": name, "shape": shape, "passes": passes, "dropout_p": p, "provider": OURS}
        return Entry("kernels", name, [work], fields, predicted)

    for shape in (*(mixed(name, TOKENS) for name in ("pairs", "xquad")), *(uniform(n, TOKENS) for n in (32, 128, 512))):
        lengths = shape.batches[0]
        for passes in PASSES:
            work = attention_work(lengths, BASE.num_heads, BASE.head_dim, ITEMSIZE, passes)
            yield kernel("attention", shape.name, passes, work, model.attention(lengths, passes))
    for name, rows in ROWS.items():
        for passes, p in product(PASSES, (0.0, DROPOUT_P) if name == "add+layer-norm" else (0.0,)):
            counted = passes == FORWARD or rows.kernels != "embedding"
            predicted = model.rows(name, passes, p > 0) if counted else None
            yield kernel(name, "pairs-64k", passes, rows.work(passes, p > 0), predicted, p)
    for passes in PASSES:
        work = mlp_work(TOKENS, BASE.hidden_size, BASE.intermediate_size, ITEMSIZE, passes)
        yield kernel("mlp", "pairs-64k", passes, work, model.mlp(passes, work.flops))
    for name, sizes in (("base", BASE), ("large", LARGE)):
        for histogram in ("pairs", "xquad"):
            yield from _model(model, name, histogram, sizes)


def _model(model: Model, name: str, histogram: str, sizes: Sizes) -> Iterator[Entry]:
    shape = mixed(histogram, TOKENS, sizes)
    same = {"shape": shape.name, "layers": sizes.num_layers, "dtype": "bfloat16"}
    bound = {"operation": "inference", "provider": "matrix products", "passes": FORWARD, "dropout_p": 0.0}
    products = products_work(TOKENS, sizes, ITEMSIZE)
    yield Entry("models", f"{name}: matrix products", [products], same | bound, products.flops / MATRIX)
    for operation, passes, p in (("inference", FORWARD, 0.0), ("training", BOTH, DROPOUT_P)):
        ours = {"operation": operation, "provider": "padding-free", "passes": passes, "dropout_p": p}
        parts = encoder_parts(shape.batches[0], sizes, ITEMSIZE, passes, p > 0)
        counted = sizes is BASE and passes == FORWARD
        predicted = model.encoder(shape.batches[0], products.flops) if counted else None
        yield Entry("models", f"{name}: encoder", parts, same | ours, predicted)


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

    def predicted(entry: Entry) -> str:
        return "" if entry.predicted is None else f"{entry.predicted * 1e6:,.1f}"

    model = Model(counts.read())
    floors = [f"{peak.name}, µs" for peak in PEAKS]
    lines = []
    for entry in entries(model):
        work, fields = sum(entry.parts, Work(0, 0)), entry.fields
        cells = [entry.what, fields["shape"], fields["passes"], f"{fields['dropout_p']:g}"]
        cells += [f"{work.bytes / 1e6:,.1f}", f"{work.flops / 1e9:,.1f}"]
        cells += [f"{peak.floor_us(entry.parts):,.1f}" for peak in PEAKS]
        lines.append([*cells, predicted(entry), measured(entry)])
    peaks = [[peak.name, f"{peak.tflops:g} TFLOP/s", f"{peak.gbps:,} GB/s", peak.source] for peak in PEAKS]
    bars = [
        [bar.what, f"{bar.value:,.4g}", f"at {'least' if bar.least else 'most'} {bar.bar:g}"] for bar in model.bars()
    ]
    l2 = [[what, f"{asked / 1e9:.1f}", f"{asked / time / 1e12:.1f}"] for what, asked, time in sorted(model.l2())]
    return f"""# Roofline

Made by `python -m bench.report --write`. 64 k tokens, bfloat16; kernels at base width. Bytes and FLOPs are those of the
formulas in `bench/ops` and `bench/models/work.py`: each operand read once, each result written once, FLOPs of matrix
products, no padding. The floor is the slower of the two at the maker's peak rates, which no program reaches: the GPU
suite measures the rates of PyTorch's own matrix product and copy, and states shares of those. The floor of a model is
that of its parts one after the other. `matrix products` are a model's linear layers alone.

{markdown(["GPU", "bfloat16, dense", "memory", "source"], peaks)}

`predicted` is no measurement: it is what the [counted](counts.md) machine code allows on an H200, by a queueing model
(`bench/report/prediction.py`). Resident warps go round between the pipes of a sub-partition, its share of the memory,
and waits for reads that need each other. Nothing is fitted; assumed are
- cycles of a sub-partition: an instruction issued 1, FP32 1, IMAD 2, ALU 2, MUFU 8, HGMMA 64 x N x 16 N / 2; shared
  memory 128 bytes a cycle and multiprocessor;
- {LATENCY} cycles a read of memory, {READS["attn"]} of them one after the other in a program of attention;
- {MULTIPROCESSORS} multiprocessors at {CLOCK / 1e9:g} GHz, {COPY / 1e12:g} TB/s in a copy, {MATRIX / 1e12:g} TFLOP/s
  in the products of linear layers;
- no bank conflicts, no dependencies between instructions; L2, launches and programs without work cost nothing.

For Triton's kernel of the length-512 forward pass others measured 340 TFLOP/s on an H100; of ours with 321 instructions
a trip the model says 360. Read it as +-20 %, and ratios as better than that. GELU's backward pass is that of the
feed-forward block, which computes its activation again; the embedding's, with the tables' gradients, is not counted.

{markdown(["what", "lengths", "pass", "dropout", "MB", "GFLOP", *floors, "predicted, µs", "measured, µs"], lines)}

What tiles ask of L2, from which the model takes nothing: where it gives less, it is the limit.

{markdown(["what", "GB", "TB/s in the predicted time"], l2)}

Counts and predictions that have a number to reach; `make counted` checks them:

{markdown(["what", "is", "bar"], bars)}
"""
