"""Tables of serving on a CPU: batches, strings to vectors, a server under load."""

from .markdown import markdown, seconds
from .rows import Rows

TEXTS = {"engine": "from strings to vectors", "sentences": "beside sentence-transformers", "pipeline": "by a pipeline"}
MIXES = {"short": "short texts", "mix": "short and long texts"}
LATENCIES = ("time_s", "p90_s", "p99_s", "max_s")


def serving_tables(rows: Rows) -> str:
    """All that was measured, the parts that were."""
    return "\n\n".join(filter(None, (_batches(rows), _texts(rows), _server(rows))))


def _batches(rows: Rows) -> str:
    head = ["batches of 16", "real of padded tokens", "dtype", "provider", "real tokens/s", "time to ours"]
    lines = [
        [f"{MIXES.get(row['histogram'], row['histogram'])}, {row['order']}",
         f"{row['real_tokens']:,} of {row['padded_tokens']:,}", row["dtype"], row["provider"],
         f"{row['real_tokens_per_s']:,.0f}", _ratio(row["ratio"])]
        for row in rows.rows if row["operation"] == "batches"
    ]  # fmt: skip
    return markdown(head, lines)


def _texts(rows: Rows) -> str:
    head = ["texts", "real tokens", "provider", "dtype of ours", "texts/s", "time to the first of its kind"]
    lines = [
        [f"{row['sequences']:,}, {TEXTS[row['operation']]}", f"{row['real_tokens']:,}", row["provider"], row["dtype"],
         f"{row['sequences'] / row['time_s']:,.0f}", _ratio(row["ratio"])]
        for row in rows.rows if row["operation"] in TEXTS
    ]  # fmt: skip
    return markdown(head, lines)


def _server(rows: Rows) -> str:
    head = [
        "load", "requests/s sent", "answered", "failed", "p50", "p90", "p99", "longest", "p99 to p50 at 10 %",
        "cores of the server", "of the generator",
    ]  # fmt: skip
    lines = [
        [f"{row['provider']}, {row['seconds']:.0f} s", f"{row['rate_per_s']:,.0f}", f"{row['answered_per_s']:,.0f}",
         f"{row['failed']:,} of {row['requests']:,}", *(seconds(row[name]) for name in LATENCIES), _ratio(row["ratio"]),
         _ratio(row["server_cores"]), _ratio(row["generator_cores"])]
        for row in rows.rows if row["operation"] == "server"
    ]  # fmt: skip
    return markdown(head, lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
