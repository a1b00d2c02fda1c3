"""One question to one text: the windows that a UIE model reads, and the answer that its probabilities make."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .schema import Prompt
from .tokens import Tokens

Answer = dict[str, Any]
Boundary = tuple[int, float]
"""A token that starts or ends a span, and the probability that it does."""


class Window(NamedTuple):
    """Part of a text that the model reads at once.

    Attributes:
        start, stop: tokens that it reads.
        first, last: tokens among them that it decides on, without `last`.
    """

    start: int
    stop: int
    first: int
    last: int


def window_starts(length: int, room: int, stride: int) -> range:
    """First tokens of windows of `room` tokens that overlap by `stride` and cover `length` tokens."""
    return range(0, max(length - stride, 1), max(room - stride, 1))


def windows(length: int, room: int, stride: int) -> list[Window]:
    """Windows over a text: as few as `stride` allows and evenly spaced, so that all are full, but for a lone one.

    A token is decided on in the window in whose middle it lies most.

    Args:
        length: tokens of the text.
        room: tokens of a window.
        stride: tokens that consecutive windows share at least; at most half a window is.
    """
    if length <= room:
        return [Window(0, length, 0, length)]
    stride = min(stride, room // 2)
    count = -(-(length - stride) // (room - stride))
    starts = [index * (length - room) // (count - 1) for index in range(count)]
    cuts = [0, *((one + two + room) // 2 for one, two in pairwise(starts)), length]
    return [Window(start, start + room, *owned) for start, owned in zip(starts, pairwise(cuts), strict=True)]


def boundaries(probabilities: np.ndarray, threshold: float, first: int = 0) -> list[Boundary]:
    """Tokens whose probability exceeds the threshold, counted from `first`."""
    places = np.flatnonzero(probabilities > threshold)
    return list(zip((places + first).tolist(), probabilities[places].tolist(), strict=True))


def pair(starts: Sequence[Boundary], ends: Sequence[Boundary]) -> list[tuple[int, int, float]]:
    """Make spans by UIE's rule: an end goes with the nearest start at or before it, if no other end lies between.

    No start and no end is used twice, and no two spans overlap.

    Args:
        starts, ends: in the order of the text.

    Returns:
        First token, last token and probability of each span, in order; the probability is the product of both.
    """
    spans = []
    place = 0
    for end, end_probability in ends:
        nearest = None
        while place < len(starts) and starts[place][0] <= end:
            nearest = starts[place]
            place += 1
        if nearest is not None:
            spans.append((nearest[0], end, nearest[1] * end_probability))
    return spans


@dataclass(eq=False)
class Question:
    """A prompt about a text, and what was found so far.

    Attributes:
        tokens: the text's.
        prompt: the prompt.
        prompt_tokens: the prompt's.
        windows: over the text.
        threshold: what the probabilities of a start and of an end must exceed.
        starts, ends: boundaries in the text, in the order of the windows taken.
        votes: option that a window chose, and its probability.
    """

    tokens: Tokens
    prompt: Prompt
    prompt_tokens: Tokens
    windows: list[Window]
    threshold: float
    starts: list[Boundary] = field(default_factory=list)
    ends: list[Boundary] = field(default_factory=list)
    votes: list[tuple[int, float]] = field(default_factory=list)

    def take(self, window: Window, prompt: np.ndarray, text: np.ndarray) -> None:
        """Keep what the model found in a window.

        Args:
            window: one of `windows`.
            prompt: (2, tokens of the prompt) probabilities of starts and ends.
            text: (2, tokens of the window) likewise.
        """
        if self.prompt.options:
            self.votes += self._choose(prompt)
        else:
            owned = text[:, window.first - window.start : window.last - window.start]
            self.starts += boundaries(owned[0], self.threshold, window.first)
            self.ends += boundaries(owned[1], self.threshold, window.first)

    def _choose(self, prompt: np.ndarray) -> list[tuple[int, float]]:
        """The option that holds the most probable span of those in an option; none where there is no such span."""
        starts, ends = (boundaries(row, self.threshold) for row in prompt)
        chosen = []
        for first, last, probability in pair(starts, ends):
            option = self._option_at(first)
            if option is not None and option == self._option_at(last):
                chosen.append((option, probability))
        return [max(chosen, key=lambda vote: vote[1])] if chosen else []

    def _option_at(self, token: int) -> int | None:
        start, end = self.prompt_tokens.offsets[token]
        places = enumerate(self.prompt.options)
        # A token may hold more than characters of the option: "a]".
        return next((index for index, (first, stop) in places if start < stop and first < end), None)

    def answers(self) -> list[Answer]:
        """Answers from all windows."""
        return self._vote() if self.prompt.options else self._spans()

    def _vote(self) -> list[Answer]:
        """The option that most windows chose, of several the one with the highest sum; its mean probability."""
        ballots: dict[int, list[float]] = {}
        for option, probability in sorted(self.votes):  # windows come in an order that depends on the batches
            ballots.setdefault(option, []).append(probability)
        if not ballots:
            return []
        option = max(ballots, key=lambda option: (len(ballots[option]), sum(ballots[option])))
        return [{"text": self.prompt.names[option], "probability": sum(ballots[option]) / len(ballots[option])}]

    def _spans(self) -> list[Answer]:
        found: dict[tuple[int, int], float] = {}
        starts, offsets = [window.start for window in self.windows], self.tokens.offsets
        for first, last, probability in pair(sorted(self.starts), sorted(self.ends)):
            start, end = int(offsets[first, 0]), int(offsets[last, 1])
            # What no window holds as a whole was never seen as a whole.
            seen = last < self.windows[bisect_right(starts, first) - 1].stop
            if seen and start < end:
                # One character may be several tokens, and several spans.
                found[start, end] = max(probability, found.get((start, end), 0.0))
        return [
            {"text": self.tokens.text[start:end], "start": start, "end": end, "probability": probability}
            for (start, end), probability in found.items()
        ]
