"""Every family with every head: transformers' results, forward and backward, however a batch is padded."""

import logging
from itertools import product

import pytest
import torch
from helpers.families import (
    FAMILIES,
    MASKED_LM,
    NO_DROPOUT,
    PADDINGS,
    PAIRS,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    batch,
    by_rows,
    exact_softmax,
    for_head,
    gradients,
    labels_for,
    make,
    objective,
    real_of,
    tensors,
)
from torch import Tensor

from erniem_fast import explain, validation
from erniem_fast.packed import PackedEncoder

ONCE = [
    ("bert", "ForPreTraining", "right"),
    ("bert", "Model", "empty row"),
    ("ernie", "ForQuestionAnswering", "holes"),
    ("ernie with tasks", "ForTokenClassification", "left"),
    ("roberta", "ForMultipleChoice", "left"),
    ("xlm-roberta", "ForSequenceClassification", "no mask"),
    ("xlm-roberta", "ForMaskedLM", "left"),
    ("camembert", "ForMaskedLM", "holes"),
    ("data2vec", "ForSequenceClassification", "empty row"),
    ("electra", "ForMaskedLM", "empty row"),
    ("distilbert", "ForSequenceClassification", "left"),
    ("sinusoidal distilbert", "Model", "none"),
    ("xlm", "ForSequenceClassification", "left"),
    ("sinusoidal xlm", "WithLMHeadModel", "no mask"),
    ("causal xlm", "ForTokenClassification", "right"),
]
CASES = [
    pytest.param(family, head, padding, marks=() if (family, head, padding) in ONCE else pytest.mark.slow)
    for (family, head), padding in product(PAIRS, PADDINGS)
    if family != "causal xlm"
    or padding not in ("left", "holes")  # transformers sees such padding: test_left_to_transformers.py
]


@pytest.mark.parametrize(("family", "head", "padding"), CASES)
def test_outputs_and_gradients(family: str, head: str, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the head over transformers' encoder, which takes each row's real tokens alone."""
    plain, fast = make(family, head, **NO_DROPOUT)
    encoded = []
    encode = PackedEncoder._encode
    monkeypatch.setattr(PackedEncoder, "_encode", lambda *a, **given: encoded.append(1) or encode(*a, **given))
    inputs = for_head(family, head, batch(family, padding))
    inputs |= labels_for(family, head, inputs)
    expected = by_rows(plain, family, head)(**inputs, output_hidden_states=True)
    found = fast(**inputs, output_hidden_states=True)
    name = "prediction_logits" if head == "ForPreTraining" and family != "electra" else "logits"
    if head in MASKED_LM or name != "logits":
        expected[name] = expected[name].masked_fill(~real_of(family, inputs)[..., None], 0.0)
    assert_same_outputs(found, expected)
    weights: dict[str, Tensor] = {}
    objective(expected, weights).backward()
    objective(found, weights).backward()
    found_gradients = gradients(fast)
    assert_same_gradients(found_gradients, gradients(plain))
    with torch.no_grad():  # where the last layer may leave rows out
        for name, value in tensors(fast(**inputs)).items():
            assert_close(value, tensors(expected)[name], name=name)
    assert len(encoded) == 2, "transformers' own forward was called"


@pytest.mark.parametrize(
    ("family", "head"),
    [pytest.param(*pair, marks=() if pair == ("bert", "ForQuestionAnswering") else pytest.mark.slow) for pair in PAIRS],
)
def test_without_padding_nothing_differs(family: str, head: str) -> None:
    """Every output and the loss are those of transformers' model on the same batch."""
    plain, fast = make(family, head)
    inputs = for_head(family, head, batch(family, "none"))
    inputs |= labels_for(family, head, inputs)
    with torch.no_grad(), exact_softmax():
        assert_same_outputs(fast(**inputs), plain(**inputs))
        one, other = fast(**inputs, return_dict=False), plain(**inputs, return_dict=False)
    assert type(one) is type(other) is tuple
    for found, expected in zip(one, other, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("family", [
    pytest.param(name, marks=() if name == "bert" else pytest.mark.slow)
    for name in FAMILIES if FAMILIES[name].prefix != "XLM"
])  # fmt: skip
def test_hidden_states_at_padding_are_zero(family: str) -> None:
    """Transformers computes them."""
    plain, fast = make(family)
    inputs = batch(family)
    real = inputs["attention_mask"] == 1
    with torch.no_grad():
        found, expected = fast(**inputs).last_hidden_state, plain(**inputs).last_hidden_state
    assert_close(found[real], expected[real])
    assert (found[~real] == 0).all()
    assert (expected[~real] != 0).all()


@pytest.mark.parametrize(
    ("family", "head", "name"), [("bert", "Model", "pooler_output"), ("roberta", "ForSequenceClassification", "logits")]
)
def test_a_left_padded_row_is_scored_by_its_first_real_token(family: str, head: str, name: str) -> None:
    """Transformers scores the padding in column 0."""
    plain, fast = make(family, head)
    inputs = batch(family, "left")
    row, length = 1, 3
    with torch.no_grad():
        found, padded = fast(**inputs)[name][row], plain(**inputs)[name][row]
        alone = {key: ids[row : row + 1, -length:] for key, ids in inputs.items()}
        start = 2 if family == "roberta" else inputs["input_ids"].shape[1] - length
        expected = plain(**alone, position_ids=torch.arange(start, start + length)[None])[name][0]
    assert_close(found, expected)
    assert float((padded - expected).abs().max()) > 1e-3


def test_a_masked_lm_counts_real_tokens_only() -> None:
    """Transformers also counts labels at padding, and projects padding."""
    plain, fast = make("bert", "ForMaskedLM")
    inputs = batch("bert")
    real = real_of("bert", inputs)
    labels = torch.randint(60, real.shape)
    with torch.no_grad():
        found = fast(**inputs, labels=labels)
        expected = plain(**inputs, labels=labels.masked_fill(~real, -100))
        padded = plain(**inputs, labels=labels)
    assert_close(found.loss, expected.loss)
    assert_close(found.logits[real], expected.logits[real])
    assert (found.logits[~real] == 0).all()
    assert (padded.logits[~real] != 0).any()
    assert abs(padded.loss - expected.loss) > 1e-4


def test_question_answering_logits_at_padding_are_the_bias() -> None:
    """So a padded loss differs from transformers'; the loss of rows of one length does not."""
    plain, fast = make("bert", "ForQuestionAnswering")
    inputs = batch("bert")
    real = real_of("bert", inputs)
    labels = {"start_positions": torch.tensor([2, 1, 8, 0]), "end_positions": torch.tensor([6, 2, 8, 0])}
    with torch.no_grad():
        found, expected = fast(**inputs, **labels), plain(**inputs, **labels)
    losses = []
    for name, key, bias in zip(("start_logits", "end_logits"), labels, plain.qa_outputs.bias.detach(), strict=True):
        assert_close(found[name][real], expected[name][real])
        assert (found[name][~real] == bias).all()
        logits = torch.where(real, expected[name], bias)
        losses.append(torch.nn.functional.cross_entropy(logits, labels[key]))
    assert_close(found.loss, (losses[0] + losses[1]) / 2)
    assert abs(found.loss - expected.loss) > 1e-6


@pytest.mark.parametrize("family", ["ernie with tasks", "xlm-roberta", "electra"])
def test_embeddings_as_input(family: str) -> None:
    """Positions are then counted from the first, pad id or none."""
    plain, fast = make(family, **NO_DROPOUT)
    inputs = batch(family)
    real = real_of("bert", inputs)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        inputs["inputs_embeds"] = plain.get_input_embeddings()(ids)
        found, expected = fast(**inputs).last_hidden_state, plain(**inputs).last_hidden_state
    assert_close(found[real], expected[real])
    assert (found[~real] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    """At most twice as far from float64 as transformers, beyond a rounding."""
    plain, fast = make("xlm-roberta", "ForTokenClassification")
    inputs = batch("xlm-roberta")
    real = real_of("bert", inputs)
    with torch.no_grad():
        exact = plain(**inputs).logits[real]
        errors = [(model.to(dtype)(**inputs).logits[real] - exact).norm() for model in (fast, plain)]
    assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("family", ["bert", pytest.param("distilbert", marks=pytest.mark.slow),
                                    pytest.param("xlm", marks=pytest.mark.slow)])  # fmt: skip
def test_no_layer_at_all(family: str) -> None:
    plain, fast = make(family, "ForSequenceClassification", num_hidden_layers=0)
    inputs = batch(family, "none")
    with torch.no_grad():
        assert_same_outputs(fast(**inputs), plain(**inputs))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu_new", "silu", "quick_gelu", "tanh"])
def test_other_activations(activation: str) -> None:
    plain, fast = make("bert", hidden_act=activation, **NO_DROPOUT)
    inputs = batch("bert")
    found, expected = fast(**inputs).last_hidden_state, by_rows(plain, "bert", "Model")(**inputs).last_hidden_state
    assert_close(found, expected)
    for states in (found, expected):
        states.sin().sum().backward()
    assert_same_gradients(gradients(fast), gradients(plain))


def test_autocast() -> None:
    """The parameters stay float32; the error is that of transformers under autocast."""
    plain, fast = make("roberta", "ForTokenClassification")
    inputs = batch("roberta")
    real = real_of("roberta", inputs)
    with torch.no_grad():
        exact = plain(**inputs).logits[real]
        errors = []
        for model in (fast, plain):
            with torch.autocast("cpu", torch.bfloat16):
                errors.append((model.float()(**inputs).logits[real] - exact).norm())
    assert 0 < errors[0] <= 2 * errors[1] + torch.finfo(torch.bfloat16).eps * exact.norm()


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "sinusoidal xlm" else pytest.mark.slow) for name in FAMILIES]
)
def test_all_is_fused(family: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is logged, and `explain` says so."""
    monkeypatch.setattr(validation, "_warned", set())
    _, fast = make(family)
    caplog.set_level(logging.WARNING, "erniem_fast")
    with torch.no_grad():
        fast(**batch(family))
    assert caplog.text == ""
    assert explain(fast).endswith("layers 0 to 1: on packed rows, all fused")


def test_softmax_of_xlm_in_float32() -> None:
    """As transformers computes it, whatever the model; all other tests compare with float64."""
    plain, fast = make("xlm")
    inputs = batch("xlm", "holes")
    with torch.no_grad():
        found, expected = (model(**inputs).last_hidden_state for model in (fast, plain))
    assert_close(found, expected, 1e-6)
    assert float((found - expected).abs().max()) > 1e-12


def test_second_derivatives() -> None:
    """Of a gradient penalty on the embeddings, by `autograd.grad`."""
    plain, fast = make("bert", attn_implementation="eager", **NO_DROPOUT)
    inputs = batch("bert")
    real = inputs["attention_mask"] == 1
    embedded = plain.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    found, expected = (
        torch.autograd.grad(
            torch.autograd.grad(
                model(inputs_embeds=embedded, **inputs).last_hidden_state[real].sin().sum(), embedded, create_graph=True
            )[0].square().sum(),
            embedded,
        )[0]
        for model in (fast, plain)
    )  # fmt: skip
    assert_close(found, expected)
