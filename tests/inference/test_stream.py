"""Items through a task in windows, ahead of the model, in order."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.processes import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast.inference.stream import BATCHES_PER_WINDOW, ITEMS_PER_CALL, prefetch, stream


class Squares:
    """A task whose items are numbers; a number's size is itself."""

    def __init__(self) -> None:
        self.windows: list[list[int]] = []
        self.firsts: list[tuple[int, int]] = []
        self.tokenizes_in = self.computes_in = None

    def tokenize(self, items: list[int], first: int = 0) -> list[int]:
        self.tokenizes_in = threading.current_thread()
        self.firsts.append((first, len(items)))
        if -1 in items:
            raise ValueError(f"items[{first + items.index(-1)}] must be positive")
        return list(items)

    def size(self, tokens: int) -> int:
        return tokens

    def compute(self, tokens: list[int]) -> list[int]:
        self.computes_in = threading.current_thread()
        self.windows.append(tokens)
        return [number * number for number in tokens]


@given(st.lists(st.integers(0, 50), max_size=700), st.integers(1, 100))
@settings(max_examples=40)
def test_results_are_those_of_the_items_in_order(items: list[int], batch_tokens: int) -> None:
    task = Squares()
    results = [result for window in stream(task, iter(items), batch_tokens) for result in window]
    assert results == [number * number for number in items]
    assert [first for first, _ in task.firsts] == list(range(0, len(items), ITEMS_PER_CALL))
    for place, window in enumerate(task.windows[:-1]):
        assert sum(window) >= min(2**place, BATCHES_PER_WINDOW) * batch_tokens > sum(window[:-1])


def test_tokens_are_made_in_another_thread() -> None:
    task = Squares()
    list(stream(task, [1, 2, 3], 2))
    assert task.computes_in is threading.current_thread() is not task.tokenizes_in


def test_items_are_read_as_they_are_needed() -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield 1

    found = stream(Squares(), items(), ITEMS_PER_CALL)
    given = 0
    for _ in range(20):
        given += len(next(found))
        # A window that waits and one that is made, beside those that were given.
        assert read <= given + 2 * BATCHES_PER_WINDOW * ITEMS_PER_CALL + ITEMS_PER_CALL


def test_items_without_tokens_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erniem_fast.inference.stream.ITEMS_PER_WINDOW", 300)
    task = Squares()
    assert [len(found) for found in stream(task, [0] * 700, 100)] == [300, 300, 100]


def test_an_error_comes_after_the_results_before_it() -> None:
    found = stream(Squares(), [1] * ITEMS_PER_CALL + [2, -1], ITEMS_PER_CALL)
    assert next(found) == [1] * ITEMS_PER_CALL
    with pytest.raises(ValueError, match=rf"items\[{ITEMS_PER_CALL + 1}\] must be positive"):
        next(found)


def test_an_error_of_the_reader_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the file changed")

    with pytest.raises(OSError, match="the file changed"):
        list(stream(Squares(), items(), 100))


def test_a_reader_that_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    endless: Any = prefetch(iter(int, 1), threading.Event())
    assert [next(endless), next(endless)] == [0, 0]
    assert threading.active_count() == before + 1
    endless.close()
    for thread in threading.enumerate():
        if thread.name == "erniem-fast-tokenize":
            thread.join(timeout=PATIENCE)
    assert threading.active_count() == before


def test_what_nobody_asks_for_is_not_tokenized() -> None:
    """A window may hold hours of tokens, and the next stream shares the tokenizer."""
    task, goes_on = Squares(), threading.Event()

    def items() -> Iterator[int]:
        yield from [100] * ITEMS_PER_CALL
        assert goes_on.wait(PATIENCE)
        yield from [1] * (10 * ITEMS_PER_CALL)

    found = stream(task, items(), 1)
    next(found)
    found.close()
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "erniem-fast-tokenize":
            thread.join(timeout=PATIENCE)
    assert sum(length for _, length in task.firsts) == ITEMS_PER_CALL
