"""Batches of several pre-training objectives, mixed by weights, each of about the same number of tokens.

mixture = Mixture([Part("tlm", TLM(tokenizer), stream, 1.0, max_tokens=508)], tokenizer, batch_tokens=4096, seed=0)
for batch in mixture:
    loss = model(**batch.inputs).loss
"""

import queue
import random
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor

from ..files.errors import InputError
from .streams import Sample, Stream

Ids = list[int]
Tokens = Ids | tuple[Ids, Ids]
"""Token ids without special tokens, of a text or of a pair."""
CHUNK = 128
"""Samples that are tokenized at once."""
T = TypeVar("T")


class Objective(Protocol):
    """What makes a masked batch of token ids."""

    @property
    def num_cut_samples(self) -> int:
        """Samples so far that were longer than the objective takes."""

    def __call__(self, samples: Sequence[Any], generator: np.random.Generator) -> dict[str, Any]:
        """A batch for the model, flattened, with `labels`; masks are drawn from the generator."""


@dataclass(frozen=True)
class Part:
    """An objective and what it learns from.

    Attributes:
        name: of the objective.
        objective: makes a batch of tokenized samples.
        stream: samples, of texts or of pairs; no other part reads it.
        weight: share of the batches, relative to the other parts'.
        max_tokens: most tokens of a text, special ones excluded; longer ones are split. The objective cuts pairs.
        growth: tokens of the batch that a token of a sample becomes.
        special_tokens: tokens that the objective adds to a sample.
        languages: ids of the languages, by their names in the samples, for an objective that takes one with each
            sentence; none where the model has no language embeddings. None: the objective takes sentences alone.
    """

    name: str
    objective: Objective
    stream: Stream
    weight: float
    max_tokens: int
    growth: float = 1.0
    special_tokens: int = 4
    languages: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Batch:
    """A batch, and where it is from.

    Attributes:
        number: of the batch, from 0.
        objective: name of its part.
        inputs: arguments of the model.
        places: file and line of every sample.
        tokens: tokens of the model's input.
        cut: samples that were cut.
        state: of the mixture behind this batch; see `Mixture.load_state_dict`.
    """

    number: int
    objective: str
    inputs: dict[str, Any]
    places: tuple[str, ...]
    tokens: int
    cut: int
    state: dict[str, Any]


class _Piece(NamedTuple):
    """Tokens of a sample, or of the part of a long text with this number."""

    tokens: Tokens
    sample: Sample
    number: int


class _Lane:
    """The samples of a part, tokenized, as many to a batch as the budget takes."""

    def __init__(self, part: Part, tokenizer: Any, batch_tokens: int, once: bool = False) -> None:
        self.part, self._tokenizer, self._batch_tokens = part, tokenizer, batch_tokens
        self._piece = 0
        self._once = once
        self._samples: Iterator[Sample] | None = None
        self._waiting: deque[_Piece] = deque()

    def state(self) -> dict[str, Any]:
        """Position of the first sample that is in no batch yet."""
        if not self._waiting:
            return {**self.part.stream.state_dict(), "piece": self._piece}
        first = self._waiting[0]
        return {**self.part.stream.state_dict(first.sample), "piece": first.number}

    def load(self, state: Mapping[str, Any]) -> None:
        self.part.stream.load_state_dict(state)
        self._piece, self._samples = int(state["piece"]), None
        self._waiting.clear()

    def take(self) -> list[_Piece]:
        """The samples of the next batch; none at the end of the only epoch."""
        taken: list[_Piece] = []
        size = 0.0
        while first := self._first():
            size += _length(first.tokens) * self.part.growth + self.part.special_tokens
            if taken and size > self._batch_tokens:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _first(self) -> _Piece | None:
        if self._samples is None:
            stream = self.part.stream
            self._samples = stream.once() if self._once else iter(stream)
        begun: Sample | None = None
        while not self._waiting:
            samples = list(islice(self._samples, CHUNK))
            if not samples:
                return None
            begun = begun or samples[0]
            if samples[0].epoch > begun.epoch + 1:  # a whole epoch was read in vain
                raise InputError(
                    f"{self.part.stream.names}: no text has a token; expected text that the tokenizer keeps"
                )
            self._waiting.extend(self._tokenized(samples))
            while self._piece and self._waiting:  # the first parts of a text are in batches before
                self._waiting.popleft()
                self._piece -= 1
        return self._waiting[0]

    def _tokenized(self, samples: Sequence[Sample]) -> Iterator[_Piece]:
        texts = [text for sample in samples for text in sample.texts]
        found = iter(self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        most = self.part.max_tokens
        for sample in samples:
            ids: list[Ids] = [list(next(found)) for _ in sample.texts]
            if not all(ids):
                continue  # characters that the tokenizer drops
            if len(ids) == 2:
                yield _Piece((ids[0], ids[1]), sample, 0)
            else:
                for number, start in enumerate(range(0, len(ids[0]), most)):
                    yield _Piece(ids[0][start : start + most], sample, number)


def _taken(piece: _Piece, languages: Mapping[str, int] | None) -> Any:
    """A piece as its objective takes it: each sentence perhaps with the id of its language."""
    if languages is None:
        return piece.tokens
    ids = [languages[str(name)] if languages else None for name in piece.sample.languages]
    if isinstance(piece.tokens, tuple):
        return tuple(zip(piece.tokens, ids, strict=True))
    return piece.tokens, ids[0]


def _length(tokens: Tokens) -> int:
    return len(tokens[0]) + len(tokens[1]) if isinstance(tokens, tuple) else len(tokens)


class Mixture:
    """Endless batches of several objectives; the same on every run from the same state.

    The objective of a batch is drawn by the weights from the seed and the batch's number, so all ranks have the same
    one; masks are drawn from the seed, the batch's number and the rank.

    Args:
        parts: the objectives, at least one; those of weight 0 are never drawn.
        tokenizer: makes token ids of texts.
        batch_tokens: most tokens of a batch, special ones included, before the objective adds any of its own; a longer
            sample makes a batch alone.
        seed: of the objectives and the masks.
        rank: of this process.
    """

    def __init__(
        self, parts: Sequence[Part], tokenizer: Any, *, batch_tokens: int, seed: int = 0, rank: int = 0
    ) -> None:
        self._lanes = {part.name: _Lane(part, tokenizer, batch_tokens) for part in parts if part.weight > 0}
        if not self._lanes:
            raise ValueError("parts: got no part with a weight above 0, expected at least one")
        if len(self._lanes) < sum(part.weight > 0 for part in parts):
            raise ValueError(f"parts: got the names {[part.name for part in parts]}, expected each once")
        self._seed, self._rank, self._number = seed, rank, 0

    def state_dict(self) -> dict[str, Any]:
        """Position of the next batch, as values of JSON."""
        return {"batch": self._number, "parts": {name: lane.state() for name, lane in self._lanes.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin behind the batch that carried the state.

        Raises:
            ValueError: the objectives are others.
            InputError: the files are others.
        """
        if set(state["parts"]) != set(self._lanes):
            there = sorted(state["parts"])
            raise ValueError(f"parts: got {sorted(self._lanes)}, the run to go on with has {there}; expected the same")
        self._number = int(state["batch"])
        for name, lane in self._lanes.items():
            lane.load(state["parts"][name])

    def __iter__(self) -> Iterator[Batch]:
        for number in count(self._number):
            lane = self._lanes[self.objective(number)]
            yield self._batch(number, lane)

    def objective(self, number: int) -> str:
        """Name of the objective of the batch with this number."""
        weights = [lane.part.weight for lane in self._lanes.values()]
        return random.Random(f"{self._seed} objective {number}").choices(list(self._lanes), weights)[0]

    def _batch(self, number: int, lane: _Lane) -> Batch:
        pieces = lane.take()
        self._number = number + 1
        return _batch(lane.part, pieces, number, generator(self._seed, number, self._rank), self.state_dict())


def once(part: Part, tokenizer: Any, *, batch_tokens: int, seed: int = 0, rank: int = 0) -> Iterator[Batch]:
    """Batches of one objective, until its stream has been read to its end once; the same on every call.

    Args:
        part, tokenizer, batch_tokens, seed, rank: as of `Mixture`.
    """
    lane = _Lane(part, tokenizer, batch_tokens, once=True)
    for number in count():
        pieces = lane.take()
        if not pieces:
            return
        yield _batch(part, pieces, number, generator(seed, number, rank), {})


def _batch(
    part: Part, pieces: Sequence[_Piece], number: int, draw: np.random.Generator, state: dict[str, Any]
) -> Batch:
    cut = part.objective.num_cut_samples
    inputs = part.objective([_taken(piece, part.languages) for piece in pieces], draw)
    ids = inputs.get("input_ids")
    return Batch(
        number=number,
        objective=part.name,
        inputs=inputs,
        places=tuple(piece.sample.place for piece in pieces),
        tokens=ids.numel() if isinstance(ids, Tensor) else 0,
        cut=part.objective.num_cut_samples - cut,
        state=state,
    )


def generator(seed: int, number: int, rank: int) -> np.random.Generator:
    """The generator of a batch's masks."""
    return np.random.default_rng((seed, number, rank))


def ahead(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """The items in order, made by a thread that is at most `depth` items ahead; it ends with the iterator.

    Raises:
        Exception: what making the next item raised.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=work, name="batches ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
