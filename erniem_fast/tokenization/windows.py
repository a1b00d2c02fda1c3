"""Windows of texts that are longer than a row. Needs no torch.

They are those of the library `tokenizers`, but for which text of a pair an odd token is left to: as in transformers
4.40.2, to the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .alignment import Span

N_SPECIAL = {False: 2, True: 4}
"""Special tokens of a row: of a text, and of a pair."""


class Windows(NamedTuple):
    """The tokens of each row, as places among the tokens of all texts.

    Attributes:
        samples: (n_rows,) number of the text, or pair, in the batch.
        spans: (n_rows, 4) where its tokens start and end, and those of the pair's second text.
        is_pair: (n_rows,) bool.
    """

    samples: np.ndarray
    spans: np.ndarray
    is_pair: np.ndarray


@dataclass(frozen=True)
class Truncation:
    """What is done with a text that is too long.

    Attributes:
        strategy: "longest_first", "only_first" or "only_second".
        max_length: tokens of a row, special ones included.
        special: a row has special tokens.
        stride: tokens that a window shares with the one before.
        side: "right" or "left", where tokens are cut.
        all_windows: return all windows of a text, not the first only.

    Raises:
        ValueError: a value is not accepted.
    """

    strategy: str
    max_length: int
    special: bool
    stride: int
    side: str
    all_windows: bool

    def __post_init__(self) -> None:
        if self.stride < 0:
            raise ValueError(f"stride={self.stride}: expected at least 0")
        if self.all_windows and self.stride >= max(self.max_length, 1):
            raise ValueError(f"stride={self.stride}: expected less than max_length={self.max_length}")

    def windows(self, n_first: int, n_second: int | None) -> list[tuple[int, int, int, int]]:
        """Windows of a text of so many tokens, or of a pair: start and end in the first, and in the second."""
        n_special = N_SPECIAL[n_second is not None] if self.special else 0
        room = self.max_length - n_special
        if room < 0:
            raise ValueError(f"max_length={self.max_length}: expected at least {n_special}, the special tokens")
        second = n_second or 0
        if n_first + second <= room:
            return [(0, n_first, 0, second)]
        if self.strategy == "longest_first":
            # As in transformers 4.40.2: tokens go one by one, of the longer text, of equal ones from the second.
            keep_first = min(n_first, max(room - second, (room + 1) // 2))
            keep_second = room - keep_first
        elif self.strategy == "only_first":
            keep_first, keep_second = room - second, second
            self._check_room("first", keep_first, "second", second, n_special)
        else:
            if n_second is None:
                raise ValueError(f"truncation='only_second': expected a pair of texts, got one of {n_first} tokens")
            keep_first, keep_second = n_first, room - n_first
            self._check_room("second", keep_second, "first", n_first, n_special)
        firsts = self._spans(n_first, keep_first)
        seconds = self._spans(second, keep_second)
        pairs = [(firsts[0], seconds[0]), *((a, b) for a in firsts[1:] for b in seconds)]
        pairs += [(firsts[0], b) for b in seconds[1:]]
        return [(*a, *b) for a, b in pairs]

    def _check_room(self, name: str, room: int, other: str, n_other: int, n_special: int) -> None:
        if room <= 0:
            held = (
                f"the {other} text's {n_other} and {n_special} special ones" if n_other else f"{n_special} special ones"
            )
            raise ValueError(
                f"max_length={self.max_length} with truncation='only_{name}': expected more tokens than {held}, "
                f"which leave none for the {name} text; shorten the {other} text or raise max_length"
            )

    def _spans(self, n: int, size: int) -> list[Span]:
        """Spans of `size` of `n` tokens, each of which shares `stride` with the one before."""
        if n <= size:
            return [(0, n)]
        if not self.all_windows:
            return [(0, size)] if self.side == "right" else [(n - size, n)]
        if size == 0:
            raise ValueError(
                f"max_length={self.max_length}: expected more than the special tokens and one of each text, for windows"
            )
        if self.stride >= size:
            raise ValueError(
                f"stride={self.stride}: expected less than the {size} tokens of a text that max_length="
                f"{self.max_length} leaves room for beside special tokens and a pair's other text"
            )
        starts = range(0, n - self.stride, size - self.stride)
        spans = [(start, min(start + size, n)) for start in starts]
        return spans if self.side == "right" else [(n - end, n - start) for start, end in spans]


def windows_of(
    bounds: np.ndarray, n_samples: int, seconds: Sequence[int | None] | None, truncation: Truncation | None
) -> Windows:
    """Rows of a batch.

    Args:
        bounds: (n_texts + 1,) where the tokens of each text begin; the first texts come first.
        n_samples: number of texts, or pairs.
        seconds: number of each sample's second text, None without one; None: no sample has one.
        truncation: what to do with what is too long; None: nothing.

    Raises:
        ValueError: a text leaves no room for the other one, or `truncation.stride` leaves none for new tokens.
    """
    samples = np.arange(n_samples)
    spans = np.zeros((n_samples, 4), dtype=np.int64)
    spans[:, 0], spans[:, 1] = bounds[:n_samples], bounds[1 : n_samples + 1]
    is_pair = np.zeros(n_samples, dtype=bool)
    if seconds is not None:
        is_pair[:] = [second is not None for second in seconds]
        pair = np.array([second for second in seconds if second is not None], dtype=np.int64)
        spans[is_pair, 2], spans[is_pair, 3] = bounds[pair], bounds[pair + 1]
    if truncation is None:
        return Windows(samples, spans, is_pair)
    special = np.where(is_pair, N_SPECIAL[True], N_SPECIAL[False]) if truncation.special else 0
    firsts, lengths = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    too_long = np.flatnonzero(firsts + lengths + special > truncation.max_length)
    counts = np.ones(n_samples, dtype=np.int64)
    cut: list[np.ndarray] = []
    for i in too_long:
        windows = truncation.windows(int(firsts[i]), int(lengths[i]) if is_pair[i] else None)
        counts[i] = len(windows)
        cut.append(np.array(windows) + spans[i, [0, 0, 2, 2]])
    samples = np.repeat(samples, counts)
    spans = spans[samples]
    if cut:
        spans[np.isin(samples, too_long)] = np.concatenate(cut)
    return Windows(samples, spans, is_pair[samples])
