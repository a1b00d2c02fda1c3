"""Bars that the project has set itself, and whether the newest results reach them."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.engine.registry import OURS
from bench.engine.shapes import BACKWARD, BOTH, FORWARD
from bench.ops.inputs import DROPOUT_P

from .markdown import markdown
from .rows import BASE_LAYERS, LARGE_LAYERS, Rows

ROW_OPERATIONS = ("add+layer-norm", "bias+gelu", "embedding+layer-norm")
MIX, MIXES = "pairs-64k", ("pairs-64k", "xquad-64k")
UNBARRED = [
    {"operation": "attention", "shape": shape, "passes": passes} for shape in ("xquad-64k", "256-64k")
    for passes in (FORWARD, BOTH)
]  # fmt: skip
"""Cases of the kernels that have no bar, and that a short run must reach all the same."""
PADDING_FREE, BATCHES, SDPA, VARLEN = (
    "padding-free",
    "xquad-64-arrival",
    "padded, sdpa, compiled",
    "varlen_attn, compiled",
)
FLATTENED = "transformers, varlen_attn, compiled"
XLM_R = "XLM-R, sdpa"
CPU_ARRIVAL, CPU_SORTED, CPU_SKEWED = "xquad-16-arrival", "xquad-16-sorted", "1x500+15x20"
MASKED_LM, MASKED_BATCH, ONE_TEXT = "XLM-R masked LM", "xquad-8-batch", "1x8"
Value = Callable[[Rows], float]


class Goal(NamedTuple):
    """A bar: the quantity, its least value (greatest where not `more`), and its value in the rows.

    `value` raises KeyError where a case was not run.
    """

    what: str
    bar: float
    more: bool
    value: Value
    unit: str = "x"

    def row(self, rows: Rows) -> list[str] | None:
        """Cells of the table; None where a case was not run."""
        try:
            value = self.value(rows)
        except KeyError:
            return None
        met = value >= self.bar if self.more else value <= self.bar
        bar = f"{'at least' if self.more else 'at most'} {self.bar:g}{self.unit}"
        return [self.what, f"{value:.2f}{self.unit}", bar, "yes" if met else "no"]


def goals_table(part: str, rows: Rows) -> str:
    """Table of the goals of a part whose cases were run."""
    found = [goal.row(rows) for goal in GOALS[part]]
    return markdown(["what", "measured", "goal", "met"], [row for row in found if row is not None])


def _over(one: dict[str, Any], other: dict[str, Any], field: str = "time_s") -> float:
    return float(one[field] / other[field])


def _attention(passes: str) -> Value:
    return lambda rows: rows.kernel("attention", "512-64k", passes)["tflops"]


def _against_varlen(passes: str) -> Value:
    return lambda rows: rows.kernel("attention", MIX, passes, provider="varlen_attn")["ratio"]


def _dropout(*lengths: int) -> Value:
    """Time with dropout over the time without, for the worst length."""
    shapes = [f"{length}-64k" for length in lengths]
    return lambda rows: max(
        _over(rows.kernel("attention", shape, BOTH, DROPOUT_P), rows.kernel("attention", shape, BOTH))
        for shape in shapes
    )


def _copy_share(passes: str, dropout_p: float = 0.0) -> Value:
    """Share of the copy rate in percent, for the worst operation."""
    return lambda rows: min(
        100 * rows.kernel(operation, MIX, passes, dropout_p)["share_of_copy_rate"] for operation in ROW_OPERATIONS
    )


def _host(rows: Rows) -> float:
    """Host time over that of torch's unfused chain, for the worst operation."""
    return max(
        _over(rows.kernel(name, MIX, passes), rows.kernel(name, MIX, passes, provider="torch"), "host_s")
        for name in ("attention", *ROW_OPERATIONS)
        for passes in (FORWARD, BOTH)
    )


def _tokens(layers: int) -> Value:
    """Millions of tokens a second, for the worse of the two mixes."""
    return lambda rows: min(rows.model("inference", mix, layers)["real_tokens_per_s"] / 1e6 for mix in MIXES)


def _over_products(rows: Rows) -> float:
    return max(1 / rows.model("inference", shape, provider="matrix products")["ratio"] for shape in MIXES)


def _peer(operation: str, shape: str, provider: str) -> Value:
    return lambda rows: rows.model(operation, shape, provider=provider)["ratio"]


def _latency(rows: Rows) -> float:
    """Milliseconds with CUDA graphs, for the worst length."""
    graphs = f"{PADDING_FREE}, graphs"
    return max(1e3 * rows.model("latency", f"1x{length}", provider=graphs)["time_s"] for length in (32, 64, 128))


def _invariant(rows: Rows) -> float:
    """Percent that batch-invariant mode costs, for the worse of the two mixes."""
    found = [
        [
            rows.model("inference", mix, provider=f"{PADDING_FREE}, {name}")
            for name in ("batch-invariant", "packed input")
        ]
        for mix in MIXES
    ]
    return max(100 * (_over(one, other) - 1) for one, other in found)


def _strings(field: str, scale: float = 1.0) -> Value:
    """A field of `Encoder.encode` on a GPU."""
    return lambda rows: scale * rows.find(operation="engine", layers=BASE_LAYERS, provider="Encoder.encode")[field]


def _outside(rows: Rows) -> float:
    """Percent of the time from strings to vectors in which the model does nothing."""
    return 100 * (1 - 1 / _strings("ratio")(rows))


def _activations(provider: str) -> Value:
    """Percent of a peer's activation memory."""

    def share(rows: Rows) -> float:
        ours, theirs = (
            rows.model("training", BATCHES, provider=name)["memory_bytes"] for name in (PADDING_FREE, provider)
        )
        return 100 * _over(ours, theirs, "activations")

    return share


def _cpu(shape: str, provider: str) -> Value:
    return lambda rows: rows.find(operation="inference", shape=shape, provider=provider)["ratio"]


def _cpu_over_products(shape: str) -> Value:
    return lambda rows: 1 / _cpu(shape, "matrix products")(rows)


def _trained(shape: str, provider: str) -> Value:
    return lambda rows: rows.find(operation="training", shape=shape, provider=provider)["ratio"]


def _masked_loss(rows: Rows) -> float:
    """Time over that of the loss of whole logits, forward and backward."""
    fields = {"operation": "masked-LM loss", "shape": "xquad-batch", "passes": BOTH}
    return _over(rows.find(**fields, provider=OURS), rows.find(**fields, provider="torch"))


def _cpu_memory(rows: Rows) -> float:
    fields = {"operation": "training", "shape": CPU_SKEWED}
    ours, padded = (rows.find(**fields, provider=name)["memory_bytes"] for name in (PADDING_FREE, "padded"))
    return _over(ours, padded, "activations")


def _family(family: str, shape: str, provider: str = "transformers", layers: int = 2) -> Value:
    """A peer's time over that of the family made padding-free."""
    return lambda rows: rows.find(operation=family, shape=shape, layers=layers, provider=provider)["ratio"]


AGAINST_ERNIEM = [_family("XLM-R", shape, "ErnieM") for shape in (CPU_ARRIVAL, CPU_SORTED)]


def _slower(*peers: Value) -> Value:
    """Percent by which ours is slower, against the quickest peer."""
    return lambda rows: max(100 * (1 / peer(rows) - 1) for peer in peers)


def _loss_only(rows: Rows) -> float:
    theirs, ours = (
        _family(MASKED_LM, MASKED_BATCH, provider)(rows) for provider in ("transformers", f"{PADDING_FREE}, loss only")
    )
    return theirs / ours


SERVED = {"mix": "short and long texts", "short": "short texts"}
OPENVINO = ("openvino", "openvino, two streams")
SERVING: tuple[tuple[str, str, tuple[str, ...], tuple[float, float]], ...] = (
    ("Batches of 16 against OpenVINO at its own precision", "bfloat16", OPENVINO, (2.2, 1.3)),
    ("float32 against OpenVINO in float32", "float32", OPENVINO, (0, 1.1)),
    ("float32 against onnxruntime", "float32", ("onnxruntime",), (0, 1.4)),
    ("float32 against the model of transformers 4.40.2", "float32", ("padded",), (5.5, 2)),
)
"""What is measured; its dtype; peers, of which the best counts; bars in order of arrival and sorted, 0 for none."""
SENTENCE_TRANSFORMERS = tuple(
    f"sentence-transformers, {name}" for name in ("torch", "torch, bfloat16", "onnx", "openvino")
)


def _batches(mix: str, order: str, dtype: str, *peers: str) -> Value:
    """Time of the best of some peers over ours."""
    fields = {"operation": "batches", "shape": f"{mix}-16-{order}", "dtype": dtype}
    return lambda rows: min(rows.find(**fields, provider=peer)["ratio"] for peer in peers)


def _bfloat16(rows: Rows) -> float:
    own = f"{PADDING_FREE}, float32"
    return min(_batches(mix, order, "bfloat16", own)(rows) for mix in SERVED for order in ("arrival", "sorted"))


def _engine(rows: Rows) -> float:
    return 100 * (float(rows.find(operation="engine", provider="Encoder.encode")["ratio"]) - 1)


def _sentences(peers: tuple[str, ...]) -> Value:
    return lambda rows: min(rows.find(operation="sentences", provider=peer)["ratio"] for peer in peers)


def _server(field: str) -> Value:
    return lambda rows: float(rows.find(operation="server", provider="80% of capacity")[field])


GOALS = {
    "cpu": (
        Goal("Real tokens/s against the padded reference, unsorted", 5, True, _cpu(CPU_ARRIVAL, "padded")),
        Goal("The same, sorted by length", 1.2, True, _cpu(CPU_SORTED, "padded")),
        Goal("Time against its matrix products alone, unsorted", 1.3, False, _cpu_over_products(CPU_ARRIVAL)),
        Goal("The same, sorted by length", 1.3, False, _cpu_over_products(CPU_SORTED)),
        Goal(
            "Training: real tokens/s against the padded reference, unsorted", 5, True, _trained(CPU_ARRIVAL, "padded")
        ),
        Goal("The same, sorted by length", 1.2, True, _trained(CPU_SORTED, "padded")),
        Goal("Training: against transformers' XLM-R, unsorted", 4, True, _trained(CPU_ARRIVAL, XLM_R)),
        Goal("The same, sorted by length", 1.05, True, _trained(CPU_SORTED, XLM_R)),
        Goal("Masked-LM loss: time against whole logits of the same rows", 1.1, False, _masked_loss),
        Goal("Memory kept for backward against the padded reference, 1 long text of 16", 0.25, False, _cpu_memory, ""),
    ),
    "families": (
        Goal("XLM-R against transformers' SDPA, arrival order", 4, True, _family("XLM-R", CPU_ARRIVAL)),
        Goal("The same, sorted by length", 1.05, True, _family("XLM-R", CPU_SORTED)),
        Goal("XLM-R against ErnieM of the same sizes, slower by", 3, False, _slower(*AGAINST_ERNIEM), " %"),
        Goal("XLM against transformers, arrival order", 5, True, _family("XLM", CPU_ARRIVAL)),
        Goal("The same, sorted by length", 1.2, True, _family("XLM", CPU_SORTED)),
        *(
            Goal(f"{name}, {layers} layers, one text of 8 tokens, slower by", 10, False, _slower(one_text), " %")
            for name in ("XLM-R", "BERT", "XLM")
            for layers in (2, 12)
            for one_text in (_family(name, ONE_TEXT, layers=layers),)
        ),
        Goal("Masked-LM step against transformers, arrival order", 4, True, _family(MASKED_LM, MASKED_BATCH)),
        Goal("The same with loss_only", 4, True, _loss_only),
    ),
    "serving": (
        *(
            Goal(f"{what}, {SERVED[mix]}, {order}", bar, True, _batches(mix, order, dtype, *peers))
            for what, dtype, peers, bars in SERVING
            for order, bar in zip(("arrival", "sorted"), bars, strict=True)
            if bar
            for mix in SERVED
        ),
        Goal("bfloat16 against our float32, the least of these", 3, True, _bfloat16),
        Goal("Engine on 20,000 texts over the bare forwards of its batches, slower by", 10, False, _engine, " %"),
        Goal("20,000 texts against sentence-transformers, torch", 2.5, True, _sentences(SENTENCE_TRANSFORMERS[:1])),
        Goal("The same, against its best of torch, onnx, openvino", 1.3, True, _sentences(SENTENCE_TRANSFORMERS)),
        Goal("Server at 80 % of its capacity: requests that failed", 0, False, _server("failed"), ""),
        Goal("The same: p99 over the p50 at 10 %", 4, False, _server("ratio")),
    ),
    "kernels": (
        Goal("Attention forward, length 512", 300, True, _attention(FORWARD), " TFLOP/s"),
        Goal("Attention backward, length 512", 200, True, _attention(BACKWARD), " TFLOP/s"),
        Goal("Attention forward on sentence pairs against varlen_attn", 1.5, True, _against_varlen(FORWARD)),
        Goal("The same, forward and backward", 1.3, True, _against_varlen(BOTH)),
        Goal("Attention with dropout against without, 16 to 128", 1.25, False, _dropout(16, 32, 64, 128)),
        Goal("The same, 512", 1.5, False, _dropout(512)),
        Goal("Row operations, share of the copy rate, forward", 90, True, _copy_share(FORWARD), " %"),
        Goal("The same, backward", 80, True, _copy_share(BACKWARD), " %"),
        Goal("The same, forward with dropout", 80, True, _copy_share(FORWARD, DROPOUT_P), " %"),
        Goal("The same, backward with dropout", 70, True, _copy_share(BACKWARD, DROPOUT_P), " %"),
        Goal("Host time against torch's unfused chain", 1, False, _host),
    ),
    "models": (
        Goal("Inference, base, 64 k tokens", 2.7, True, _tokens(BASE_LAYERS), " M tokens/s"),
        Goal("The same against its matrix products alone", 1.35, False, _over_products),
        Goal("Inference, large, 64 k tokens", 0.77, True, _tokens(LARGE_LAYERS), " M tokens/s"),
        Goal("Base, 64 texts a batch, against eager padded", 8, True, _peer("inference", BATCHES, "padded")),
        Goal("The same against padded SDPA, compiled", 2.5, True, _peer("inference", BATCHES, SDPA)),
        Goal("The same against varlen_attn, compiled", 1.1, True, _peer("inference", BATCHES, VARLEN)),
        Goal("XLM-R made padding-free against eager padded", 8, True, _peer("XLM-R", BATCHES, "transformers, eager")),
        Goal("The same against padded SDPA, compiled", 2.5, True, _peer("XLM-R", BATCHES, "transformers, compiled")),
        Goal("The same against flattened input, varlen_attn, compiled", 1.15, True, _peer("XLM-R", BATCHES, FLATTENED)),
        Goal("4 k tokens against varlen_attn, compiled", 1.25, True, _peer("inference", "pairs-4k", VARLEN)),
        Goal("One sequence of 32 to 128 tokens, CUDA graphs", 0.35, False, _latency, " ms"),
        Goal("Strings to vectors, base", 2.0, True, _strings("real_tokens_per_s", 1e-6), " M tokens/s"),
        Goal("The same, time outside of the model", 10, False, _outside, " %"),
        Goal("Batch-invariant mode, 64 k tokens, slower by", 20, False, _invariant, " %"),
        Goal("Training step, 64 k tokens, against eager autocast", 4, True, _peer("training", MIX, "padded")),
        Goal("The same against padded SDPA, compiled", 1.3, True, _peer("training", MIX, SDPA)),
        Goal("Activation memory against eager autocast", 40, False, _activations("padded"), " %"),
        Goal("The same against padded SDPA, compiled", 80, False, _activations(SDPA), " %"),
    ),
}


class _Asked(Rows):
    """Rows that note what they are asked for."""

    def find(self, **fields: Any) -> dict[str, Any]:
        self.rows.append(fields)
        return defaultdict(lambda: 1.0, memory_bytes=defaultdict(lambda: 1.0))


def needed(part: str) -> list[dict[str, Any]]:
    """Fields of the rows that the goals of a part read."""
    asked = _Asked([])
    for goal in GOALS.get(part, ()):
        goal.value(asked)
    return asked.rows + (UNBARRED if part == "kernels" else [])
