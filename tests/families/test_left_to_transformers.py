"""What is not computed on rows: transformers' own results, said once through logging."""

import copy
import logging
from typing import Any

import pytest
import torch
from helpers.families import (
    FAMILIES,
    NO_DROPOUT,
    assert_close,
    assert_same_outputs,
    batch,
    exact_softmax,
    make,
    mask_of,
)
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from erniem_fast import validation
from erniem_fast.packing import PackedBatch


@pytest.fixture(autouse=True)
def _said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_warned", set())


SOME = ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if FAMILIES[name].prefix != "XLM")]


def square(mask: Tensor) -> Tensor:
    """(batch, 1, seq_len, seq_len) of some pairs, the diagonal among them."""
    seen = (torch.rand(*mask.shape, mask.shape[1]) < 0.6) & (mask[:, None] == 1)
    return (seen | torch.eye(mask.shape[1], dtype=torch.bool))[:, None]


@pytest.mark.parametrize("family", SOME)
def test_a_mask_for_each_query(family: str, rows: list[int], caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = make(family)
    inputs = batch(family)
    inputs["attention_mask"] = square(mask_of("right"))
    caplog.set_level(logging.WARNING, "erniem_fast")
    with torch.no_grad():
        for _ in range(2):
            assert_same_outputs(fast(**inputs), plain(**inputs))
    assert rows == []
    assert caplog.text.count("attention_mask has 4 dimensions") == 1
    with torch.no_grad():
        fast(**batch(family))
    assert rows == [20, 20]


def decoder(prefix: str, head: str, **changes: Any) -> tuple[Any, Any]:
    return make(prefix, head, is_decoder=True, bos_token_id=3, eos_token_id=None, **changes)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", "LMHeadModel"),
        *(pytest.param(name, "ForCausalLM", marks=pytest.mark.slow) for name in FAMILIES if name not in ("bert",)
          and FAMILIES[name].find("ForCausalLM") is not None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_by_a_decoder(family: str, head: str, use_cache: bool) -> None:
    plain, fast = decoder(family, head)
    ids = torch.randint(3, 60, (2, 5))
    found, expected = (
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, use_cache=use_cache,
            output_scores=True, return_dict_in_generate=True, pad_token_id=0,
        )
        for model in (fast, plain)
    )  # fmt: skip
    assert torch.equal(found.sequences, expected.sequences)
    assert found.sequences.shape == (2, 13)
    for one, other in zip(found.scores, expected.scores, strict=True):
        assert_close(one, other)


def test_a_decoder_with_a_cache_and_another_model_s_states() -> None:
    plain, fast = decoder("bert", "LMHeadModel", add_cross_attention=True)
    inputs = batch("bert")
    inputs["labels"] = inputs["input_ids"]
    others = {
        "encoder_hidden_states": torch.randn(4, 5, 32).double(),
        "encoder_attention_mask": mask_of("right", (5, 2, 3, 1)),
    }
    with torch.no_grad():
        found, expected = (model(**inputs, **others) for model in (fast, plain))
        assert_close(found.logits, expected.logits)
        assert_close(found.loss, expected.loss)
        del inputs["labels"]
        found, expected = (model(**inputs, use_cache=True).past_key_values for model in (fast, plain))
        assert found.get_seq_length() == expected.get_seq_length() == 9


def test_an_encoder_in_an_encoder_decoder_model() -> None:
    """The encoder runs on rows, the decoder, which looks at its states, as transformers'."""
    from transformers import EncoderDecoderModel

    from erniem_fast import padding_free

    halves = make("bert")[0], decoder("bert", "LMHeadModel", add_cross_attention=True)[0]
    plain = EncoderDecoderModel(encoder=halves[0], decoder=halves[1]).double().eval()
    fast = padding_free(copy.deepcopy(plain))
    inputs = batch("bert")
    del inputs["token_type_ids"]
    with torch.no_grad():
        found, expected = (model(**inputs, decoder_input_ids=inputs["input_ids"]).logits for model in (fast, plain))
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "distilbert", "xlm"])
def test_exported(family: str) -> None:
    """The program holds transformers' own computation."""
    plain, fast = make(family)
    inputs = batch(family, "none")
    program = torch.export.export(fast, (), inputs, strict=False)
    other = batch(family, "none")
    with torch.no_grad():
        assert_close(program.module()(**other).last_hidden_state, plain(**other).last_hidden_state, 1e-6)


@pytest.mark.slow
def test_traced() -> None:
    plain, fast = make("bert", torchscript=True, attn_implementation="eager")
    inputs, other = batch("bert"), batch("bert", "left")
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        traced = torch.jit.trace(fast, tuple(inputs[name] for name in names), strict=False)
        found = traced(*(other[name] for name in names))["last_hidden_state"]
        assert_close(found, plain(**other).last_hidden_state)


def test_packed_input_is_refused_where_transformers_would_have_to_compute_it() -> None:
    _, fast = make("bert")
    packed = PackedBatch.from_sequences([[5, 6, 7], [8, 9]])
    with pytest.raises(ValueError, match=r"packed input needs the padding-free BertModel.*output_attentions is set"):
        fast(packed, output_attentions=True)
    restarting = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    with pytest.raises(ValueError, match=r"packed input needs the padding-free BertModel.*output_attentions is set"):
        fast(**restarting, output_attentions=True)
    fast(**(restarting | {"position_ids": torch.arange(5)[None]}), output_attentions=True)
    fast.encoder.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"packed input needs the padding-free BertModel.*encoder has hooks"):
        fast(packed)


def test_rows_of_several_sequences_are_told_from_others_where_transformers_computes() -> None:
    """Positions from 0, which RoBERTa's kind reads wrongly; not those that all rows of a batch share."""
    plain, fast = make("roberta")
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(ValueError, match=r"packed input needs the padding-free RobertaModel.*output_attentions is set"):
        fast(torch.randint(3, 60, (1, 5)), position_ids=positions, output_attentions=True)
    ids = torch.randint(3, 60, (3, 5))
    fast.encoder.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        for given in ({"input_ids": ids}, {"inputs_embeds": plain.get_input_embeddings()(ids)}):
            assert_same_outputs(fast(**given, position_ids=positions + 2), plain(**given, position_ids=positions + 2))


@pytest.mark.parametrize("family", ["distilbert", "xlm"])
def test_positions_of_one_row_where_transformers_computes(family: str) -> None:
    """Their configurations have no is_decoder."""
    plain, fast = make(family, attn_implementation="eager")
    given = {"input_ids": torch.randint(3, 60, (1, 5)), "position_ids": torch.arange(5)[None]}
    with torch.no_grad():
        assert_same_outputs(*(model(**given, output_attentions=True) for model in (fast, plain)))


def test_an_attention_of_one_s_own(rows: list[int]) -> None:
    def doubled(module: Any, *given: Any, **further: Any) -> Any:
        output, weights = sdpa_attention_forward(module, *given, **further)
        return output * 2, weights

    AttentionInterface.register("doubled", doubled)
    AttentionMaskInterface.register("doubled", sdpa_mask)
    try:
        plain, fast = make("bert")
        inputs = batch("bert")
        for model in (plain, fast):
            model.set_attn_implementation("doubled")
        with torch.no_grad():
            assert_same_outputs(fast(**inputs), plain(**inputs))
            assert rows == []
            for name in ("eager", "sdpa"):
                fast.set_attn_implementation(name)
                fast(**inputs)
        assert rows == [20] * 4
    finally:
        AttentionInterface._global_mapping.pop("doubled")
        AttentionMaskInterface._global_mapping.pop("doubled")


def test_rows_are_refused_where_transformers_computes() -> None:
    """A caller who asks for rows must not get a padded output."""
    _, fast = make("bert")
    with pytest.raises(ValueError, match=r"return_packed.*output_attentions is set"):
        fast(**batch("bert"), return_packed=True, output_attentions=True)


@pytest.mark.parametrize("padding", ["left", "holes"])
def test_causal_attention_over_padding_before_real_tokens(padding: str, rows: list[int]) -> None:
    """XLM's triangle ignores the mask: such tokens are seen."""
    plain, fast = make("causal xlm", "ForTokenClassification", **NO_DROPOUT)
    with torch.no_grad(), exact_softmax():
        inputs = batch("causal xlm", padding)
        assert_same_outputs(fast(**inputs), plain(**inputs))
        assert rows == []
        inputs = batch("causal xlm", "right")
        assert_same_outputs(fast(**inputs), plain(**inputs))
        assert rows == [20, 20]
