"""BTMLM: placeholders become what the model predicts, and nothing learns from that step."""

from typing import Any

import pytest
import torch
from helpers.objectives import CLS, MARKERS, MASK, ORDINARY, SEP, SPECIAL, TinyTokenizer, models, padded, rng, sentences
from helpers.pairs import assert_close, assert_same_gradients, gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast import ErnieMForMaskedLM
from erniem_fast.training.objectives import BTMLM, ErnieMForPreTraining

SAMPLES = [[4, 6, 8, 11], [20, 23]]


def test_layout() -> None:
    """Step 1 is `[x | placeholders]`; step 2 a pair whose second sentence they are."""
    batch = BTMLM(TinyTokenizer(), mask_probability=0)(SAMPLES, rng())
    generation = batch.pop("generation")
    inputs = generation["inputs"]
    assert inputs["input_ids"].tolist() == [[CLS, 4, 6, 8, 11, SEP, MASK, MASK, CLS, 20, 23, SEP, MASK]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 7, 8, 0, 1, 2, 3, 5]]
    assert inputs["prefix_lens"].tolist() == [6, 4]
    assert inputs["cu_seq_lens_q"].tolist() == [0, 8, 13]
    assert batch["input_ids"].tolist() == [
        [CLS, 4, 6, 8, 11, SEP, SEP, MASK, MASK, SEP, CLS, 20, 23, SEP, SEP, MASK, SEP]
    ]
    assert batch["position_ids"].tolist() == [[*range(10), *range(7)]]
    assert generation["rows"].tolist() == [6, 7, 12]
    assert generation["places"].tolist() == [7, 8, 15]
    assert generation["excluded"].tolist() == sorted(SPECIAL)


@settings(max_examples=4)
@given(
    samples=st.lists(sentences, min_size=1, max_size=4), share=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 99)
)
def test_generation_is_the_reference_with_an_explicit_mask(samples: Any, share: float, seed: int) -> None:
    """The sentence sees itself, the placeholders see all; special tokens are not predicted."""
    plain, model = models()
    batch = BTMLM(TinyTokenizer(), placeholder_share=share)(samples, rng(seed))
    found = model.generate_tokens(**batch["generation"]).tolist()
    for sample in samples:
        number = max(1, round(share * len(sample)))
        length = len(sample) + 2
        ids = torch.tensor([[CLS, *sample, SEP, *[MASK] * number]])
        places = torch.tensor([[*range(length), *range(length + 1, length + 1 + number)]])
        sees = torch.ones(1, length + number, length + number).long()
        sees[:, :length, length:] = 0
        with torch.no_grad():
            logits = plain(input_ids=ids, position_ids=places, attention_mask=sees).logits[0, length:]
        logits[:, SPECIAL] = -torch.inf
        assert found[:number] == logits.argmax(1).tolist()
        found = found[number:]
    assert not found


def test_the_loss_is_that_of_the_filled_pair() -> None:
    """And its gradient: no part of it comes through the generation."""
    plain, model = models()
    batch = BTMLM(TinyTokenizer(), mask_probability=0.5)(SAMPLES, rng(2))
    tokens = model.generate_tokens(**batch["generation"])
    filled = batch["input_ids"][0].clone()
    assert (filled[batch["generation"]["places"]] == MASK).all()
    filled[batch["generation"]["places"]] = tokens
    assert not torch.isin(tokens, torch.tensor(SPECIAL)).any()
    rows = padded([filled[:10].tolist(), filled[10:].tolist()])
    labels = padded([batch["labels"][0, :10].tolist(), batch["labels"][0, 10:].tolist()], -100)
    assert (labels != -100).any(1).all()
    before = batch["input_ids"].clone()
    for of in (plain, model):
        of.zero_grad()
    found, expected = model(**batch).loss, plain(input_ids=rows, labels=labels).loss
    found.backward()
    expected.backward()
    assert_close(found, expected, 1e-12)
    assert_same_gradients(model, plain, 1e-10)
    assert gradients(model)["ernie_m.embeddings.word_embeddings.weight"].any()
    assert torch.equal(batch["input_ids"], before), "the caller's batch was changed"


def test_generation_has_no_dropout_and_leaves_the_mode() -> None:
    _, model = models()
    trained = ErnieMForPreTraining(
        type(model.config)(**(model.config.to_dict() | {"hidden_dropout_prob": 0.5}))
    ).double()
    trained.load_state_dict(model.state_dict())
    trained.train()
    trained.ernie_m.encoder.layers[0].eval()
    modes = [module.training for module in trained.modules()]
    generation = BTMLM(TinyTokenizer(), placeholder_share=2.0)(SAMPLES, rng())["generation"]
    tokens = trained.generate_tokens(**generation)
    assert torch.equal(tokens, model.generate_tokens(**generation))
    assert [module.training for module in trained.modules()] == modes
    assert not tokens.requires_grad


def test_temperature() -> None:
    """Draws follow the softmax; the likeliest token is the limit."""
    _, model = models()
    objective = BTMLM(TinyTokenizer(), placeholder_share=1.0, temperature=1.0)
    generation = objective([[4, 6, 8, 11]] * 400, rng())["generation"]
    drawn = model.generate_tokens(**generation)
    assert not torch.isin(drawn, torch.tensor(SPECIAL)).any()
    with torch.no_grad():
        states = model.ernie_m(**generation["inputs"]).last_hidden_state[0, generation["rows"][:4]]
        scores = model.lm_head(states)
    scores[:, SPECIAL] = -torch.inf
    expected = scores.softmax(1)
    for place in range(4):
        found = torch.bincount(drawn[place::4], minlength=100) / 400
        assert (
            (found - expected[place]).abs() <= 5 * (expected[place] * (1 - expected[place]) / 400).sqrt() + 5e-3
        ).all()
    likeliest = model.generate_tokens(**(generation | {"temperature": 0.0}))
    assert torch.equal(model.generate_tokens(**(generation | {"temperature": 1e-6})), likeliest)
    assert not torch.equal(drawn, likeliest)


def test_scores_are_held_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = models()
    generation = BTMLM(TinyTokenizer())(SAMPLES * 5, rng())["generation"]
    whole = model.generate_tokens(**generation)
    monkeypatch.setattr("erniem_fast.training.objectives.model.SCORED_BYTES", 4 * 100 * 8)
    sizes: list[int] = []
    call = model.lm_head.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    assert torch.equal(model.generate_tokens(**generation), whole)
    assert sizes == [4, 4, 4, 3]
    call.remove()


def test_language_markers() -> None:
    """One is drawn a sentence, stands before its placeholders in both steps, and changes what is predicted."""
    _, model = models()
    batch = BTMLM(TinyTokenizer(), mask_probability=1.0, language_markers=MARKERS)([[4, 6]] * 40, rng())
    inputs = batch["generation"]["inputs"]
    rows, second = inputs["input_ids"].reshape(40, -1), batch["input_ids"].reshape(40, -1)
    assert set(rows[:, 4].tolist()) == set(MARKERS)
    assert torch.equal(rows[:, 4], second[:, 5])
    assert (inputs["prefix_lens"] == 4).all()
    assert set(batch["labels"].unique().tolist()) == {-100, 4, 6}
    first, other = (rows[:, 4] == marker for marker in MARKERS)
    with torch.no_grad():
        states = model.ernie_m(**inputs).last_hidden_state.reshape(40, -1, 16)
    assert_close(states[first][0, :4], states[other][0, :4], 1e-12)
    assert (states[first][0, 4:] != states[other][0, 4:]).any()


def test_checkpoints_are_those_of_masked_lm(tmp_path: Any) -> None:
    _, model = models()
    model.save_pretrained(tmp_path)
    loaded = ErnieMForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.architectures == ["ErnieMForMaskedLM"]
    assert not loaded.loss_only
    ids = torch.tensor([[CLS, *ORDINARY[:5], SEP]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    again = ErnieMForPreTraining.from_pretrained(tmp_path)
    assert again.loss_only
    assert again(ids, labels=ids).logits is None
    with pytest.raises(ValueError, match="input_ids must be given with generation"):
        model(generation={})
