"""Bad input: one error that names the argument, what came and what is accepted, from both models."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from erniem_fast import PackedBatch

IDS = torch.randint(2, 97, (2, 6))
EMBEDS = torch.randn(2, 6, 32)
MASK = torch.ones(2, 6)
NESTED = torch.nested.nested_tensor([torch.randint(2, 97, (6,)), torch.randint(2, 97, (3,))])


def put(tensor: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "id below 0": ({"input_ids": put(IDS, (1, 2), -1)}, ValueError, r"input_ids must lie in \[0, 97\).*got -1"),
    "id at vocab_size": ({"input_ids": put(IDS, (0, 0), 97)}, ValueError, r"input_ids must lie in \[0, 97\).*got 97"),
    "id at padding": (
        {"input_ids": put(IDS, (0, 5), 1000), "attention_mask": put(MASK, (0, 5), 0)},
        ValueError,
        "got 1000",
    ),
    "too many tokens": (
        {"input_ids": torch.full((1, 65), 5)},
        ValueError,
        "at most 64 tokens.*max_position_embeddings.*got 65",
    ),
    "too many embeds": ({"input_ids": None, "inputs_embeds": torch.randn(1, 65, 32)}, ValueError, "at most 64.*got 65"),
    "position beyond the table": (
        {"position_ids": put(torch.arange(6).repeat(2, 1), (1, 5), 64)},
        ValueError,
        r"position_ids.* must lie in \[0, 64\).*got 64",
    ),
    "position below 0": (
        {"position_ids": put(torch.arange(6).repeat(2, 1), (1, 5), -1)},
        ValueError,
        "position_ids must lie in.*got -1",
    ),
    "position far below 0 at padding": (
        {"position_ids": put(torch.arange(6).repeat(2, 1), (0, 5), -3), "attention_mask": put(MASK, (0, 5), 0)},
        ValueError,
        "position_ids at padding must lie in.*got -3",
    ),
    "no rows": ({"input_ids": IDS[:0]}, ValueError, r"empty batch, got shape \(0, 6\)"),
    "no columns": ({"input_ids": IDS[:, :0]}, ValueError, r"empty batch, got shape \(2, 0\)"),
    "one dimension": ({"input_ids": IDS[0]}, ValueError, r"input_ids must have shape \(batch, seq_len\), got \(6,\)"),
    "both": ({"inputs_embeds": EMBEDS}, ValueError, "exactly one of input_ids and inputs_embeds, got both"),
    "neither": ({"input_ids": None}, ValueError, "exactly one of input_ids and inputs_embeds, got neither"),
    "float ids": ({"input_ids": IDS.float()}, TypeError, "input_ids must be int64 or int32, got torch.float32"),
    "bool ids": ({"input_ids": IDS > 9}, TypeError, "input_ids must be int64 or int32, got torch.bool"),
    "list ids": ({"input_ids": IDS.tolist()}, TypeError, "input_ids must be a tensor, got list"),
    "integer embeds": (
        {"input_ids": None, "inputs_embeds": IDS[..., None]},
        TypeError,
        "floating point, got torch.int64",
    ),
    "embeds of another width": (
        {"input_ids": None, "inputs_embeds": torch.randn(2, 6, 31)},
        ValueError,
        "size 32.*got shape",
    ),
    "nested embeds": (
        {"input_ids": None, "inputs_embeds": torch.nested.nested_tensor([torch.randn(6, 32), torch.randn(3, 32)])},
        TypeError,
        "inputs_embeds must be a dense tensor, got a nested one",
    ),
    "embeds of another dtype": (
        {"input_ids": None, "inputs_embeds": EMBEDS.double()},
        ValueError,
        "torch.float32.*got torch.float64",
    ),
    "mask of another shape": (
        {"attention_mask": torch.ones(2, 5)},
        ValueError,
        r"attention_mask must have shape \(2, 6\).*got \(2, 5\)",
    ),
    "square mask of another shape": ({"attention_mask": torch.ones(2, 6, 5)}, ValueError, r"got \(2, 6, 5\)"),
    "mask of too many heads": ({"attention_mask": torch.ones(2, 3, 6, 6)}, ValueError, r"got \(2, 3, 6, 6\)"),
    "mask value": (
        {"attention_mask": put(MASK, (1, 1), 2)},
        ValueError,
        "attention_mask must hold only 0 and 1, got 2",
    ),
    "mask fraction": ({"attention_mask": put(MASK, (1, 1), 0.5)}, ValueError, "only 0 and 1, got 0.5"),
    "additive mask": ({"attention_mask": put(MASK, (1, 1), -1e4)}, ValueError, "only 0 and 1, got -10000"),
    "NaN in the mask": ({"attention_mask": put(MASK, (1, 1), torch.nan)}, ValueError, "only 0 and 1, got nan"),
    "list mask": ({"attention_mask": [[1] * 6] * 2}, TypeError, "attention_mask must be a tensor, got list"),
    "position shape": (
        {"position_ids": torch.zeros(2, 5, dtype=torch.long)},
        ValueError,
        r"position_ids must have shape \(2, 6\)",
    ),
    "float positions": ({"position_ids": torch.zeros(2, 6)}, TypeError, "position_ids must be int64 or int32"),
    "mask elsewhere": ({"attention_mask": MASK.to("meta")}, ValueError, "attention_mask must be on cpu.*got meta"),
    "ids elsewhere": ({"input_ids": IDS.to("meta")}, ValueError, "input_ids must be on cpu.*the model.*got meta"),
    "head mask shape": ({"head_mask": torch.ones(3)}, ValueError, r"head_mask must have shape \(4,\).*got \(3,\)"),
    "nested ids": ({"input_ids": NESTED}, TypeError, "input_ids must be a dense tensor, got a nested one"),
    "nested mask": ({"attention_mask": NESTED}, TypeError, "attention_mask must be a dense tensor, got a nested one"),
    "head mask elsewhere": (
        {"head_mask": torch.ones(4, device="meta")},
        ValueError,
        "head_mask must be on cpu, where the input is, got meta",
    ),
    "complex head mask": ({"head_mask": torch.ones(4) * 1j}, TypeError, "head_mask must be bool.*got torch.complex64"),
    "cache": ({"past_key_values": ((EMBEDS, EMBEDS),)}, ValueError, "past_key_values must be None"),
}


@pytest.mark.parametrize("change", BAD)
def test_bad_input(make_pair: Any, change: str) -> None:
    arguments, error, message = BAD[change]
    for model in make_pair(dtype=torch.float32):
        assert model(IDS).last_hidden_state.isfinite().all()
        with pytest.raises(error, match=message):
            model(**({"input_ids": IDS} | arguments))


POSITIONS = torch.arange(6).repeat(1, 2)
PACKED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "starts late": ({"cu_seq_lens_q": torch.tensor([1, 12])}, ValueError, "cu_seq_lens_q.* must start at 0.*first 1"),
    "decreases": ({"cu_seq_lens_q": torch.tensor([0, 8, 6, 12])}, ValueError, "never fall.*smallest step -2"),
    "ends early": ({"cu_seq_lens_q": torch.tensor([0, 6])}, ValueError, "end at 12.*last 6"),
    "ends late": ({"cu_seq_lens_q": torch.tensor([0, 13])}, ValueError, "end at 12.*last 13"),
    "one offset": ({"cu_seq_lens_q": torch.tensor([0])}, ValueError, r"cu_seq_lens_q must have shape.*got \(1,\)"),
    "two dimensions": ({"cu_seq_lens_q": torch.tensor([[0, 12]])}, ValueError, "cu_seq_lens_q must have shape"),
    "float offsets": ({"cu_seq_lens_q": torch.tensor([0.0, 12.0])}, TypeError, "cu_seq_lens_q must be int64 or int32"),
    "other keys": ({"cu_seq_lens_k": torch.tensor([0, 5, 12])}, ValueError, "cu_seq_lens_k must equal cu_seq_lens_q"),
    "short max_length": ({"max_length_q": 5}, ValueError, "max_length_q.* must be at least 6.*got 5"),
    "float max_length": ({"max_length_q": 6.0}, TypeError, "max_length_q must be an int, got float"),
    "a mask": ({"attention_mask": torch.ones(1, 12)}, ValueError, "attention_mask must be None with packed input"),
    "two rows": ({"input_ids": IDS}, ValueError, r"packed input must have shape \(1, total_tokens.*got \(2, 6\)"),
    "id out of range": ({"input_ids": torch.full((1, 12), 97)}, ValueError, r"input_ids must lie in \[0, 97\).*got 97"),
    "position out of range": ({"position_ids": POSITIONS + 60}, ValueError, r"position_ids must lie in \[0, 64\)"),
    "position shape": ({"position_ids": POSITIONS[:, :5]}, ValueError, r"position_ids must have shape \(1, 12\)"),
    "float ids": ({"input_ids": torch.rand(1, 12)}, TypeError, "input_ids must be int64 or int32"),
    "too long": (
        {"input_ids": torch.full((1, 65), 3), "cu_seq_lens_q": torch.tensor([0, 65]), "position_ids": None},
        ValueError,
        "at most 64 tokens.*got 65",
    ),
    "batch and embeds": (
        {"input_ids": PackedBatch.from_sequences([[4, 5]]), "inputs_embeds": EMBEDS},
        ValueError,
        "inputs_embeds must be None",
    ),
}


@pytest.mark.parametrize("change", PACKED)
def test_bad_packed_input(make_pair: Any, change: str) -> None:
    arguments, error, message = PACKED[change]
    _, fast = make_pair(dtype=torch.float32)
    good = {"input_ids": IDS.reshape(1, 12), "position_ids": POSITIONS, "cu_seq_lens_q": torch.tensor([0, 6, 12])}
    assert fast(**good).last_hidden_state.isfinite().all()
    with pytest.raises(error, match=message):
        fast(**(good | arguments))


def test_packed_arguments_without_offsets(make_pair: Any) -> None:
    _, fast = make_pair(dtype=torch.float32)
    for name, value in (
        ("cu_seq_lens_k", torch.tensor([0, 6])),
        ("max_length_q", 6),
        ("prefix_lens", torch.tensor([2])),
    ):
        with pytest.raises(ValueError, match=f"{name} must be None without cu_seq_lens_q"):
            fast(IDS, **{name: value})
        with pytest.raises(ValueError, match=f"{name} must be None where input_ids is a PackedBatch"):
            fast(PackedBatch.from_sequences([[4, 5]]), **{name: value})


def test_no_sequences() -> None:
    with pytest.raises(ValueError, match="at least one sequence, got none"):
        PackedBatch.from_sequences([])


LABELS: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "class": (
        "ErnieMForSequenceClassification",
        {"labels": torch.tensor([0, 3])},
        ValueError,
        r"labels must lie in \[0, 3\) \(num_labels\).*got 3",
    ),
    "classes of another shape": (
        "ErnieMForSequenceClassification",
        {"labels": torch.tensor([0, 1, 2])},
        ValueError,
        r"labels must have shape \(2,\)",
    ),
    "multi-label shape": (
        "ErnieMForSequenceClassification",
        {"labels": torch.rand(2, 4)},
        ValueError,
        r"labels must have shape \(2, 3\)",
    ),
    "token class": (
        "ErnieMForTokenClassification",
        {"labels": put(IDS % 3, (1, 1), -1)},
        ValueError,
        "labels must lie in.*got -1",
    ),
    "token shape": (
        "ErnieMForTokenClassification",
        {"labels": IDS[:, :5] % 3},
        ValueError,
        r"must have shape \(2, 6\)",
    ),
    "float token classes": (
        "ErnieMForTokenClassification",
        {"labels": torch.rand(2, 6)},
        TypeError,
        "labels must be int64",
    ),
    "vocabulary": ("ErnieMForMaskedLM", {"labels": put(IDS, (0, 0), 97)}, ValueError, r"labels must lie in \[0, 97\)"),
    "answers of another shape": (
        "ErnieMForQuestionAnswering",
        {"start_positions": torch.zeros(3, dtype=torch.long), "end_positions": torch.zeros(2, dtype=torch.long)},
        ValueError,
        r"start_positions must have shape \(2,\)",
    ),
    "float answers": (
        "ErnieMForQuestionAnswering",
        {"start_positions": torch.rand(2), "end_positions": torch.rand(2)},
        TypeError,
        "start_positions must be int64",
    ),
    "boundary value": (
        "ErnieMForInformationExtraction",
        {"start_positions": torch.full((2, 6), 2), "end_positions": IDS % 2},
        ValueError,
        r"start_positions must lie in \[0, 1\].*got 2",
    ),
    "boundary shape": (
        "ErnieMForInformationExtraction",
        {"start_positions": IDS[:, 0] % 2, "end_positions": IDS % 2},
        ValueError,
        r"start_positions must have shape \(2, 6\)",
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_bad_labels(make_pair: Any, case: str) -> None:
    name, labels, error, message = LABELS[case]
    for model in make_pair(name, torch.float32, num_labels=3 if "Classification" in name else 2):
        with pytest.raises(error, match=message):
            model(IDS, **labels)


def test_answers_need_two_labels(make_pair: Any) -> None:
    for model in make_pair("ErnieMForQuestionAnswering", num_labels=3):
        with pytest.raises(ValueError, match=r"num_labels must be 2.*got 3"):
            model(IDS)


def test_choice_labels(make_pair: Any) -> None:
    ids = torch.randint(2, 97, (2, 3, 6))
    for model in make_pair("ErnieMForMultipleChoice", torch.float32):
        assert model(ids, labels=torch.tensor([2, -100])).loss > 0
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\) \(num_choices\).*got 3"):
            model(ids, labels=torch.tensor([0, 3]))
        with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
            model(ids, labels=torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match="num_choices"):
            model(ids[0])


def test_nothing_to_learn_from_gives_zero_with_a_graph(make_pair: Any) -> None:
    ignored = torch.full((2, 6), -100)
    for name, labels in (
        ("ErnieMForTokenClassification", {"labels": ignored}),
        (
            "ErnieMForQuestionAnswering",
            {"start_positions": torch.tensor([-100, 6]), "end_positions": torch.tensor([99, -1])},
        ),
        ("ErnieMForInformationExtraction", {"start_positions": ignored, "end_positions": ignored}),
    ):
        for model in make_pair(name, torch.float32):
            loss = model(IDS, **labels).loss
            assert loss == 0
            loss.backward()
            assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_sequence_classification_problem_types(make_pair: Any) -> None:
    """Derived from each call's labels: 4.40.2's first guess stuck to the configuration."""
    for model in make_pair("ErnieMForSequenceClassification", num_labels=3):
        logits = model(IDS).logits
        single, multi = torch.tensor([2, 0]), torch.rand(2, 3) < 0.5
        cross_entropy = torch.nn.functional.cross_entropy(logits, single)
        binary = torch.nn.functional.binary_cross_entropy_with_logits(logits, multi.double())
        for labels, expected in (
            (single, cross_entropy),
            (multi, binary),
            (multi.float(), binary),
            (single, cross_entropy),
        ):
            torch.testing.assert_close(model(IDS, labels=labels).loss, expected)
        assert model.config.problem_type is None
        model.config.problem_type = "regression"
        target = torch.rand(2, 3)
        torch.testing.assert_close(model(IDS, labels=target).loss, ((logits - target) ** 2).mean())


def test_token_type_ids_are_ignored_with_one_warning(make_pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    from erniem_fast import validation

    validation._warned.clear()
    with caplog.at_level(logging.WARNING):
        for model in make_pair(dtype=torch.float32):
            for _ in range(2):
                expected = model(IDS)[0]
                assert torch.equal(model(IDS, token_type_ids=torch.zeros_like(IDS))[0], expected)
    assert [record.message for record in caplog.records if "token_type_ids" in record.message] == [
        "token_type_ids are ignored: ErnieM has no token type embedding."
    ]


def test_dense_attention_says_so_once(make_pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    from erniem_fast import validation

    validation._warned.clear()
    _, fast = make_pair(dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        fast(IDS)
        assert not caplog.records
        for _ in range(2):
            fast(IDS, output_attentions=True)
    assert len([record for record in caplog.records if "computed densely" in record.message]) == 1


def test_positions_of_the_cumsum_idiom(make_pair: Any) -> None:
    """`mask.cumsum(-1) - 1` leaves -1 at left padding, which 4.40.2 reads as row 1."""
    plain, fast = make_pair()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    position_ids = mask.cumsum(-1) - 1
    found = fast(IDS, attention_mask=mask, position_ids=position_ids)[0]
    expected = plain(IDS, attention_mask=mask, position_ids=position_ids)[0]
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-10)
    shared = torch.arange(6)[None]
    torch.testing.assert_close(fast(IDS, position_ids=shared)[0], fast(IDS)[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_mask_dtypes(make_pair: Any, dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    for model in make_pair():
        assert torch.equal(model(IDS, attention_mask=mask.to(dtype))[0], model(IDS, attention_mask=mask)[0])


def test_int32_ids(make_pair: Any) -> None:
    for model in make_pair():
        assert torch.equal(model(IDS.int())[0], model(IDS)[0])
