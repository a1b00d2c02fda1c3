"""Texts put together by arrays are what the tokenizer makes of them."""

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import family_folders, golden_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from erniem_fast.inference.tokens import PairTemplate, ids_of, tokens_of


def _tokenizers() -> dict[str, Any]:
    made = {family: family_folders.tokenizer(family) for family in ("Bert", "Roberta", "XLMRoberta")}
    return made | {"ErnieM": golden_tokenizer.build()}


TOKENIZERS = _tokenizers()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from(["das", "天気", "Haus", "[SEP]", "</s>", "é"]), max_size=12
).map(" ".join)


def assert_same(tokenizer: Any, first: str, second: str, room: int, side: str) -> None:
    tokenizer.truncation_side = side
    template, ids = PairTemplate.of(tokenizer), ids_of([first, second], tokenizer)
    most = template.pair.size + room
    for texts in ([first], [first, second]):
        # Lists: of a lone pair transformers takes no empty second text.
        expected = tokenizer(*[[text] for text in texts], truncation="longest_first", max_length=most)
        row = template.row([ids[text] for text in texts], most)
        types = expected.get("token_type_ids", [[0] * len(row.ids)])[0]
        assert row.ids.tolist() == expected["input_ids"][0]
        assert ([0] * len(row.ids) if row.types is None else row.types.tolist()) == types
        whole = tokenizer(*[[text] for text in texts], verbose=False)["input_ids"][0]
        assert template.fits([ids[text] for text in texts], most) == (len(whole) <= most)


@settings(max_examples=25)
@given(st.sampled_from(list(TOKENIZERS)), TEXT, TEXT, st.integers(2, 24), st.sampled_from(["left", "right"]))
@example("Bert", "das " * 9, "Haus " * 9, 7, "right")
@example("ErnieM", "das " * 9, "Haus " * 9, 7, "left")
@example("XLMRoberta", "das " * 9, "Haus", 9, "left")
def test_rows_are_the_tokenizer_s(name: str, first: str, second: str, room: int, side: str) -> None:
    assert_same(TOKENIZERS[name], first, second, room, side)


@pytest.mark.slow
def test_rows_are_a_slow_tokenizer_s(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("sacremoses")
    tokenizer = family_folders.tokenizer("XLM")
    with caplog.at_level(logging.ERROR):
        for first, second in (("das " * 9, "Haus " * 9), ("das " * 9, "Haus"), ("das", "Haus " * 9), ("a", "b")):
            for room in range(2, 14):
                for side in ("left", "right"):
                    assert_same(tokenizer, first, second, room, side)


def test_token_types_are_left_out_where_the_model_has_none() -> None:
    template = PairTemplate.of(TOKENIZERS["Bert"], takes_types=False)
    assert template.row([np.array([9, 9]), np.array([9])], 64).types is None


def test_a_tokenizer_that_changes_texts_is_refused() -> None:
    class Odd(SimpleNamespace):
        def __call__(self, *texts: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [0, 7, 1] if add_special_tokens else [5]}

    with pytest.raises(ValueError, match=r"tokenizer must put special tokens around .* \[5\]; got \[0, 7, 1\] for 'a'"):
        PairTemplate.of(Odd(truncation_side="right"))


def test_texts_are_tokenized_once_each() -> None:
    tokenizer = TOKENIZERS["Bert"]
    assert list(ids_of(["b", "a", "b"], tokenizer)) == ["b", "a"]
    (found,) = tokens_of(["das Haus", "das Haus"], tokenizer).values()
    assert "".join(found.text[first:end] for first, end in found.offsets.tolist()) == "dasHaus"
    assert tokens_of([""], tokenizer)[""].offsets.shape == (0, 2)
