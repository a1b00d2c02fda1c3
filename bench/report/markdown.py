"""Text that all reports share: tables and units."""

from collections.abc import Iterable


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """A markdown table, or nothing where there are no rows."""
    lines = list(rows)
    if not lines:
        return ""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def seconds(value: float) -> str:
    """A time with a fitting unit."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
