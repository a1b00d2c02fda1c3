"""Task: what an engine does with each item: tokens first, without the model, then results."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
Tokens = TypeVar("Tokens")


class Task(Protocol[Item, Tokens]):
    """From items to results, each item by itself: whichever share a call, a result is the same but for rounding.

    `tokenize` runs in another thread, ahead of the model; `compute` in one thread at a time. Items of several callers
    may share a `compute`.
    """

    def tokenize(self, items: Sequence[Item], first: int = 0) -> list[Tokens]:
        """Tokenize items; one result for each, in order.

        Args:
            items: any number of them.
            first: place of items[0] among all that the caller has, for messages.

        Raises:
            TypeError, ValueError: an item that is not as described, named by its place.
        """

    def size(self, tokens: Tokens) -> int:
        """Number of tokens that the model computes for an item."""

    def compute(self, tokens: Sequence[Tokens]) -> Any:
        """Run the model: a list or an array with one result for each item, in order."""


AnyTask = Task[Any, Any]
