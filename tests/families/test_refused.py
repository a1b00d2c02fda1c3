"""Bad input, and models that cannot be made padding-free: one clear error, or what stayed as it was."""

import copy
import inspect
import logging
from typing import Any

import pytest
import torch
import transformers
from helpers.families import FAMILIES, assert_close, batch, config_of, for_head, make, make_plain
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from erniem_fast import padding_free
from erniem_fast.packed import PackedEncoder
from erniem_fast.packing import PackedBatch


class LoudBert(BertModel):
    """Computes anything else."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


SUPPORTED = (
    "BertModel, CamembertModel, Data2VecTextModel, DistilBertModel, ElectraModel, ErnieModel, RobertaModel, XLMModel, "
    "XLMRobertaModel"
)


def mpnet() -> nn.Module:
    config = transformers.MPNetConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40
    )
    return transformers.MPNetModel(config)


def test_no_encoder_that_is_supported() -> None:
    with pytest.raises(ValueError, match=f"model must hold an encoder of {SUPPORTED}; got MPNetModel"):
        padding_free(mpnet())
    with pytest.raises(ValueError, match="got Linear"):
        padding_free(nn.Linear(2, 2))


@pytest.mark.parametrize("model", [None, "intfloat/multilingual-e5-base", BertModel], ids=str)
def test_no_module(model: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got (NoneType|str|type)"):
        padding_free(model)


def test_only_a_subclass() -> None:
    model = LoudBert(config_of("bert"))
    with pytest.raises(ValueError, match="got LoudBert, a subclass of BertModel, which may compute anything else"):
        padding_free(nn.Sequential(model))
    assert type(model) is LoudBert


def test_a_compiled_model() -> None:
    model = make_plain("bert", "ForSequenceClassification")
    with pytest.raises(ValueError, match="model must not be compiled yet, got a compiled OptimizedModule"):
        padding_free(torch.compile(model))
    model.bert.compile()
    with pytest.raises(ValueError, match="got a compiled BertModel at bert"):
        padding_free(model)
    assert type(model.bert) is BertModel


def test_supported_and_other_models_in_one(caplog: pytest.LogCaptureFixture) -> None:
    plain = nn.ModuleDict({"bert": make_plain("bert"), "mpnet": mpnet(), "loud": LoudBert(config_of("bert"))})
    before = {name: type(module) for name, module in plain.items()}
    caplog.set_level(logging.WARNING, "erniem_fast")
    fast = padding_free(plain)
    assert isinstance(fast["bert"], PackedEncoder)
    assert type(fast["mpnet"]) is before["mpnet"]
    assert type(fast["loud"]) is LoudBert
    assert "mpnet (MPNetModel), loud (LoudBert) stay as they are" in caplog.text


def test_an_encoder_that_two_heads_share() -> None:
    """Each head gives what it gave."""
    one = make_plain("roberta", "ForSequenceClassification")
    two = make_plain("roberta", "ForMultipleChoice")
    two.roberta = one.roberta = make_plain("roberta")
    both = nn.ModuleList([one, two])
    inputs = batch("roberta", "none")
    choices = for_head("roberta", "ForMultipleChoice", inputs)
    with torch.no_grad():
        expected = one(**inputs).logits, two(**choices).logits
        fast = padding_free(both)
        assert fast[0].roberta is fast[1].roberta
        assert_close(fast[0](**inputs).logits, expected[0])
        assert_close(fast[1](**choices).logits, expected[1])
        states = fast[0].roberta(**inputs).last_hidden_state
        assert states.shape == (4, 9, 32)


def test_a_head_that_was_left_out_beside_one_that_was_not() -> None:
    """A head that is still transformers' reads what it always read of a shared encoder that is padding-free."""
    one, two = make_plain("roberta", "ForSequenceClassification"), make_plain("roberta", "ForTokenClassification")
    two.roberta = one.roberta
    inputs = batch("roberta", "none")
    with torch.no_grad():
        expected = two(**inputs).logits
        padding_free(one)
        assert type(two) is transformers.RobertaForTokenClassification
        assert_close(two(**inputs).logits, expected)


RANGES = [
    ("bert", {"token_type_ids": 2}, r"token_type_ids must lie in \[0, 2\) \(rows of its table\), got 2"),
    ("bert", {"token_type_ids": -1}, r"token_type_ids must lie in \[0, 2\) .*got -1"),
    ("ernie with tasks", {"task_type_ids": 3}, r"task_type_ids must lie in \[0, 3\) .*got 3"),
    ("bert", {"input_ids": 60}, r"input_ids must lie in \[0, 60\) \(vocab_size\), got 60"),
    ("xlm", {"langs": 3}, r"langs must lie in \[0, 3\) .*got 3"),
    ("xlm", {"token_type_ids": 60}, r"token_type_ids must lie in \[0, 60\) .*got 60"),
    ("distilbert", {"position_ids": 24}, r"position_ids must lie in \[0, 24\) \(max_position_embeddings\), got 24"),
    ("xlm-roberta", {"position_ids": 24}, r"position_ids must lie in \[0, 24\) .*got 24"),
    ("roberta", {"attention_mask": 2}, "attention_mask must hold only 0 and 1, got 2"),
]


@pytest.mark.parametrize(("family", "wrong", "message"), RANGES)
def test_values_out_of_range(family: str, wrong: dict[str, int], message: str) -> None:
    """Even where the token is padding: a table has no such row."""
    _, fast = make(family)
    inputs = batch(family)
    ((name, value),) = wrong.items()
    if name not in inputs:
        inputs[name] = torch.arange(2, 11).expand(4, 9).clone()
    inputs[name] = inputs[name].clone()
    inputs[name][0, 2] = value
    with pytest.raises(ValueError, match=message):
        fast(**inputs)


@pytest.mark.parametrize(
    ("family", "name"),
    [("ernie", "task_type_ids"), ("sinusoidal xlm", "langs"), ("bert", "task_type_ids"), ("roberta", "langs")],
)
def test_ids_for_a_model_without_a_table(family: str, name: str) -> None:
    """Transformers ignores them."""
    _, fast = make(family)
    inputs = batch(family)
    inputs[name] = torch.zeros_like(inputs["input_ids"])
    with pytest.raises(ValueError, match=f"{name} must be None"):
        fast(**inputs)
    packed = PackedBatch.from_sequences([[5, 6, 7]], first_position=fast.limits.first_position)
    packed = PackedBatch(**(vars(packed) | {"token_ids": {name: torch.zeros(3).long()}}))
    with pytest.raises(ValueError, match=f"token_ids must hold what the model takes, .*got {name}"):
        fast(packed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_beyond_the_positions(family: str) -> None:
    """Padded and packed; the longest one that there is runs."""
    _, fast = make(family)
    first = 2 if FAMILIES[family].prefix in ("Roberta", "XLMRoberta", "Camembert", "Data2VecText") else 0
    most = 24 - first
    assert fast.limits.max_tokens == most
    for length in (most, most + 1):
        ids = torch.randint(3, 60, (2, length))
        packed = PackedBatch.from_sequences(list(ids), first_position=first)
        for given in (ids, packed):
            if length == most:
                with torch.no_grad():
                    fast(given)
            else:
                with pytest.raises(
                    ValueError, match=rf"must hold at most {most} tokens.*max_position_emb.*got {length}"
                ):
                    fast(given)


def test_padding_may_exceed_the_positions_where_it_has_none() -> None:
    """RoBERTa's pad ids read one row."""
    plain, fast = make("roberta")
    ids = torch.full((2, 30), 1)
    ids[:, :20] = torch.randint(3, 60, (2, 20))
    mask = (ids != 1).long()
    with torch.no_grad():
        found, expected = (model(ids, attention_mask=mask).last_hidden_state[:, :20] for model in (fast, plain))
    assert_close(found, expected)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input_ids": torch.rand(2, 3)}, TypeError, "input_ids must be int64 or int32, got torch.float32"),
    ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be a tensor, got list"),
    ({"input_ids": torch.ones(3).long()}, ValueError, r"input_ids must have shape \(batch, seq_len\), got \(3,\)"),
    ({"attention_mask": torch.ones(4, 8)}, ValueError, "attention_mask must have shape"),
    ({"token_type_ids": torch.zeros(4, 8).long()}, ValueError, "token_type_ids must have shape"),
    ({"position_ids": torch.zeros(4, 8).long()}, ValueError, "position_ids must have shape"),
    ({"inputs_embeds": torch.zeros(4, 9, 32)}, ValueError, "give exactly one of input_ids and inputs_embeds, got both"),
    ({"max_length_q": 4}, ValueError, "max_length_q must be None without cu_seq_lens_q"),
    ({"cu_seq_lens_q": torch.tensor([0, 9])}, ValueError, "attention_mask must be None with packed input"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_shapes_and_dtypes(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    _, fast = make("bert")
    with pytest.raises(error, match=message):
        fast(**(batch("bert") | wrong))


@pytest.mark.parametrize(("family", "head"), [("bert", "Model"), ("roberta", "ForMaskedLM"), ("xlm", "Model")])
def test_more_arguments_than_forward_has(family: str, head: str) -> None:
    """None of them is dropped."""
    plain, fast = make(family, head)
    parameters = list(inspect.signature(type(fast).forward).parameters)
    assert parameters == list(inspect.signature(type(plain).forward).parameters)
    ids = batch(family)["input_ids"]
    most = len([name for name in parameters if name not in ("self", "kwargs")])
    with pytest.raises(TypeError, match=f"takes at most {most} arguments without a name, got {most + 1}"):
        fast(ids, *[None] * most)
    fast(ids, *[None] * (most - 1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((4, 9), 60), r"labels must lie in \[0, 60\) \(vocab_size\) or be -100 \(ignored\), got 60"),
        (torch.zeros(4, 8).long(), "labels must have shape"),
    ],
)
@pytest.mark.parametrize("loss_only", [True, False])
def test_labels_of_a_masked_lm(labels: Tensor, message: str, loss_only: bool) -> None:
    _, fast = make("bert", "ForMaskedLM")
    fast.loss_only = loss_only
    with pytest.raises(ValueError, match=message):
        fast(**batch("bert"), labels=labels)


def test_task_types_of_multiple_choice_crash_in_transformers_too() -> None:
    """Its ErnieForMultipleChoice does not flatten them."""
    plain, fast = make("ernie with tasks", "ForMultipleChoice")
    inputs = {name: ids.unflatten(0, (2, 2)) for name, ids in batch("ernie with tasks").items()}
    with pytest.raises(RuntimeError):
        plain(**inputs)
    with pytest.raises(ValueError, match="task_type_ids must have shape"):
        fast(**inputs)


def test_the_configuration_decides_anew_in_every_call() -> None:
    """One that becomes a decoder's is computed as such."""
    plain, fast = make("bert", add_pooling_layer=True)
    assert isinstance(fast.config, BertConfig)
    inputs = batch("bert")
    for model in (plain, fast):
        model.config.is_decoder = True
    with torch.no_grad():
        one, other = (copy.deepcopy(model)(**inputs).last_hidden_state for model in (plain, fast))
    assert_close(one, other)
