"""The GPU suite's part of README: goals and tables from the newest result of each part."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import work
from .gpu_shapes import DROPOUT_P, PARTS
from .markdown import Goal, goals_table, markdown, seconds

NOT_MEASURED = "Not yet measured on a GPU: `make gpu` measures, and `make bench-table` then shows it here."
ROW_OPERATIONS = ("add+layer-norm", "bias+gelu", "embedding+layer-norm")
LENGTHS = (16, 32, 64, 128, 256, 512)
MIX = "pairs-64k"
SHOWN_KERNELS = ("triton", "torch", "torch.compile", "varlen_attn", "padded sdpa, cudnn", "liger")
BASE_LAYERS, LARGE_LAYERS = 12, 24


class Rows:
    """The figures of a result, by what they are of."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def find(self, **fields: Any) -> dict[str, Any]:
        """The latest row with these fields.

        Raises:
            KeyError: there is none.
        """
        found = [row for row in self.rows if all(row.get(key) == value for key, value in fields.items())]
        if not found:
            raise KeyError(str(fields))
        return found[-1]

    def kernel(
        self, operation: str, shape: str, passes: str, dropout_p: float = 0.0, provider: str = "triton"
    ) -> dict[str, Any]:
        return self.find(operation=operation, shape=shape, passes=passes, dropout_p=dropout_p, provider=provider)

    def model(
        self, operation: str, shape: str, layers: int = BASE_LAYERS, provider: str = "padding-free"
    ) -> dict[str, Any]:
        return self.find(operation=operation, shape=shape, layers=layers, provider=provider, dtype="bfloat16")


def _attention_tflops(passes: str) -> Callable[[Rows], float]:
    return lambda rows: rows.kernel("attention", "512-64k", passes)["tflops"]


def _against_varlen(passes: str) -> Callable[[Rows], float]:
    return lambda rows: rows.kernel("attention", MIX, passes, provider="varlen_attn")["ratio"]


def _dropout_cost(*lengths: int) -> Callable[[Rows], float]:
    def cost(rows: Rows, length: int) -> float:
        shape = f"{length}-64k"
        with_dropout = rows.kernel("attention", shape, work.BOTH, DROPOUT_P)["time_s"]
        return float(with_dropout / rows.kernel("attention", shape, work.BOTH)["time_s"])

    return lambda rows: max(cost(rows, length) for length in lengths)


def _copy_share(passes: str, dropout_p: float = 0.0) -> Callable[[Rows], float]:
    """Of the operation that reaches least, in percent."""
    return lambda rows: min(
        100 * rows.kernel(operation, MIX, passes, dropout_p)["share_of_copy_rate"] for operation in ROW_OPERATIONS
    )


def _host(rows: Rows) -> float:
    """Of the operation that does worst."""

    def ratio(operation: str, passes: str) -> float:
        ours, theirs = (rows.kernel(operation, MIX, passes, provider=name) for name in ("triton", "torch"))
        return float(ours["host_s"] / theirs["host_s"])

    return max(
        ratio(operation, passes) for operation in ("attention", *ROW_OPERATIONS) for passes in (work.FORWARD, work.BOTH)
    )


def _tokens(layers: int) -> Callable[[Rows], float]:
    """Of the mix that does worse, in millions a second."""
    return lambda rows: min(
        rows.model("inference", f"{mix}-64k", layers)["real_tokens_per_s"] / 1e6 for mix in ("pairs", "xquad")
    )


def _over_products(rows: Rows) -> float:
    shapes = ("pairs-64k", "xquad-64k")
    return max(1 / rows.model("inference", shape, provider="matrix products")["ratio"] for shape in shapes)


def _peer(operation: str, shape: str, provider: str) -> Callable[[Rows], float]:
    return lambda rows: rows.model(operation, shape, provider=provider)["ratio"]


def _latency(rows: Rows) -> float:
    """With CUDA graphs, of the length that does worst, in milliseconds."""
    provider = "padding-free, graphs"
    return max(1e3 * rows.model("latency", f"1x{length}", provider=provider)["time_s"] for length in (32, 64, 128))


def _invariant(rows: Rows) -> float:
    """Of the mix that does worse, in percent."""
    provider, against = "padding-free, batch-invariant", "padding-free, packed input"
    times = [
        [rows.model("inference", f"{mix}-64k", provider=name)["time_s"] for name in (provider, against)]
        for mix in ("pairs", "xquad")
    ]
    return float(max(100 * (one / other - 1) for one, other in times))


def _activations(provider: str) -> Callable[[Rows], float]:
    def share(rows: Rows) -> float:
        ours, theirs = (
            rows.model("training", "xquad-64-arrival", provider=name) for name in ("padding-free", provider)
        )
        return float(100 * ours["memory_bytes"]["activations"] / theirs["memory_bytes"]["activations"])

    return share


BATCHES, SDPA, VARLEN = "xquad-64-arrival", "padded, sdpa, compiled", "varlen_attn, compiled"
GOALS = {
    "kernels": (
        Goal("Attention forward, length 512", 300, True, _attention_tflops(work.FORWARD), " TFLOP/s"),
        Goal("Attention backward, length 512", 200, True, _attention_tflops(work.BACKWARD), " TFLOP/s"),
        Goal("Attention forward on sentence pairs against varlen_attn", 1.5, True, _against_varlen(work.FORWARD), "x"),
        Goal("The same, forward and backward", 1.3, True, _against_varlen(work.BOTH), "x"),
        Goal("Attention with dropout against without, 16 to 128", 1.25, False, _dropout_cost(16, 32, 64, 128), "x"),
        Goal("The same, 512", 1.5, False, _dropout_cost(512), "x"),
        Goal("Row operations, share of the copy rate, forward", 90, True, _copy_share(work.FORWARD), " %"),
        Goal("The same, backward", 80, True, _copy_share(work.BACKWARD), " %"),
        Goal("The same, forward with dropout", 80, True, _copy_share(work.FORWARD, DROPOUT_P), " %"),
        Goal("The same, backward with dropout", 70, True, _copy_share(work.BACKWARD, DROPOUT_P), " %"),
        Goal("Host time against torch's unfused chain", 1, False, _host, "x"),
    ),
    "models": (
        Goal("Inference, base, 64 k tokens", 2.7, True, _tokens(BASE_LAYERS), " M tokens/s"),
        Goal("The same against its matrix products alone", 1.35, False, _over_products, "x"),
        Goal("Inference, large, 64 k tokens", 0.77, True, _tokens(LARGE_LAYERS), " M tokens/s"),
        Goal("Base, 64 texts a batch, against eager padded", 8, True, _peer("inference", BATCHES, "padded"), "x"),
        Goal("The same against padded SDPA, compiled", 2.5, True, _peer("inference", BATCHES, SDPA), "x"),
        Goal("The same against varlen_attn, compiled", 1.1, True, _peer("inference", BATCHES, VARLEN), "x"),
        Goal("4 k tokens against varlen_attn, compiled", 1.25, True, _peer("inference", "pairs-4k", VARLEN), "x"),
        Goal("One sequence of 32 to 128 tokens, CUDA graphs", 0.35, False, _latency, " ms"),
        Goal("Batch-invariant mode, 64 k tokens, slower by", 20, False, _invariant, " %"),
        Goal("Training step against eager autocast", 4, True, _peer("training", BATCHES, "padded"), "x"),
        Goal("The same against padded SDPA, compiled", 1.3, True, _peer("training", BATCHES, SDPA), "x"),
        Goal("Activation memory against eager autocast", 40, False, _activations("padded"), " %"),
        Goal("The same against padded SDPA, compiled", 80, False, _activations(SDPA), " %"),
    ),
}  # fmt: skip


def kernels_table(rows: Rows) -> str:
    """Device times at 64 k tokens, of the providers that matter, and how near ours comes to the ceiling."""
    head = ["operation", "shape", "pass", "dropout", *SHOWN_KERNELS, "TFLOP/s", "GB/s", "share of ceiling"]
    lines = []
    for row in rows.rows:
        if row["provider"] != "triton" or not row["shape"].endswith("-64k"):
            continue
        peers = {other["provider"]: other for other in rows.rows if other["case"] == row["case"]}
        times = [seconds(peers[name]["time_s"]) if name in peers else "" for name in SHOWN_KERNELS]
        rates = [
            f"{row['tflops']:.0f}" if row["flops"] else "",
            f"{row['gbps']:,.0f}",
            f"{row['share_of_ceiling']:.0%}",
        ]
        lines.append([row["operation"], row["shape"], row["passes"], f"{row['dropout_p']:g}", *times, *rates])
    return markdown(head, lines)


def models_table(rows: Rows) -> str:
    """Every figure of the models, with all that it depends on."""
    head = [
        "what", "model", "texts", "real of padded tokens", "provider", "dtype", "dropout", "optimizer", "time",
        "real tokens/s", "time to ours", "peak memory", "with weights and optimizer",
    ]  # fmt: skip
    lines = []
    for row in rows.rows:
        memory = row.get("memory_bytes")
        dtype = row["dtype"] if row["autocast"] is None else f"{row['weights_dtype']}, autocast {row['autocast']}"
        bytes_ = [f"{memory[name] / 2**20:,.0f} MiB" for name in ("peak", "total")] if memory else ["", ""]
        optimizer = {None: "", False: "out", True: "AdamW in"}[row["optimizer"]]
        lines.append(
            [row["operation"], f"{row['layers']} x {row['hidden_size']}", f"{row['shape']}, {row['order']}",
             f"{row['real_tokens']:,} of {row['padded_tokens']:,}", row["provider"], dtype, f"{row['dropout_p']:g}",
             optimizer, seconds(row["time_s"]), f"{row['real_tokens_per_s']:,.0f}",
             "" if row["ratio"] is None else f"{row['ratio']:.2f}", *bytes_]
        )  # fmt: skip
    return markdown(head, lines)


def newest(folder: Path, part: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest result of a part that is no dry run; None: there is none."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob(f"gpu-{part}-*.json"))]
    measured = [one for one in found if one[1]["device"] == "cuda" and not one[1]["tiny"] and one[1]["rows"]]
    return max(measured, key=lambda one: one[1]["date"]) if measured else None


def describe(path: Path, result: dict[str, Any]) -> str:
    """Where the figures come from, and what is missing."""
    versions, run = result["versions"], result["runs"][-1]
    commit = f"`{result['commit'][:12]}`" if result["commit"] else "unknown"
    reached = run["ceilings"]
    lacks = [f"{len(result[key])} {what}" for key, what in (("left_out", "cases left out"), ("failed", "failures"))
             if result[key]]  # fmt: skip
    return (
        f"Measured on {result['date'][:10]} by `python -m bench.gpu` ([{path.name}](bench/results/{path.name})): "
        f"{result['processor']}, driver {result['driver']}, torch {versions['torch']}, triton {versions['triton']}, "
        f"commit {commit}{', changed since' if result['dirty'] else ''}. In the same run: "
        f"{reached['matrix_tflops']:.0f} TFLOP/s (matrix product of 8192, bfloat16), {reached['copy_gbps']:,.0f} GB/s "
        f"(copy){''.join(f'; {one}' for one in lacks)}."
    )


def render(folder: Path) -> str:
    """The GPU suite's part."""
    parts = []
    for part, table in zip(PARTS, (kernels_table, models_table), strict=True):
        found = newest(folder, part)
        if found is not None:
            rows = Rows(found[1]["rows"])
            parts += [describe(*found), goals_table(GOALS[part], rows), table(rows)]
    return "\n\n".join(part for part in parts if part) or NOT_MEASURED
