"""Tables of the newest results: the short one of README, the long ones of docs/benchmarks.md."""

from pathlib import Path

from bench.engine.registry import CPU_PARTS, OURS

from .goals import CPU_ARRIVAL, CPU_SORTED, MASKED_BATCH, ONE_TEXT, goals_table
from .markdown import markdown, seconds
from .rows import PARTS, Rows, newest
from .serving import serving_tables
from .training import training_tables

NOT_MEASURED = "Not yet measured on a GPU: `make gpu` measures, and `make bench-report` then shows it here."
SHOWN_KERNELS = (OURS, "torch", "torch.compile", "varlen_attn", "padded sdpa, cudnn", "liger")
SHAPES = {
    CPU_ARRIVAL: "16 texts a batch, as they arrive", CPU_SORTED: "16 texts a batch, sorted by length",
    ONE_TEXT: "one text of 8 tokens", MASKED_BATCH: "8 texts, as they arrive",
    "xquad-64-arrival": "64 texts a batch, as they arrive", "xquad-64-sorted": "64 texts a batch, sorted by length",
}  # fmt: skip
PEERS = {
    "padded": "padded, as 4.40.2", "padded, sdpa": "padded, SDPA", "padded, sdpa, compiled": "padded, SDPA, compiled",
    "varlen_attn, compiled": "varlen_attn, compiled", "XLM-R, sdpa": "XLM-R, SDPA",
}  # fmt: skip
OPERATIONS = {"inference": "", "training": "training, "}
"""Operations on ErnieM that README shows, and what it calls them."""
FAMILY_PEERS = {"transformers": "transformers", "ErnieM": "ErnieM", "padding-free, loss only": "with `loss_only`"}


def ratios_table(rows: Rows) -> str:
    """Inference and training on real lengths: ours in real tokens a second, the peers' times over ours."""
    shown = [row for row in rows.rows if row["operation"] in OPERATIONS and row["shape"] in SHAPES]
    operations, shapes = list(OPERATIONS), list(SHAPES)  # a run that was gone on with has its rows in another order
    shown.sort(key=lambda row: (operations.index(row["operation"]), shapes.index(row["shape"])))
    return _ratios(Rows(shown), PEERS)


def families_table(rows: Rows) -> str:
    """Other families, made padding-free: ours in real tokens a second, the peers' times over ours."""
    shown = (row for row in rows.rows if row["shape"] != ONE_TEXT or row["layers"] > 2)
    return _ratios(Rows(shown), FAMILY_PEERS, 2)


def _ratios(chosen: Rows, labels: dict[str, str], digits: int = 1) -> str:
    peers = [name for name in labels if name in chosen.providers()]
    lines = []
    for row in chosen.rows:
        if row["provider"] != "padding-free":
            continue
        ratios = {one["provider"]: f"{one['ratio']:.{digits}f}x" for one in chosen.rows if one["case"] == row["case"]}
        before = OPERATIONS.get(row["operation"], f"{row['operation']}, ")
        model = f"{before}{row['layers']} layers of {row['hidden_size']}"
        ours = f"{row['real_tokens_per_s']:,.0f} tokens/s"
        lines.append([SHAPES[row["shape"]], model, ours, *(ratios.get(name, "") for name in peers)])
    return markdown(["texts", "model", "padding-free", *(labels[name] for name in peers)], lines)


def kernels_table(rows: Rows) -> str:
    """Device times at 64 k tokens of the providers that matter, and our shares of the ceiling."""
    head = ["operation", "shape", "pass", "dropout", *SHOWN_KERNELS, "TFLOP/s", "GB/s", "share of ceiling"]
    lines = []
    for row in rows.rows:
        if row["provider"] != OURS or not row["shape"].endswith("-64k"):
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


def cases_table(rows: Rows) -> str:
    """Every figure, with all that it depends on."""
    head = [
        "what", "model", "texts", "real of padded tokens", "provider", "dtype", "dropout", "optimizer", "median",
        "10% to 90%", "real tokens/s", "time to ours", "activations", "peak memory",
    ]  # fmt: skip
    lines = []
    for row in rows.rows:
        memory = row.get("memory_bytes", {})
        autocast = row.get("autocast")
        dtype = row["dtype"] if autocast is None else f"{row['weights_dtype']}, autocast {autocast}"
        sizes = [f"{memory[name] / 2**20:,.1f} MiB" if name in memory else "" for name in ("activations", "peak")]
        optimizer = {None: "", False: "out", True: "AdamW in"}[row.get("optimizer")]
        lines.append(
            [row["operation"], f"{row['layers']} x {row['hidden_size']}", f"{row['shape']}, {row['order']}",
             f"{row['real_tokens']:,} of {row['padded_tokens']:,}", row["provider"], dtype, f"{row['dropout_p']:g}",
             optimizer, seconds(row["time_s"]), f"{seconds(row['p10_s'])} to {seconds(row['p90_s'])}",
             f"{row['real_tokens_per_s']:,.0f}", "" if row["ratio"] is None else f"{row['ratio']:.2f}", *sizes]
        )  # fmt: skip
    return markdown(head, lines)


TABLES = {
    "cpu": cases_table,
    "families": cases_table,
    "serving": serving_tables,
    "kernels": kernels_table,
    "models": cases_table,
}


def summary(folder: Path) -> str:
    """README's part: for the CPU, other families there and a GPU a table of ratios and one line of source.

    Raises:
        FileNotFoundError: there is no result of a CPU.
    """
    parts = []
    for part, table in (("cpu", ratios_table), ("families", families_table), ("models", ratios_table)):
        found = newest(folder, part)
        if found is None and part == "cpu":
            raise FileNotFoundError(f"no results in {folder}: run `python -m bench.run` first")
        if found is not None:
            parts += [table(found.rows), found.describe("bench/results")]
        elif part == "models":
            parts.append(NOT_MEASURED)
    return "\n\n".join(filter(None, parts))


def details(folder: Path) -> str:
    """Part of docs/benchmarks.md: for each part of the suite its source, goals and every figure; the training runs."""
    parts = []
    for part in PARTS:
        found = newest(folder, part)
        if found is not None:
            rows = found.rows
            parts += [f"### {part}", found.describe("../bench/results"), goals_table(part, rows), TABLES[part](rows)]
    parts.append(training_tables(folder))
    if not any(newest(folder, part) for part in PARTS if part not in CPU_PARTS):
        parts.append(NOT_MEASURED)
    return "\n\n".join(filter(None, parts))
