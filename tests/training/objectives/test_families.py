"""The objectives of BERT, ERNIE 1.0 and XLM, on their own models."""

from typing import Any

import pytest
import torch
from helpers.families import FAMILIES, NO_DROPOUT, assert_close, assert_same_gradients, exact_softmax, gradients, make
from helpers.objectives import CLS, MASK, SEP, Chosen, TinyTokenizer, padded, rng
from torch import Tensor

from erniem_fast.training.objectives import CAMLM, MMLM, XLMCLM, XLMMLM, XLMTLM, MLMWithNSP

PAIRS = [([4, 6, 9], [12, 14]), ([20], [22, 24, 27]), ([30, 32], [34]), ([40, 41], [44, 46])]
SPOKEN = [([4, 6, 9], 0), ([12, 13, 16, 18], 2), ([20], 1)]


class SmallTokenizer(TinyTokenizer):
    """Of as many ids as the families' models have, one [SEP] in the middle of a pair."""

    mask_token_id = 59
    all_special_ids = [0, 1, 2, 3, 59]

    def __len__(self) -> int:
        return 60

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        return [CLS, *first, SEP] if second is None else [CLS, *first, SEP, *second, SEP]


def split(batch: dict[str, Any], name: str, fill: int = 1) -> Tensor:
    """A batch's tokens padded, one sequence a row."""
    return padded([part.tolist() for part in batch[name][0].tensor_split(batch["cu_seq_lens_q"].tolist()[1:-1])], fill)


def padded_batch(batch: dict[str, Any], *further: str) -> dict[str, Tensor]:
    """The same for the padded model."""
    made = {name: split(batch, name, 0) for name in ("position_ids", *further)}
    made |= {"input_ids": split(batch, "input_ids"), "labels": split(batch, "labels", -100)}
    lengths = batch["cu_seq_lens_q"].diff()
    return made | {"attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long()}


def compare(plain: Any, fast: Any, batch: dict[str, Any], expected: dict[str, Tensor]) -> None:
    """Loss and gradients."""
    with exact_softmax():
        losses = [fast(**batch).loss, plain(**expected).loss]
    for loss in losses:
        loss.backward()
    assert losses[1] > 0
    assert_close(losses[0], losses[1])
    assert_same_gradients(gradients(fast), gradients(plain))


@pytest.mark.parametrize("family", ["bert", pytest.param("ernie", marks=pytest.mark.slow)])
@pytest.mark.parametrize("loss_only", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_masked_words_and_next_sentences(family: str, loss_only: bool) -> None:
    """The loss of transformers' padded model: both losses, their sum."""
    plain, fast = make(family, "ForPreTraining", **NO_DROPOUT)
    fast.loss_only = loss_only
    batch = MLMWithNSP(SmallTokenizer(), mask_probability=0.4)(PAIRS, rng(1))
    assert len(batch["next_sentence_label"].unique()) == 2
    expected = padded_batch(batch, "token_type_ids") | {"next_sentence_label": batch["next_sentence_label"]}
    compare(plain, fast, batch, expected)
    output = fast(**batch)
    assert (output.prediction_logits is None) == loss_only
    assert output.seq_relationship_logits.shape == (4, 2)
    assert type(output) is type(plain(**expected))
    with pytest.raises(ValueError, match=r"next_sentence_label must have shape \(4,\) \(num_sequences\), got \(3,\)"):
        fast(**(batch | {"next_sentence_label": torch.tensor([0, 1, 0])}))


def test_accumulated_batches_of_next_sentences() -> None:
    """Two halves with `num_items_in_batch`: the masked LM's loss of the whole, next sentences by their labels."""
    _, fast = make("bert", "ForPreTraining", **NO_DROPOUT)
    fast.loss_only = True
    batches = [MLMWithNSP(SmallTokenizer(), mask_probability=0.5)(half, rng(3)) for half in (PAIRS[:3], PAIRS[3:])]
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert counts[0] != counts[1]
    total = sum(counts)
    with torch.no_grad():
        found = sum(fast(**batch, num_items_in_batch=torch.tensor(total)).loss for batch in batches)
        expected = sum(fast(**batch).loss * count / total for batch, count in zip(batches, counts, strict=True))
    assert_close(found, expected)


def test_second_sentences_are_those_of_other_samples() -> None:
    objective = MLMWithNSP(SmallTokenizer(), mask_probability=0)
    samples = [([4], [first]) for first in range(5, 55)] * 20
    batch = objective(samples, rng())
    seconds, labels = batch["input_ids"].reshape(1000, 5)[:, 3], batch["next_sentence_label"]
    own = torch.tensor([second[0] for _, second in samples])
    assert torch.equal(seconds != own, labels == 1)
    assert 400 < labels.sum() < 560
    assert torch.equal(batch["token_type_ids"].reshape(1000, 5), torch.tensor([[0, 0, 0, 1, 1]]).expand(1000, 5))
    assert objective([([4], [6])], rng())["next_sentence_label"].tolist() == [0]
    with pytest.raises(ValueError, match="random_probability must lie between 0 and 1, got 2"):
        MLMWithNSP(SmallTokenizer(), random_probability=2)


def test_hooks_on_the_head_are_called() -> None:
    """By transformers' own forward; packed input is refused then."""
    plain, fast = make("bert", "ForPreTraining", **NO_DROPOUT)
    batch = MLMWithNSP(SmallTokenizer())(PAIRS, rng())
    seen: list[int] = []
    call = fast.cls.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        found = fast(**(expected := padded_batch(batch, "token_type_ids")))
        assert_close(found.seq_relationship_logits, plain(**expected).seq_relationship_logits)
    assert seen == [1]
    with pytest.raises(ValueError, match="input_ids must be a padded batch for BertForPreTraining: cls has hooks"):
        fast(**batch)
    call.remove()


def test_xlm_masked_lm() -> None:
    plain, fast = make("xlm", "WithLMHeadModel", **NO_DROPOUT)
    fast.loss_only = True
    batch = XLMMLM(SmallTokenizer(), mask_probability=0.5)(SPOKEN, rng())
    assert batch["langs"].tolist() == [[0] * 5 + [2] * 6 + [1] * 3]
    compare(plain, fast, batch, padded_batch(batch, "langs"))


def test_xlm_translation_lm() -> None:
    """Positions and languages of the second sentence are its own."""
    plain, fast = make("xlm", "WithLMHeadModel", **NO_DROPOUT)
    samples = [(SPOKEN[0], SPOKEN[1]), (SPOKEN[2], SPOKEN[0])]
    batch = XLMTLM(SmallTokenizer(), mask_probability=0.5)(samples, rng())
    assert batch["position_ids"].tolist() == [[*range(5), *range(6), *range(3), *range(5)]]
    assert batch["langs"].tolist() == [[0] * 5 + [2] * 6 + [1] * 3 + [0] * 5]
    assert batch["cu_seq_lens_q"].tolist() == [0, 11, 19]
    compare(plain, fast, batch, padded_batch(batch, "langs"))


def test_xlm_causal_lm() -> None:
    """Labels are shifted by the collator, since transformers' loss compares each place with its own label."""
    plain, fast = make("causal xlm", "WithLMHeadModel", **NO_DROPOUT)
    batch = XLMCLM(SmallTokenizer())([(sentence, language % 2) for sentence, language in SPOKEN], rng())
    assert batch["input_ids"].tolist() == [[CLS, 4, 6, 9, SEP, CLS, 12, 13, 16, 18, SEP, CLS, 20, SEP]]
    assert batch["labels"].tolist() == [[4, 6, 9, SEP, -100, 12, 13, 16, 18, SEP, -100, 20, SEP, -100]]
    compare(plain, fast, batch, padded_batch(batch, "langs"))
    with torch.no_grad():
        logits = fast(**batch).logits[0]
    labels = batch["labels"][0]
    assert_close(fast(**batch).loss, torch.nn.functional.cross_entropy(logits, labels))
    changed = batch["input_ids"].clone()
    changed[0, 4] = 50
    with torch.no_grad():
        other = fast(**(batch | {"input_ids": changed})).logits[0]
    assert torch.equal(other[:4], logits[:4]), "a token was seen before its place"
    assert (other[4] != logits[4]).any()


def test_xlm_without_languages() -> None:
    batch = XLMMLM(SmallTokenizer())([([4, 6], None), ([8], None)], rng())
    assert "langs" not in batch
    with pytest.raises(ValueError, match="languages of all sentences or of none"):
        XLMMLM(SmallTokenizer())([([4, 6], 1), ([8], None)], rng())


def test_other_families_take_the_sentence_objectives() -> None:
    """XLM-R, whose positions start at 2."""
    plain, fast = make("xlm-roberta", "ForMaskedLM", **NO_DROPOUT)
    batch = MMLM(SmallTokenizer(), first_position=fast.roberta.limits.first_position, mask_probability=0.5)(
        [[4, 6, 9], [12, 14, 16, 18]], rng()
    )
    assert (batch["input_ids"] == MASK).sum() == 0  # 59, not 99
    expected = padded_batch(batch)
    expected["position_ids"] = split(batch, "position_ids", 1)
    compare(plain, fast, batch, expected)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name == "xlm-roberta" else pytest.mark.slow)
        for name in FAMILIES
        if not name.endswith("xlm")
    ],
)
def test_no_family_sees_a_sentence_in_its_own_camlm(family: str) -> None:
    """After four layers: gradients by a masked sentence's own context are exactly 0, those by the other's are not."""
    _, fast = make(family, "ForMaskedLM", num_hidden_layers=4, **NO_DROPOUT)
    encoder = fast.base_model
    assert len(encoder.layer_stack) == 4
    objective = CAMLM(SmallTokenizer(), first_position=encoder.limits.first_position)
    Chosen(objective, [[2, 6]])
    batch = objective([([4, 6, 9], [12, 14, 16])], rng())
    assert batch["input_ids"].tolist() == [[12, 16, SEP, 59, CLS, 4, 9, SEP, 59]]
    labels = batch.pop("labels")
    embeds = fast.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    rows = encoder(inputs_embeds=embeds, **batch).last_hidden_state[0]
    assert (labels[0] != -100).nonzero()[:, 0].tolist() == [3, 8]
    # Context sees itself; a mask sees the other sentence's context and itself.
    for row, seen in ((0, [0, 1, 2]), (3, [0, 1, 2, 3]), (5, [4, 5, 6, 7]), (8, [4, 5, 6, 7, 8])):
        (grad,) = torch.autograd.grad(rows[row].sin().sum(), embeds, retain_graph=True)
        assert (grad[0] != 0).any(1).nonzero()[:, 0].tolist() == seen
