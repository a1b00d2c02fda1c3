"""From a route to the engine: tokenize in threads, wait for the model, turn what goes wrong into statuses."""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..encoder_process import MANY_TASKS, EncoderProcess
from ..engine import Encoder
from ..task import AnyTask
from ..tokens import Row
from .batcher import Batcher, BatcherClosedError
from .errors import RequestError, backend, empty, invalid, stopping, too_large
from .metrics import Metrics
from .settings import ServerSettings

logger = logging.getLogger(__name__)

WARM_UP = "The server is ready once the model has read this."
PROBES: dict[str, dict[str, Any]] = {
    "encode": {},
    "token_embeddings": {},
    "classify": {},
    "rerank": {},
    "zero_shot": {"candidate_labels": ["label"]},
    "tag": {},
    "answer": {},
    "extract": {"schema": ["name"]},
}
"""Options with which a checkpoint is asked if it can do a task."""
CUT_AT_EITHER_SIDE = ("encode", "token_embeddings")
"""Tasks with the option `truncation`; the others cut at the end, or read long texts in windows."""
TEXT = re.compile(r"texts\[(\d+)\]")
"""How errors of the engine begin that are about one of the texts."""


class Results(NamedTuple):
    """What a request got from the model.

    Attributes:
        values: one for each item, in order.
        tokens: number of tokens of all items.
        headers: text-embeddings-inference's headers about the time it took, in ms.
    """

    values: list[Any]
    tokens: int
    headers: dict[str, str]


class Service:
    """The engine of a server, for any number of requests at once.

    Args:
        encoder: of the checkpoint.
        settings: limits.
        metrics: where calls of the model are counted.

    Attributes:
        dim: numbers in a vector.
        lacking: for each task that the checkpoint can't do, the reason.
    """

    def __init__(self, encoder: Encoder | EncoderProcess, settings: ServerSettings, metrics: Metrics) -> None:
        self.encoder, self.settings, self.metrics = encoder, settings, metrics
        self.batcher = Batcher(settings.max_batch_tokens, settings.max_wait_ms / 1000, metrics.observe_call)
        metrics.queue_size.set_function(lambda: self.batcher.queue_size)
        self._threads = ThreadPoolExecutor(settings.tokenization_workers, thread_name_prefix="tokenize")
        self._tasks: OrderedDict[Any, AnyTask] = OrderedDict()
        self.dim: int = encoder.task("encode").dim  # type: ignore[attr-defined]
        self.lacking: dict[str, str] = {}
        for name, options in PROBES.items():
            try:
                encoder.task(name, **options)
            except ValueError as error:
                self.lacking[name] = str(error)

    async def warm_up(self) -> None:
        """Run the model, so that the first request finds it ready."""
        task = await self._task("encode", {})
        await self._in_thread(lambda: task.compute(task.tokenize([WARM_UP] * 8)))

    async def run(
        self,
        name: str,
        items: Sequence[Any],
        argument: str,
        truncate: str | None = "right",
        most: int | None = None,
        **options: Any,
    ) -> Results:
        """Compute items of one request; token ids may stand for the text of "encode" and "token_embeddings".

        Args:
            name: of the engine's task.
            items: as the task takes them.
            argument: the body's name of them, for messages.
            truncate: side at which longer texts are cut; None: they are refused.
            most: items that a request may have; None: what the settings say.
            options: of the task.

        Raises:
            RequestError: 400, 413, 422, 424 or 503.
        """
        if name in self.lacking:
            raise backend(self.lacking[name])
        self.check_batch(items, argument, most)
        started = time.perf_counter()
        if truncate == "left" and name in CUT_AT_EITHER_SIDE:
            options["truncation"] = truncate
        task = await self._task(name, options)
        # A task of its own counts the texts of this request that were cut.
        counts = "truncation" not in options and truncate != "right"
        counting = await self._new_task(name, options) if counts else task
        with self.batcher.arriving():
            tokens = await self._in_thread(self._tokenize, counting, items, argument, truncate)
            if counting is not task:
                self._check_uncut(counting, argument, truncate)
            sizes = self._sizes(task, tokens, argument)
            tokenized = time.perf_counter()
            try:
                future = self.batcher.submit(task, tokens)
            except BatcherClosedError as error:
                raise stopping() from error
        try:
            done = await asyncio.wrap_future(future)
        except BatcherClosedError as error:
            raise stopping() from error
        except Exception as error:
            raise backend(f"the model failed: {' '.join(str(error).split()) or type(error).__name__}") from error
        for size in sizes:
            self.metrics.input_length.observe(size)
        self.metrics.tokenization.observe(tokenized - started)
        self.metrics.queue.observe(done.queued)
        self.metrics.inference.observe(done.computed)
        times = {
            "x-compute-tokens": sum(sizes),
            "x-total-time": 1000 * (time.perf_counter() - started),
            "x-tokenization-time": 1000 * (tokenized - started),
            "x-queue-time": 1000 * done.queued,
            "x-inference-time": 1000 * done.computed,
        }
        return Results(done.results, sum(sizes), {name: str(round(value)) for name, value in times.items()})

    async def tokenize(self, texts: Sequence[str], special: bool, prompt_name: str | None) -> list[list[dict]]:
        """Tokens of texts, with their places in the text that the model reads.

        Raises:
            RequestError: 400, 413 or 422.
        """
        self.check_batch(texts, "inputs")
        task: Any = await self._task("encode", {"prompt_name": prompt_name} if prompt_name else {})
        prompt = task.prompt
        return await self._in_thread(
            lambda: [_tokens(self.encoder.tokenizer, prompt + text if prompt_name else text, special) for text in texts]
        )

    async def decode(self, rows: Sequence[list[int]], skip_special: bool) -> list[str]:
        """Texts of token ids.

        Raises:
            RequestError: 400, 413 or 422.
        """
        self.check_batch(rows, "ids")
        for ids in rows:
            self._check_ids(ids, "ids")
        tokenizer = self.encoder.tokenizer
        return await self._in_thread(lambda: [tokenizer.decode(ids, skip_special_tokens=skip_special) for ids in rows])

    def check_batch(self, items: Sequence[Any], argument: str, most: int | None = None) -> None:
        """Refuse no items, an empty one, and too many.

        Raises:
            RequestError: 400 or 413.
        """
        most = self.settings.max_client_batch_size if most is None else most
        if len(items) > most:
            raise too_large(f"batch size {len(items)} > maximum allowed batch size {most}")
        if not items or not all(items):
            raise empty(argument)

    def check_dimensions(self, asked: int | None) -> None:
        """Refuse vectors longer than the model's.

        Raises:
            RequestError: 422.
        """
        if asked is not None and asked > self.dim:
            raise invalid(f"dimensions must be at most {self.dim}, got {asked}")

    def side(self, truncate: bool | None, direction: str) -> str | None:
        """The engine's `truncation` of what a body asks for."""
        asked = self.settings.auto_truncate if truncate is None else truncate
        return direction.lower() if asked else None

    def close(self) -> None:
        """End the threads; requests that wait fail."""
        self.batcher.close()
        self._threads.shutdown(cancel_futures=True)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, function, *arguments)
        except (ValueError, TypeError) as error:
            raise RequestError(422, "Tokenizer", " ".join(str(error).split())) from error

    async def _task(self, name: str, options: dict[str, Any]) -> AnyTask:
        """A task, the same one for the same options: only then are requests put together.

        Raises:
            RequestError: 422.
        """
        key = (name, repr(sorted(options.items())))
        if key not in self._tasks:
            made = await self._new_task(name, options)
            self._tasks.setdefault(key, made)  # another request may have come first
            if len(self._tasks) > MANY_TASKS:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(key)
        return self._tasks[key]

    async def _new_task(self, name: str, options: dict[str, Any]) -> AnyTask:
        """Make a task in a thread: it tokenizes labels, names and prompts."""
        made: AnyTask
        try:
            made = await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(self.encoder.task, name, **options)
            )
        except (ValueError, TypeError) as error:
            raise invalid(str(error)) from error
        return made

    def _tokenize(self, task: AnyTask, items: Sequence[Any], argument: str, truncate: str | None) -> list[Any]:
        places = [place for place, item in enumerate(items) if not isinstance(item, list)]
        try:
            found = iter(task.tokenize([items[place] for place in places]))
        except ValueError as error:
            text = TEXT.match(str(error))
            if text is None or argument not in ("inputs", "input"):
                raise
            raise ValueError(f"{argument}[{places[int(text[1])]}]{str(error)[text.end() :]}") from error
        return [self._row(item, argument, truncate) if isinstance(item, list) else next(found) for item in items]

    def _check_uncut(self, task: AnyTask, argument: str, truncate: str | None) -> None:
        """Refuse texts that the task has cut where they must not be, or not there."""
        cut = getattr(task, "truncated", 0)
        if cut and truncate is None:
            raise too_large(
                f"`{argument}` must have at most {self.encoder.max_tokens} tokens each, got {cut} with more"
            )
        if cut:
            raise invalid("truncation_direction must be Right for this route where texts are cut")

    def _sizes(self, task: AnyTask, tokens: Sequence[Any], argument: str) -> list[int]:
        """Tokens of each item; one that alone is more than a call of the model is refused: many labels, a book."""
        sizes = [task.size(item) for item in tokens]
        most = max(self.settings.max_batch_tokens, self.encoder.max_tokens)
        for place, size in enumerate(sizes):
            if size > most:
                raise too_large(f"{argument}[{place}] takes {size} tokens in all its rows; expected at most {most}")
        return sizes

    def _row(self, ids: list[int], argument: str, truncate: str | None) -> Row:
        self._check_ids(ids, argument)
        most = self.encoder.max_tokens
        if len(ids) > most and truncate is None:
            raise too_large(f"`{argument}` must have at most {most} tokens, got {len(ids)}")
        return Row(np.array(ids[-most:] if truncate == "left" else ids[:most], dtype=np.int32))

    def _check_ids(self, ids: list[int], argument: str) -> None:
        known = len(self.encoder.tokenizer)
        wrong = next((token for token in ids if token >= known), None)
        if wrong is not None:
            raise invalid(f"`{argument}` must have token ids below {known}, got {wrong}")


def _tokens(tokenizer: Any, text: str, special: bool) -> list[dict]:
    """Tokens of a text as `/tokenize` gives them; places are counted in characters."""
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True)
    pieces = tokenizer.convert_ids_to_tokens(found["input_ids"])
    tokens = []
    for token, piece, (start, stop), is_special in zip(
        found["input_ids"], pieces, found["offset_mapping"], found["special_tokens_mask"], strict=True
    ):
        place = (None, None) if is_special else (start, stop)
        shown = piece if is_special else text[start:stop]
        tokens.append({"id": token, "text": shown, "special": bool(is_special), "start": place[0], "stop": place[1]})
    return tokens
