"""What the cases run on: sizes of the model and lengths of the texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erniem_fast import ErnieMConfig, PackedBatch

LENGTHS_FILE = Path(__file__).parent / "data" / "xquad_lengths.json"
PAIR_LENGTHS_FILE = Path(__file__).parent / "data" / "pair_lengths.json"
"""Both made by `bench.make_lengths`."""
BATCH_SIZE = 16
NUM_BATCHES = 8
SPECIAL_IDS = 4
"""Ids below are special tokens, padding among them; random ids start here."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model."""

    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 250002
    num_layers: int = 2

    def config(self) -> ErnieMConfig:
        return ErnieMConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
        )


BASE = Sizes()
TINY = Sizes(hidden_size=32, num_heads=4, intermediate_size=64, vocab_size=100, num_layers=1)


@dataclass(frozen=True)
class Shape:
    """Batches of texts, given by their lengths in tokens.

    Attributes:
        name: of the shape.
        batches: for each batch the length of each text.
        sizes: of the model.
        histogram: where the lengths come from.
        order: "arrival" or "sorted": how texts were put into batches.
    """

    name: str
    batches: tuple[tuple[int, ...], ...]
    sizes: Sizes = BASE
    histogram: str = ""
    order: str = "arrival"

    @property
    def real_tokens(self) -> int:
        return sum(map(sum, self.batches))

    @property
    def padded_tokens(self) -> int:
        """Rows that a padded model computes, padding included."""
        return sum(len(lengths) * max(lengths) for lengths in self.batches)


@dataclass(frozen=True)
class Setting:
    """Where, in what precision and how far the cases run.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of weights and activations; where a model trains, of autocast.
        passes: "forward", "backward" or "forward+backward" (the GPU suite).
        dropout_p: dropout probability (the GPU suite).
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    passes: str = "forward"
    dropout_p: float = 0.0

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
    def random(cls, lengths: tuple[int, ...], vocab_size: int, device: str) -> "Batch":
        """Random ids of these lengths: what stands in a text does not change the time."""
        return cls.of([torch.randint(SPECIAL_IDS, vocab_size, (length,)) for length in lengths], device)

    @classmethod
    def of(cls, texts: list[Tensor], device: str) -> "Batch":
        """From the ids (length,) of each text."""
        input_ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        return cls(input_ids.to(device), mask.to(device), PackedBatch.from_sequences(texts, device))


def _in_batches(lengths: list[int]) -> list[tuple[int, ...]]:
    return [tuple(lengths[begin : begin + BATCH_SIZE]) for begin in range(0, len(lengths), BATCH_SIZE)]


def _padding(batches: Sequence[tuple[int, ...]]) -> float:
    return sum(len(lengths) * max(lengths) for lengths in batches) / sum(map(sum, batches))


def _representative(batches: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Every n-th batch, so that eight are left; of the ways to do so, the one that is padded most like all of them."""
    step = max(1, len(batches) // NUM_BATCHES)
    choices = [tuple(batches[offset::step]) for offset in range(step)]
    return min(choices, key=lambda choice: abs(_padding(choice) - _padding(batches)))


_lengths: list[int] = json.loads(LENGTHS_FILE.read_text(encoding="utf-8"))["lengths"]

ARRIVAL = Shape("xquad-arrival", _representative(_in_batches(_lengths)))
"""Batches as texts arrive: a context beside questions pads these to its own length."""

# Batches of all 1,024 texts: sorting only as many as are timed would leave much more padding.
SORTED = Shape("xquad-sorted", _representative(_in_batches(sorted(_lengths))))
"""The same texts, sorted by length before they are batched."""

SKEWED = Shape("1x500+15x20", ((500, *[20] * 15),))
"""One long text beside fifteen short ones: one batch, since more of the same lengths hold the same memory."""

EVEN = Shape("16x128", ((128,) * 16,))
"""One batch without padding."""

ONE_BATCH = Shape("xquad-batch", ARRIVAL.batches[:1])
"""The first batch as it arrives."""

TINY_SHAPE = Shape("tiny", ((9, 3, 1, 3), (2, 5)), TINY)
TINY_BATCH = Shape("tiny", ((9, 3, 1, 3),), TINY)
