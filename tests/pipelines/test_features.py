"""Feature extraction and fill-mask, against the reference on ids put together by hand."""

import numpy as np
import pytest
import torch
from helpers.documents import TEXTS
from transformers.pipelines import PipelineException

CLS, SEP, MASK, MOST = 0, 2, 16001, 512


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def states_of(plain, ids):
    with torch.inference_mode():
        return plain(torch.tensor([ids]))[0][0]


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_feature_extraction(make_pipeline, tokenizer, long_text, batch_size):
    extract, plain = make_pipeline("feature-extraction", "ErnieMModel")
    texts = [*TEXTS[:4], long_text]
    found = extract(texts, truncation=True, batch_size=batch_size)
    for text, (rows,) in zip(texts, found, strict=True):
        ids = [CLS, *ids_of(tokenizer, text)[: MOST - 2], SEP]
        np.testing.assert_allclose(rows[: len(ids)], states_of(plain, ids), rtol=0, atol=1e-9)
        assert not np.any(rows[len(ids) :])  # a batch is padded to its longest text
    tensor = extract(long_text, tokenize_kwargs={"truncation": True, "max_length": 20}, return_tensors=True)
    ids = [CLS, *ids_of(tokenizer, long_text)[:18], SEP]
    np.testing.assert_allclose(tensor[0], states_of(plain, ids), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"512 tokens.*got 40\d\d"):
        extract(long_text)


def assert_filled(rows, tokenizer, ids, place, probabilities, candidates):
    """The most probable candidates at one mask, with the text that each makes."""
    probabilities = probabilities.tolist()
    best = sorted(candidates, key=lambda i: -probabilities[i])[: len(rows)]
    assert [row["token"] for row in rows] == best
    assert [row["score"] for row in rows] == pytest.approx([probabilities[i] for i in best], rel=1e-6)
    for row in rows:
        filled = [*ids[:place], row["token"], *ids[place + 1 :]]
        assert row["token_str"] == tokenizer.decode([row["token"]])
        assert row["sequence"] == tokenizer.decode(filled, skip_special_tokens=ids.count(MASK) == 1)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_fill_mask_in_several_places(make_pipeline, tokenizer, long_text, batch_size):
    fill, plain = make_pipeline("fill-mask", "ErnieMForMaskedLM")
    texts = ["Paris is the [MASK] of France.", "[MASK] 是 [MASK]。", f"Das [MASK] ist lang. {long_text}"]
    found = fill(texts, top_k=3, tokenizer_kwargs={"truncation": True}, batch_size=batch_size)
    for text, rows in zip(texts, found, strict=True):
        ids = [CLS, *ids_of(tokenizer, text)[: MOST - 2], SEP]
        places = [i for i, token in enumerate(ids) if token == MASK]
        assert len(places) == text.count("[MASK]")
        probabilities = states_of(plain, ids).softmax(-1)
        for place, some in zip(places, rows if len(places) > 1 else [rows], strict=True):
            assert_filled(some, tokenizer, ids, place, probabilities[place], range(len(tokenizer)))


def test_fill_mask_with_targets(make_pipeline, tokenizer):
    fill, plain = make_pipeline("fill-mask", "ErnieMForMaskedLM")
    text, targets = "Paris is the [MASK] of France.", ["▁one", "▁time", "unbelievably"]
    rows = fill(text, targets=targets)
    ids = [CLS, *ids_of(tokenizer, text), SEP]
    probabilities = states_of(plain, ids).softmax(-1)[ids.index(MASK)]
    # A target that is no token is replaced by its first one.
    candidates = [tokenizer.convert_tokens_to_ids(t) for t in targets[:2]] + ids_of(tokenizer, targets[2])[:1]
    assert len(rows) == len(set(candidates)) == 3
    assert_filled(rows, tokenizer, ids, ids.index(MASK), probabilities, candidates)


def test_masks_that_cannot_be_filled_say_so(make_pipeline, long_text):
    fill, _ = make_pipeline("fill-mask", "ErnieMForMaskedLM")
    with pytest.raises(PipelineException, match=r"No mask_token \(\[MASK\]\)"):
        fill("Paris.")
    with pytest.raises(ValueError, match=r"512 tokens.*got 40\d\d"):
        fill(f"[MASK] {long_text}")
    with pytest.raises(PipelineException, match="No mask_token"):  # it was cut off
        fill(f"{long_text} [MASK]", tokenizer_kwargs={"truncation": True})
