"""Requests that share calls of the model."""

import threading
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from helpers.fake_encoder import FakeEncoder, ids_of, vector_of
from helpers.processes import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast.inference.server.batcher import Batcher, BatcherClosedError, Call

WORDS = st.text("abcde", min_size=1, max_size=6)
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=6)


@pytest.fixture
def encoder() -> Any:
    return FakeEncoder()


@pytest.fixture
def batcher(encoder: Any) -> Any:
    made = Batcher(max_batch_tokens=64)
    yield made
    encoder.gate.set()
    made.close()


def submit(batcher: Batcher, task: Any, *texts: str) -> Future:
    return batcher.submit(task, task.tokenize(texts))


def hold(batcher: Batcher, encoder: Any, task: Any) -> Future:
    """Keep the model busy until the gate is opened."""
    encoder.gate.clear()
    held = submit(batcher, task, "held")
    assert encoder.entered.wait(PATIENCE)
    return held


def results(future: Future) -> list:
    return future.result(timeout=PATIENCE).results


@settings(max_examples=25)
@given(
    st.lists(st.tuples(TEXTS, st.booleans(), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(1, 100),
    st.integers(1, 4),
)
def test_each_caller_gets_exactly_its_own_results(
    requests: list[tuple[list[str], bool, int]], budget: int, threads: int
) -> None:
    encoder = FakeEncoder()
    tasks = {normalize: encoder.task("encode", normalize=normalize) for normalize in (False, True)}
    batcher = Batcher(budget)
    futures: dict[int, Future] = {}

    def call(first: int) -> None:
        for place in range(first, len(requests), threads):
            texts, normalize, luck = requests[place]
            with batcher.arriving():
                futures[place] = submit(batcher, tasks[normalize], *texts, *(["boom"] if luck == 0 else []))
            if luck == 1:
                futures[place].cancel()

    callers = [threading.Thread(target=call, args=(first,)) for first in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for place, (texts, normalize, luck) in enumerate(requests):
        if luck == 0:
            with pytest.raises(RuntimeError, match="on fire"):
                results(futures[place])
            continue
        try:
            found = results(futures[place])
        except CancelledError:
            assert luck == 1
            continue
        expected = [vector_of([0, *ids_of(text)[1:-1][:14], 1], normalize) for text in texts]
        assert np.array_equal(found, expected)
    batcher.close()
    assert batcher.queue_size == 0
    for computed in encoder.calls:
        assert len(computed) == 1 or sum(map(len, computed)) <= max(budget, 256)


def test_requests_that_wait_share_a_call(batcher: Batcher, encoder: Any) -> None:
    task = encoder.task("encode")
    held = hold(batcher, encoder, task)
    futures = [submit(batcher, task, f"text {number}") for number in range(5)]
    assert batcher.queue_size == 5
    encoder.gate.set()
    for future in (held, *futures):
        results(future)
    assert [len(call) for call in encoder.calls] == [1, 5]
    assert batcher.queue_size == 0


def test_tasks_do_not_share_a_call(batcher: Batcher, encoder: Any) -> None:
    one, other = encoder.task("encode"), encoder.task("encode", normalize=False)
    hold(batcher, encoder, one)
    futures = [submit(batcher, task, "a b") for task in (other, one, other, one)]
    encoder.gate.set()
    for future, normalize in zip(futures, (False, True, False, True), strict=True):
        assert np.array_equal(results(future), [vector_of(ids_of("a b"), normalize)])
    assert [len(call) for call in encoder.calls] == [1, 2, 2]


def test_a_call_holds_at_most_so_many_tokens(batcher: Batcher, encoder: Any) -> None:
    task = encoder.task("encode")
    hold(batcher, encoder, task)
    futures = [submit(batcher, task, *["a b c d e f"] * 10) for _ in range(2)]  # 8 tokens each
    encoder.gate.set()
    for future in futures:
        assert len(results(future)) == 10
    assert [len(call) for call in encoder.calls] == [1, 8, 8, 4]


def test_a_short_request_overtakes_a_long_one(batcher: Batcher, encoder: Any) -> None:
    task = encoder.task("encode")
    batcher.learn(Call(1, 1, 1.0))  # a slow model
    hold(batcher, encoder, task)
    long = submit(batcher, task, *["a b c d e f"] * 100)
    short = submit(batcher, task, "short")
    done = []
    long.add_done_callback(lambda future: done.append("long"))
    short.add_done_callback(lambda future: done.append("short"))
    encoder.gate.set()
    results(long)
    assert done == ["short", "long"]
    assert ids_of("short") in encoder.calls[1]


def test_an_idle_model_waits_for_those_that_arrive(encoder: Any) -> None:
    batcher, task = Batcher(64, max_wait=30.0), encoder.task("encode")
    with batcher.arriving():
        futures = [submit(batcher, task, "a")]
        assert not encoder.entered.wait(0.1)  # a model that does not wait has it at once
        futures.append(submit(batcher, task, "b"))
    for future in futures:
        results(future)
    assert len(encoder.calls) == 1
    batcher.close()


def test_it_waits_no_longer_than_told(encoder: Any) -> None:
    batcher, task = Batcher(64, max_wait=0.01), encoder.task("encode")
    with batcher.arriving():
        assert len(results(submit(batcher, task, "a"))) == 1
    batcher.close()


def test_nobody_arriving_is_not_waited_for(encoder: Any) -> None:
    batcher, task = Batcher(64, max_wait=1e6), encoder.task("encode")
    assert len(results(submit(batcher, task, "a"))) == 1
    batcher.close()


def test_a_failure_reaches_its_caller_alone(batcher: Batcher, encoder: Any) -> None:
    task = encoder.task("encode")
    hold(batcher, encoder, task)
    futures = [submit(batcher, task, text) for text in ("a", "boom", "b")]
    encoder.gate.set()
    assert np.array_equal(results(futures[0]), [vector_of(ids_of("a"))])
    assert np.array_equal(results(futures[2]), [vector_of(ids_of("b"))])
    with pytest.raises(RuntimeError, match="on fire"):
        results(futures[1])
    assert len(results(submit(batcher, task, "next"))) == 1


def test_what_is_no_exception_does_not_end_the_thread(batcher: Batcher, encoder: Any) -> None:
    class Panic(BaseException):
        """As pyo3's, of tokenizers."""

    broken, task = encoder.task("encode"), encoder.task("encode")

    def panic(tokens: Any) -> Any:
        raise Panic("in Rust")

    broken.compute = panic
    with pytest.raises(Panic):
        results(submit(batcher, broken, "a"))
    assert len(results(submit(batcher, task, "next"))) == 1


def test_a_clock_that_sees_no_time_pass(batcher: Batcher, encoder: Any) -> None:
    batcher.learn(Call(1, 10, 0.0))
    assert len(results(submit(batcher, encoder.task("encode"), "next"))) == 1


def test_a_model_that_gives_too_few_results_fails(batcher: Batcher, encoder: Any) -> None:
    task = encoder.task("encode")
    task.compute = lambda tokens: []
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        results(submit(batcher, task, "a"))


def test_a_cancelled_request_is_not_computed(batcher: Batcher, encoder: Any) -> None:
    task = encoder.task("encode")
    held = hold(batcher, encoder, task)
    gone, stays = submit(batcher, task, "gone"), submit(batcher, task, "stays")
    assert gone.cancel()
    encoder.gate.set()
    results(held)
    results(stays)
    assert encoder.calls[1:] == [[ids_of("stays")]]


def test_closing_fails_those_that_wait(encoder: Any) -> None:
    batcher, task = Batcher(64), encoder.task("encode")
    held = hold(batcher, encoder, task)
    waits = submit(batcher, task, "waits")
    closer = threading.Thread(target=batcher.close)
    closer.start()
    with pytest.raises(BatcherClosedError):
        results(waits)
    encoder.gate.set()
    closer.join(PATIENCE)
    with pytest.raises(BatcherClosedError):
        results(held)
    with pytest.raises(BatcherClosedError):
        submit(batcher, task, "late")


def test_the_backlog_is_counted_in_seconds(batcher: Batcher, encoder: Any) -> None:
    task = encoder.task("encode")
    batcher.learn(Call(1, 10, 1.0))
    hold(batcher, encoder, task)
    submit(batcher, task, "a b c", "a b c")
    assert batcher.backlog_seconds == pytest.approx(1.0)
