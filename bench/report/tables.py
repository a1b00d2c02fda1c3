"""Tables of the newest results: the short one of README, the long ones of docs/benchmarks.md."""

from pathlib import Path

from bench.engine.registry import OURS

from .goals import CPU_ARRIVAL, CPU_SORTED, goals_table
from .markdown import markdown, seconds
from .rows import PARTS, Rows, newest

NOT_MEASURED = "Not yet measured on a GPU: `make gpu` measures, and `make bench-report` then shows it here."
SHOWN_KERNELS = (OURS, "torch", "torch.compile", "varlen_attn", "padded sdpa, cudnn", "liger")
SHAPES = {
    CPU_ARRIVAL: "16 texts a batch, as they arrive", CPU_SORTED: "16 texts a batch, sorted by length",
    "xquad-64-arrival": "64 texts a batch, as they arrive", "xquad-64-sorted": "64 texts a batch, sorted by length",
}  # fmt: skip
PEERS = {
    "padded": "padded, as 4.40.2", "padded, sdpa": "padded, SDPA", "padded, sdpa, compiled": "padded, SDPA, compiled",
    "varlen_attn, compiled": "varlen_attn, compiled", "XLM-R, sdpa": "XLM-R, SDPA",
}  # fmt: skip


def ratios_table(rows: Rows) -> str:
    """Inference on real lengths: ours in real tokens a second, the peers' times over ours."""
    chosen = Rows(row for row in rows.rows if row["operation"] == "inference" and row["shape"] in SHAPES)
    peers = [name for name in PEERS if name in chosen.providers()]
    lines = []
    for row in chosen.rows:
        if row["provider"] != "padding-free":
            continue
        ratios = {one["provider"]: f"{one['ratio']:.1f}x" for one in chosen.rows if one["case"] == row["case"]}
        model = f"{row['layers']} layers of {row['hidden_size']}"
        ours = f"{row['real_tokens_per_s']:,.0f} tokens/s"
        lines.append([SHAPES[row["shape"]], model, ours, *(ratios.get(name, "") for name in peers)])
    return markdown(["texts", "model", "padding-free", *(PEERS[name] for name in peers)], lines)


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


TABLES = {"cpu": cases_table, "kernels": kernels_table, "models": cases_table}


def summary(folder: Path) -> str:
    """README's part: for the CPU and for a GPU one line of source and the table of ratios.

    Raises:
        FileNotFoundError: there is no result of a CPU.
    """
    parts = []
    for part in ("cpu", "models"):
        found = newest(folder, part)
        if found is None and part == "cpu":
            raise FileNotFoundError(f"no results in {folder}: run `python -m bench.run` first")
        parts += [NOT_MEASURED] if found is None else [ratios_table(found.rows), found.describe("bench/results")]
    return "\n\n".join(filter(None, parts))


def details(folder: Path) -> str:
    """Part of docs/benchmarks.md: for each part of the suite its source, goals and every figure."""
    parts = []
    for part in PARTS:
        found = newest(folder, part)
        if found is not None:
            rows = found.rows
            parts += [f"### {part}", found.describe("../bench/results"), goals_table(part, rows), TABLES[part](rows)]
    if not any(newest(folder, part) for part in PARTS[1:]):
        parts.append(NOT_MEASURED)
    return "\n\n".join(filter(None, parts))
