"""Packed input to a padding-free family is its padded input, and a sequence's results are its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.families import (
    FAMILIES,
    NO_DROPOUT,
    assert_close,
    assert_same_gradients,
    batch,
    by_rows,
    exact_softmax,
    for_head,
    gradients,
    labels_for,
    make,
    make_plain,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DataCollatorWithFlattening, DynamicCache

from erniem_fast import padding_free
from erniem_fast.packing import PackedBatch

LENGTHS = (7, 3, 9, 1)
some_families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "xlm-roberta" else pytest.mark.slow) for name in FAMILIES]
)
ROBERTA_KIND = ("roberta", "xlm-roberta", "camembert", "data2vec")


def first_position(family: str) -> int:
    return 2 if family in ROBERTA_KIND else 0


def flattened(inputs: dict[str, Tensor], family: str) -> dict[str, Any]:
    """A padded batch as DataCollatorWithFlattening gives it."""
    mask = inputs["attention_mask"] == 1
    rows = [
        {name: ids[row, real].tolist() for name, ids in inputs.items() if name == "input_ids"}
        for row, real in enumerate(mask)
    ]
    collate = DataCollatorWithFlattening(
        return_flash_attn_kwargs=True, position_ids_start=first_position(family), separator_id=-100
    )
    made = collate(rows, return_tensors="pt")
    made.pop("labels")
    further = {name: ids[mask][None] for name, ids in inputs.items() if name in FAMILIES[family].token_ids}
    return dict(made) | further


def packed(inputs: dict[str, Tensor], family: str) -> PackedBatch:
    mask = inputs["attention_mask"] == 1
    sequences = [ids[real] for ids, real in zip(inputs["input_ids"], mask, strict=True)]
    made = PackedBatch.from_sequences(sequences, first_position=first_position(family))
    further = {name: ids[mask] for name, ids in inputs.items() if name in FAMILIES[family].token_ids}
    return PackedBatch(**(vars(made) | {"token_ids": further}))


@some_families
def test_packed_equals_padded(family: str) -> None:
    """Outputs and gradients, as a PackedBatch, flattened, and flattened without offsets."""
    plain, fast = make(family, **NO_DROPOUT)
    inputs = batch(family)
    real = inputs["attention_mask"] == 1
    weight = torch.randn(int(real.sum()), 32, dtype=torch.float64)

    def run(**given: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        output = fast(**given)
        states = output.last_hidden_state
        states = states[real] if states.shape[:2] == real.shape else states[0]
        pooled = getattr(output, "pooler_output", None)
        ((states * weight).sum() + (0 if pooled is None else pooled.sum())).backward()
        return states, pooled, gradients(fast)

    states, pooled, wanted = run(**inputs)
    assert_close(states, by_rows(plain, family, "Model")(**inputs).last_hidden_state[real])
    flat = flattened(inputs, family)
    restarting = {name: ids for name, ids in flat.items() if isinstance(ids, Tensor) and ids.dim() == 2}
    assert restarting["position_ids"].min() == first_position(family)
    for given_input in ({"input_ids": packed(inputs, family)}, flat, restarting):
        one, two, grads = run(**given_input)
        assert_close(one, states)
        assert (two is None) == (pooled is None)
        if pooled is not None:
            assert_close(two, pooled)
        assert_same_gradients(grads, wanted)


@some_families
def test_output_on_rows(family: str) -> None:
    _, fast = make(family)
    inputs = batch(family)
    with torch.no_grad():
        output = fast(**inputs, return_packed=True)
        padded = fast(**inputs)
    assert output.last_hidden_state.shape == (sum(LENGTHS), 32)
    assert output.batch.lengths.tolist() == list(LENGTHS)
    assert_close(output.batch.output(output.last_hidden_state), padded.last_hidden_state)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_prefixes(family: str) -> None:
    """Tokens before a sequence's prefix length do not see those behind it."""
    plain, fast = make(family)
    inputs = batch(family)
    real = inputs["attention_mask"] == 1
    prefixes = torch.tensor([4, 0, 9, 1], dtype=torch.int32)
    made = PackedBatch(**(vars(packed(inputs, family)) | {"prefix_lens": prefixes}))
    columns = torch.arange(9)
    before = columns < prefixes[:, None]
    seen = (~before[:, :, None] | before[:, None, :]) & real[:, None, :]
    with torch.no_grad():
        found = fast(made).last_hidden_state[0]
        assert torch.equal(fast(**flattened(inputs, family), prefix_lens=prefixes).last_hidden_state[0], found)
        with pytest.raises(ValueError, match="prefix_lens must be None without cu_seq_lens_q"):
            fast(**inputs, prefix_lens=prefixes)
        with pytest.raises(ValueError, match="packed input needs the padding-free"):
            fast(**inputs, prefix_lens=prefixes, output_attentions=True)
        expected = plain(**(inputs | {"attention_mask": seen[:, None]})).last_hidden_state[real]
    assert_close(found, expected)


def test_prefixes_are_refused_where_a_layer_is_transformers_own() -> None:
    """Its mask would show every row all columns."""
    _, fast = make("bert")
    batch_of_two = PackedBatch.from_sequences([[5, 6, 7, 8], [9, 10, 11]])
    batch_of_two = replace(batch_of_two, prefix_lens=torch.tensor([2, 1], dtype=torch.int32))
    fast(batch_of_two)
    fast.encoder.layer[0].attention.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"prefix_lens must be None.*attention has hooks"):
        fast(batch_of_two)


def test_no_position_of_a_pad_token_in_flattened_input() -> None:
    """Positions that count from 0 would silently read RoBERTa's row of the pad."""
    _, fast = make("xlm-roberta")
    flat = flattened(batch("xlm-roberta"), "bert")
    message = "pass position_ids_start=2 to DataCollatorWithFlattening"
    with pytest.raises(ValueError, match=message):
        fast(**flat)
    with pytest.raises(ValueError, match=message):
        fast(**{name: flat[name] for name in ("input_ids", "position_ids")})
    with pytest.raises(ValueError, match="first_position=2"):
        fast(PackedBatch.from_sequences([[5, 6, 7], [8, 9]]))
    del flat["position_ids"]  # counted by the model
    with torch.no_grad():
        fast(**flat)


HEADS = ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForQuestionAnswering", "ForPreTraining",
         "ForNextSentencePrediction", "WithLMHeadModel", "ForQuestionAnsweringSimple"]  # fmt: skip
HEAD_CASES = [
    pytest.param(family, head, marks=() if (family, head) == ("xlm-roberta", HEADS[0]) else pytest.mark.slow)
    for family in FAMILIES
    for head in HEADS
    if FAMILIES[family].find(head) is not None and (family[-3:], head) != ("xlm", "ForQuestionAnswering")
]


@pytest.mark.parametrize(("family", "head"), HEAD_CASES)
def test_heads_take_packed_input(family: str, head: str) -> None:
    """Transformers' classifiers of the RoBERTa kind give one row of logits for all sequences."""
    plain, fast = make(family, head, **NO_DROPOUT)
    inputs = batch(family)
    real = inputs["attention_mask"] == 1
    labels = labels_for(family, head, inputs) if not head.startswith("ForQuestion") else {}
    own = {
        name: value[real][None] if value.dim() == 2 else value for name, value in labels.items()
    }  # labels of tokens are flattened like the tokens
    expected = by_rows(plain, family, head)(**inputs, **labels)
    for given_input in ({"input_ids": packed(inputs, family)}, flattened(inputs, family)):
        found = fast(**given_input, **own)
        for name, value in expected.items():
            value = value[real] if value.shape[:2] == real.shape else value
            other = found[name][0] if found[name].shape[:1] != value.shape[:1] and value.dim() else found[name]
            assert_close(other, value, name=name)
        if labels:
            expected = by_rows(plain, family, head)(**inputs, **labels)
            found.loss.backward()
            expected.loss.backward()
            assert_same_gradients(gradients(fast), gradients(plain))


@pytest.mark.parametrize(
    ("family", "head", "labels", "message"),
    [
        ("bert", "ForMultipleChoice", {}, "dimension for the choices"),
        ("bert", "ForQuestionAnswering", {"start_positions": torch.zeros(4).long()}, "loss is over a row"),
        ("xlm", "ForQuestionAnswering", {}, "beam search is over a row"),
    ],
)
def test_heads_that_refuse_packed_input(family: str, head: str, labels: dict[str, Tensor], message: str) -> None:
    _, fast = make(family, head)
    inputs = batch(family)
    for given_input in ({"input_ids": packed(inputs, family)}, flattened(inputs, family)):
        with pytest.raises(ValueError, match=f"{head}, got packed input: .*{message}"):
            fast(**given_input, **labels)


@pytest.mark.parametrize(
    ("family", "head", "labels", "message"),
    [
        ("bert", "ForMultipleChoice", {}, "dimension for the choices"),
        ("bert", "ForQuestionAnswering", {"start_positions": torch.zeros(1).long()}, "loss is over a row"),
        ("xlm", "ForQuestionAnswering", {}, "beam search is over a row"),
        ("roberta", "ForSequenceClassification", {}, "classifier was replaced by a Other"),
    ],
)
def test_heads_that_refuse_a_lone_row_of_sequences(
    family: str, head: str, labels: dict[str, Tensor], message: str
) -> None:
    """As DataCollatorWithFlattening makes it by default, without offsets. One sequence is no such row."""
    _, fast = make(family, head)
    if "replaced" in message:
        fast.classifier.__class__ = type("Other", (type(fast.classifier),), {})
    lone = {name: ids[None] if head == "ForMultipleChoice" else ids for name, ids in (
        ("input_ids", torch.randint(3, 60, (1, 9))),
        ("position_ids", torch.cat([torch.arange(4), torch.arange(5)])[None] + first_position(family)),
    )}  # fmt: skip
    with pytest.raises(ValueError, match=f"{head}, got packed input: .*{message}"):
        fast(**lone, **labels)
    with torch.no_grad():
        one = torch.arange(9).expand_as(lone["input_ids"]) + first_position(family)
        assert fast(**(lone | {"position_ids": one}), **labels) is not None


@pytest.mark.parametrize("family", ["roberta", "xlm"])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "MaskedLM"])
def test_flattened_input_to_a_head_whose_encoder_was_replaced(family: str, head: str) -> None:
    """Transformers' own would read all sequences as one."""
    if head == "MaskedLM":
        head = "WithLMHeadModel" if family == "xlm" else "ForMaskedLM"
    _, fast = make(family, head)
    setattr(fast, fast.base_model_prefix, make_plain(family))
    with pytest.raises(ValueError, match=f"{head}.*its encoder is not padding-free"):
        fast(**flattened(batch(family), family))
    assert fast(**batch(family)) is not None


def test_flattened_input_to_a_head_of_xlm_with_a_cache() -> None:
    """The offsets are not lost beside it."""
    _, fast = make("xlm", "ForTokenClassification")
    with pytest.raises(ValueError, match=r"packed input needs the padding-free XLMModel.*cache is given"):
        fast(**flattened(batch("xlm"), "xlm"), cache=DynamicCache())


@pytest.mark.parametrize(("family", "kind"), [("electra", "mean"), ("xlm", "last")])
def test_a_summary_of_other_tokens_than_the_first(family: str, kind: str) -> None:
    """Padded, transformers' head reads all states; packed, it would read those of all sequences."""
    head = "ForMultipleChoice" if family == "electra" else "ForSequenceClassification"
    plain, fast = make(family, head, summary_type=kind)
    inputs = for_head(family, head, batch(family, "none"))
    with torch.no_grad(), exact_softmax():
        assert_close(fast(**inputs).logits, plain(**inputs).logits)
    if family == "xlm":
        with pytest.raises(ValueError, match="XLMForSequenceClassification, got packed input: summary_type is 'last'"):
            fast(**flattened(batch(family), family))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: padding_free(make_plain(family)) for family in ("xlm-roberta", "ernie with tasks", "distilbert")}


@settings(max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_a_sequence_does_not_see_its_batch(data: st.DataObject, seed: int, models: dict[str, Any]) -> None:
    """Its result is that alone, whatever the others are and wherever it lies in a padded row."""
    family = data.draw(st.sampled_from(sorted(models)))
    fast = models[family]
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    chosen = data.draw(st.integers(0, len(lengths) - 1))
    generator = torch.manual_seed(seed)
    ids = [torch.randint(3, 60, (length,), generator=generator) for length in lengths]
    others = [row if index == chosen else torch.randint(3, 60, row.shape) for index, row in enumerate(ids)]

    def states(sequences: list[Tensor]) -> list[Tensor]:
        made = PackedBatch.from_sequences(sequences, first_position=first_position(family))
        with torch.no_grad():
            output = fast(made, return_packed=True)
        return list(output.last_hidden_state.split([len(row) for row in sequences]))

    found = states(ids)[chosen]
    assert_close(states(others)[chosen], found, 1e-12)
    assert_close(states([ids[chosen]])[0], found, 1e-12)
    width = data.draw(st.integers(max(lengths), 22))
    padded = torch.full((len(ids), width), fast.config.pad_token_id)
    mask = torch.zeros_like(padded)
    for row, sequence in enumerate(ids):
        start = data.draw(st.integers(0, width - len(sequence))) if family == "xlm-roberta" else 0
        padded[row, start : start + len(sequence)] = sequence
        mask[row, start : start + len(sequence)] = 1
    with torch.no_grad():
        output = fast(padded, attention_mask=mask).last_hidden_state
    assert_close(output[chosen][mask[chosen] == 1], found, 1e-12)
