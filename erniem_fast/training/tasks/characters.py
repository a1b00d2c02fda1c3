"""Characters of a text to its tokens."""

import numpy as np


def token_span(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """First and last token that hold one of the characters [start, end), or None if no token does.

    Where a span begins or ends inside a token, or one character is several tokens, they count whole: no narrower span
    of tokens holds all of its characters.

    Args:
        offsets: (length, 2) integers, first character and end of each token; tokens without characters are passed over.
        start, end: of the span.
    """
    first, last = offsets.T
    held = np.flatnonzero((first < end) & (start < last) & (first < last))
    return (int(held[0]), int(held[-1])) if len(held) else None


def has_characters(offsets: np.ndarray) -> bool:
    """True if some token holds characters."""
    return bool((offsets[:, 0] < offsets[:, 1]).any())
