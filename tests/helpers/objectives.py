"""A tokenizer of a few ids for the objectives, sentences, and masks that a test chooses."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from erniem_fast.training.objectives import ErnieMForPreTraining
from helpers import pairs

VOCAB = 100
CLS, PAD, SEP, UNK, MASK, MARKERS = 0, 1, 2, 3, 99, (97, 98)
ORDINARY = range(4, 97)
SPECIAL = [CLS, PAD, SEP, UNK, MASK, *MARKERS]
LAYERS = 4


class TinyTokenizer:
    """ErnieM's special tokens, with two that mark languages. Even ids start a word."""

    mask_token_id = MASK
    all_special_ids = SPECIAL
    model_max_length = 64

    def __len__(self) -> int:
        return VOCAB

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        return [CLS, *first, SEP] if second is None else [CLS, *first, SEP, SEP, *second, SEP]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"▁{token}" if token % 2 == 0 else str(token) for token in ids]


class Chosen:
    """A masking whose choice the test makes: for each sample, places among its tokens."""

    def __init__(self, objective: Any, places: Sequence[Sequence[int]]) -> None:
        self.masking, self.places = objective.masking, places
        objective.masking = self

    def choose(self, rows: Any, *_: Any) -> np.ndarray:
        return np.array(
            [place in self.places[sample] for sample, place in zip(rows.samples, rows.positions, strict=True)]
        )

    def replace(self, *arguments: Any) -> np.ndarray:
        return self.masking.replace(*arguments)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


sentences = st.lists(st.sampled_from(ORDINARY), min_size=1, max_size=9)
translations = st.tuples(sentences, sentences)


@st.composite
def masked_pairs(draw: Any) -> tuple[list[tuple[list[int], list[int]]], list[list[int]]]:
    """Pairs, and for each the places of its masks in `[CLS] A [SEP] [SEP] B [SEP]`: in neither, one, or both sides."""
    drawn = draw(st.lists(translations, min_size=1, max_size=4))
    places = []
    for first, second in drawn:
        start = len(first) + 3
        real = [*range(1, len(first) + 1), *range(start, start + len(second))]
        places.append(draw(st.lists(st.sampled_from(real), unique=True)))
    return drawn, places


@cache
def models() -> tuple[Any, Any]:
    """The reference and the fast model, float64, without dropout, of several layers: the same for all who ask."""
    sizes = {"vocab_size": VOCAB, "num_hidden_layers": LAYERS, "hidden_size": 16, "intermediate_size": 24}
    plain, fast = pairs.make("ErnieMForMaskedLM", **(sizes | pairs.NO_DROPOUT))
    model = ErnieMForPreTraining(fast.config).double().eval()
    model.load_state_dict(fast.state_dict())
    return plain, model


def losses_and_gradients(batch: dict[str, Any], **padded: Any) -> tuple[Tensor, Tensor]:
    """Losses of the fast model and of the reference, whose gradients must agree."""
    plain, model = models()
    found, expected = model(**batch, validate=True).loss, plain(**padded).loss
    for loss, of in ((found, model), (expected, plain)):
        of.zero_grad()
        loss.backward()
    if expected != 0:
        pairs.assert_same_gradients(model, plain, 1e-10)
    assert all(grad.isfinite().all() for grad in pairs.gradients(model).values())
    return found.detach(), expected.detach()


def padded(rows: Sequence[Sequence[int]], fill: int = PAD) -> Tensor:
    """Rows as a (num_rows, longest) tensor."""
    return torch.tensor([[*row, *[fill] * (max(map(len, rows)) - len(row))] for row in rows])


def padded_pairs(
    samples: Sequence[tuple[list[int], list[int]]], places: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs one a row with [MASK] at some places, their labels, and the side of each token: 0, 1 or -1 at padding."""
    rows = [[CLS, *first, SEP, SEP, *second, SEP] for first, second in samples]
    ids = padded([[MASK if at in chosen else token for at, token in enumerate(row)]
                  for row, chosen in zip(rows, places, strict=True)])  # fmt: skip
    labels = padded([[token if at in chosen else -100 for at, token in enumerate(row)]
                     for row, chosen in zip(rows, places, strict=True)], -100)  # fmt: skip
    sides = padded([[0] * (len(first) + 2) + [1] * (len(second) + 2) for first, second in samples], -1)
    return ids, labels, sides
