"""Dynamic batching: the items of several requests in one call of the model, which runs in one thread.

batcher = Batcher(max_batch_tokens=16384)
with batcher.arriving():                      # tokenizing: an idle model may wait for it
    tokens = task.tokenize(texts)
    future = batcher.submit(task, tokens)
results = future.result()                     # one for each item, in order

Requests are served by the time at which they should be done: arrival, and a few times what their own tokens take. So a
short request overtakes a long one that came a little earlier, and none waits forever. A long one is computed in parts.
"""

import logging
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..encoder_process import ProcessEndedError
from ..task import AnyTask

logger = logging.getLogger(__name__)

STRETCH = 4.0
"""So many times its own computing time is what a request may take before it is late."""
SECONDS_PER_CALL = 0.1
"""What a call of the model should take at most: a request that comes meanwhile waits for its end."""
MIN_TOKENS_PER_CALL = 256
MEMORY = 0.95
"""Weight of the past when the speed is measured anew, for each call."""


class BatcherClosedError(RuntimeError):
    """The batcher takes no more requests, or was closed before this one was computed."""


class Done(NamedTuple):
    """What a request got.

    Attributes:
        results: one for each item, in order.
        queued: seconds before its first item was computed.
        computed: seconds of the calls of the model that it took part in.
    """

    results: list[Any]
    queued: float
    computed: float


class Call(NamedTuple):
    """A call of the model, for metrics."""

    items: int
    tokens: int
    seconds: float


@dataclass(order=True)
class _Request:
    """Items of one caller; ordered by when they should be done."""

    due: float
    number: int
    task: AnyTask = field(compare=False)
    tokens: Sequence[Any] = field(compare=False)
    sizes: list[int] = field(compare=False)
    arrived: float = field(compare=False)
    taken: int = field(compare=False, default=0)
    future: "Future[Done]" = field(compare=False, default_factory=Future)
    results: list[Any] = field(compare=False, default_factory=list)
    started: float = field(compare=False, default=0.0)
    computed: float = field(compare=False, default=0.0)


class _Share(NamedTuple):
    """The items of a request that a call computes."""

    request: _Request
    tokens: Sequence[Any]


class Batcher:
    """A thread that runs the model, and the requests that wait for it.

    Args:
        max_batch_tokens: most tokens of a call; a longer item makes a call alone.
        max_wait: seconds for which an idle model waits for requests announced by `arriving`, counted from the
            arrival of the first that is there. A request that nobody follows is computed at once.
        observe: called after each call of the model, in the model's thread.
    """

    def __init__(
        self, max_batch_tokens: int, max_wait: float = 0.005, observe: Callable[[Call], None] = lambda call: None
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_wait = max_wait
        self._observe = observe
        self._waiting: list[_Request] = []
        self._arriving = 0
        self._number = 0
        self._closed = False
        self._changed = threading.Condition()
        self._tokens, self._seconds = 0.0, 0.0
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Announce a request that is being tokenized."""
        with self._changed:
            self._arriving += 1
        try:
            yield
        finally:
            with self._changed:
                self._arriving -= 1
                self._changed.notify()

    def submit(self, task: AnyTask, tokens: Sequence[Any]) -> "Future[Done]":
        """Queue the items of one request. Cancelling the future takes those that are not computed yet away.

        Args:
            task: requests of the same object are put together.
            tokens: what its `tokenize` gave, at least one.

        Raises:
            BatcherClosedError: after `close`.
        """
        sizes = [task.size(item) for item in tokens]
        now = time.monotonic()
        with self._changed:
            if self._closed:
                raise BatcherClosedError("the server stops")
            self._number += 1
            due = now + STRETCH * self._expected_seconds(sum(sizes))
            request = _Request(due, self._number, task, tokens, sizes, now)
            insort(self._waiting, request)
            self._changed.notify()
        return request.future

    @property
    def queue_size(self) -> int:
        """Items that wait."""
        with self._changed:
            return sum(len(request.sizes) - request.taken for request in self._waiting)

    @property
    def backlog_seconds(self) -> float:
        """Time that the model will take for what waits, by its speed so far."""
        with self._changed:
            return self._expected_seconds(sum(sum(request.sizes[request.taken :]) for request in self._waiting))

    def learn(self, call: Call) -> None:
        """Take the speed of a call into account: it decides what a call may hold, and which request goes first."""
        with self._changed:
            self._tokens = MEMORY * self._tokens + call.tokens
            self._seconds = MEMORY * self._seconds + call.seconds

    def close(self) -> None:
        """Fail what waits, and end the thread after the call that it is in."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify()
        for request in waiting:
            _settle(request, BatcherClosedError("the server stops"))
        self._thread.join()

    def _expected_seconds(self, tokens: int) -> float:
        return tokens * self._seconds / self._tokens if self._tokens else 0.0

    def _serve(self) -> None:
        while shares := self._next():
            self._compute(shares)

    def _next(self) -> list[_Share]:
        """Wait for the next call's items; none once the batcher is closed."""
        with self._changed:
            while not self._closed:
                self._waiting = [request for request in self._waiting if not request.future.done()]
                if not self._waiting:
                    self._changed.wait()
                    continue
                shares, is_full = self._choose()
                patience = min(request.arrived for request in self._waiting) + self.max_wait - time.monotonic()
                if self._arriving and not is_full and patience > 0:
                    self._changed.wait(patience)
                    continue
                for share in shares:
                    share.request.taken += len(share.tokens)
                return shares
        return []

    def _choose(self) -> tuple[list[_Share], bool]:
        """Items for a call, the most urgent first, and whether it has no room for more."""
        limit = self.max_batch_tokens
        if self._tokens and self._seconds:  # a coarse clock may see no time pass
            limit = min(limit, max(MIN_TOKENS_PER_CALL, int(SECONDS_PER_CALL * self._tokens / self._seconds)))
        shares: list[_Share] = []
        total, is_full = 0, False
        for request in self._waiting:
            if request.task is not self._waiting[0].task:
                continue
            last = request.taken
            while last < len(request.sizes) and (not total or total + request.sizes[last] <= limit):
                total += request.sizes[last]
                last += 1
            is_full = is_full or last < len(request.sizes)
            if last > request.taken:
                shares.append(_Share(request, request.tokens[request.taken : last]))
        return shares, is_full

    def _compute(self, shares: list[_Share]) -> None:
        """Run the model; where a call of several requests fails, once more for each alone."""
        tokens = [item for share in shares for item in share.tokens]
        task, started = shares[0].request.task, time.monotonic()
        try:
            results = list(task.compute(tokens))
            if len(results) != len(tokens):
                raise RuntimeError(f"the model gave {len(results)} results for {len(tokens)} items")
        except BaseException as error:  # a panic of Rust is no Exception, and would end the thread
            if len(shares) > 1:
                for share in shares:
                    self._compute([share])
                return
            where = None if isinstance(error, ProcessEndedError) else error
            logger.warning("A call of the model failed: %s", error, exc_info=where)
            _settle(shares[0].request, error)
            return
        call = Call(len(tokens), sum(task.size(item) for item in tokens), time.monotonic() - started)
        self.learn(call)
        self._observe(call)
        for share in shares:
            request = share.request
            request.started = request.started or started
            request.computed += call.seconds
            request.results += results[: len(share.tokens)]
            del results[: len(share.tokens)]
            if len(request.results) == len(request.sizes):
                _settle(request)


def _settle(request: _Request, error: BaseException | None = None) -> None:
    """Give a caller its results, or the error; a caller that is gone gets nothing."""
    with suppress(InvalidStateError):
        if error is not None:
            request.future.set_exception(error)
        else:
            request.future.set_result(Done(request.results, request.started - request.arrived, request.computed))
