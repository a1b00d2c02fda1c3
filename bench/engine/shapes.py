"""Shapes that are measured: sizes of the model, lengths of the texts, and which comes first."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from erniem_fast import ErnieMConfig, PackedBatch

DATA = Path(__file__).parent.parent / "data"
HISTOGRAMS = {
    "pairs": DATA / "pair_lengths.json",
    "xquad": DATA / "xquad_lengths.json",
    "mix": DATA / "mix_lengths.json",
    "short": DATA / "short_lengths.json",
}
"""Token lengths of real texts, made by `bench.tools.make_lengths`; `bench/data/README.md` describes them."""
FORWARD, BACKWARD, BOTH = PASSES = ("forward", "backward", "forward+backward")
K = 1024
NUM_BATCHES = 8
SPECIAL_IDS = 4
"""Ids below are special tokens, padding among them; random ids start here."""
MAX_POSITIONS = 514


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 250002
    num_layers: int = 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def config(self) -> ErnieMConfig:
        return ErnieMConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
        )


TWO_LAYERS = Sizes()
BASE = Sizes(num_layers=12)
LARGE = Sizes(hidden_size=1024, num_heads=16, intermediate_size=4096, num_layers=24)
TINY = Sizes(hidden_size=32, num_heads=4, intermediate_size=64, vocab_size=100, num_layers=2)


@dataclass(frozen=True)
class Shape:
    """Batches of texts, given by their lengths in tokens.

    Attributes:
        name: name in the results.
        batches: for each batch the length of each text.
        sizes: sizes of the model.
        histogram: source of the lengths.
        order: "arrival" or "sorted": how texts were put into batches.
        priority: place in the order of measuring by dtype, 0 first; a dtype without a place is not measured.
    """

    name: str
    batches: tuple[tuple[int, ...], ...]
    sizes: Sizes = TWO_LAYERS
    histogram: str = ""
    order: str = "arrival"
    priority: Mapping[torch.dtype, int] = field(default_factory=dict, compare=False)

    @property
    def real_tokens(self) -> int:
        return sum(map(sum, self.batches))

    @property
    def padded_tokens(self) -> int:
        """Rows that a padded model computes, padding included."""
        return _padded(self.batches)


@dataclass(frozen=True)
class Setting:
    """Device, precision and passes of a case.

    Attributes:
        device: "cpu" or "cuda".
        dtype: dtype of weights and activations; where a model trains, of autocast.
        passes: one of PASSES.
        dropout_p: dropout probability.
        tiny: True in a dry run, whose times mean nothing.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    passes: str = FORWARD
    dropout_p: float = 0.0
    tiny: bool = False

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch, padded on the right, and the same batch packed.

    Attributes:
        input_ids: (batch, seq_len) int64.
        attention_mask: (batch, seq_len) int64.
        packed: the real tokens alone.
    """

    input_ids: Tensor
    attention_mask: Tensor
    packed: PackedBatch

    @classmethod
    def random(cls, lengths: Sequence[int], vocab_size: int, device: str) -> "Batch":
        """Random ids of these lengths: the time does not depend on the ids."""
        return cls.of([torch.randint(SPECIAL_IDS, vocab_size, (length,)) for length in lengths], device)

    @classmethod
    def of(cls, texts: list[Tensor], device: str) -> "Batch":
        """Batch of the ids (length,) of each text."""
        input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        return cls(input_ids.to(device), mask.to(device), PackedBatch.from_sequences(texts, device))


def lengths_of(histogram: str) -> list[int]:
    """All lengths of a histogram in order of arrival."""
    lengths: list[int] = json.loads(HISTOGRAMS[histogram].read_text(encoding="utf-8"))["lengths"]
    return lengths


def batch_of(*lengths: int, name: str, sizes: Sizes = TWO_LAYERS, histogram: str = "", **priority: int) -> Shape:
    """One batch of these lengths."""
    return Shape(name, (lengths,), sizes, histogram, priority=_by_dtype(priority))


def mixed(histogram: str, tokens: int, sizes: Sizes = TWO_LAYERS, **priority: int) -> Shape:
    """One batch of `tokens` tokens: lengths in order of arrival, repeated, the last one cut."""
    lengths = _fill(cycle(lengths_of(histogram)), tokens)
    return batch_of(*lengths, name=f"{histogram}-{tokens // K}k", sizes=sizes, histogram=histogram, **priority)


def uniform(length: int, tokens: int, sizes: Sizes = TWO_LAYERS, **priority: int) -> Shape:
    """One batch of sequences of one length."""
    lengths, name = (length,) * (tokens // length), f"{length}-{tokens // K}k"
    return batch_of(*lengths, name=name, sizes=sizes, histogram=f"all {length}", **priority)


def batched(
    histogram: str, order: str, texts: int, sizes: Sizes = TWO_LAYERS, count: int = NUM_BATCHES, **priority: int
) -> Shape:
    """Batches of `texts` texts as they arrive or sorted by length: every n-th of all batches, then the first `count`.

    Of the ways to take every n-th batch, the one whose share of padding is closest to that of all batches.
    """
    lengths = lengths_of(histogram)
    if order == "sorted":
        lengths = sorted(lengths)
    batches = [tuple(lengths[begin : begin + texts]) for begin in range(0, len(lengths), texts)]
    step = max(1, len(batches) // NUM_BATCHES)
    choices = [tuple(batches[offset::step][:NUM_BATCHES]) for offset in range(step)]
    chosen = min(choices, key=lambda choice: abs(_padding(choice) - _padding(batches)))
    name = f"{histogram}-{texts}-{order}"
    return Shape(name, chosen[:count], sizes, histogram, order, _by_dtype(priority))


def _by_dtype(priority: Mapping[str, int]) -> dict[torch.dtype, int]:
    return {getattr(torch, name): place for name, place in priority.items()}


def _fill(lengths: Iterator[int], tokens: int) -> Iterator[int]:
    while tokens > 0:
        length = min(next(lengths), tokens)
        yield length
        tokens -= length


def _padded(batches: Sequence[Sequence[int]]) -> int:
    return sum(len(lengths) * max(lengths) for lengths in batches)


def _padding(batches: Sequence[Sequence[int]]) -> float:
    return _padded(batches) / sum(map(sum, batches))
