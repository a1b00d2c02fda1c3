"""Other families: shared parameters, and what no dry run on a CPU goes through."""

from functools import partial
from typing import Any

import pytest
import torch
from helpers.varlen import plain_attention

from bench.engine.shapes import BOTH, TINY, Setting, batch_of
from bench.models import families
from bench.models.inputs import padded_forward
from erniem_fast.losses import IGNORED

SHAPE = batch_of(5, 2, 7, name="three", sizes=TINY)


def test_models_share_memory_and_nothing_else() -> None:
    inputs = families.MaskedInputs(partial(families.xlm_roberta, masked=True), SHAPE, Setting(passes=BOTH, tiny=True))
    first, second = inputs.shared(), inputs.shared()
    families.masked_loss(first, inputs.checked).backward()
    assert first.lm_head.decoder.weight is first.roberta.embeddings.word_embeddings.weight, "tied as it was"
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert one.grad is not None
        assert other.grad is None


def test_transformers_attends_within_flattened_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a plain formula in the place of PyTorch's attention, which is for GPUs."""
    calls: list[Any] = []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return plain_attention(*arguments)

    monkeypatch.setattr(families, "torch_varlen", counted)
    inputs = families.FamilyInputs(families.xlm_roberta, SHAPE, Setting(tiny=True))
    found = families.flattened_forward(inputs.shared(families.VARLEN), inputs.checked)
    expected = inputs.checked.packed.from_grid(padded_forward(inputs.shared("sdpa"), inputs.checked))
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(calls) == TINY.num_layers


def test_the_batch_of_masked_texts_is_padded_as_the_mix_is() -> None:
    mix, (batch,) = families.XLM_R.shapes[1], families.MASKED_LM.shapes[0].batches
    assert len(batch) == 8
    padding = 8 * max(batch) / sum(batch)
    assert padding < mix.padded_tokens / mix.real_tokens < 1.1 * padding


def test_labels_are_some_of_the_real_tokens() -> None:
    inputs = families.FamilyInputs(families.bert, batch_of(400, 100, name="two", sizes=TINY), Setting(tiny=True))
    (batch,) = inputs.batches
    labelled = families.labels_of(batch) != IGNORED
    assert abs(labelled.sum() / 500 - 0.15) < 5 * (0.15 * 0.85 / 500) ** 0.5
    assert not (labelled & (batch.attention_mask == 0)).any()
