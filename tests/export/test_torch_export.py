"""torch.export: one program for all batch sizes and lengths, equal to the model, padding included."""

from typing import Any

import pytest
import torch
from helpers.pairs import CLASSES, LENGTHS, assert_close, batch, make
from torch import Tensor
from torch.export import Dim

from erniem_fast import PackedBatch
from erniem_fast.inputs import PaddedGrid
from erniem_fast.validation import PaddedInputs

LOWEST = torch.finfo(torch.float32).min
MAX_TOKENS = 64
BATCH, CHOICES, SEQUENCE = Dim("batch"), Dim("choices"), Dim("sequence", max=MAX_TOKENS)


def export(model: Any, inputs: dict[str, Any], strict: bool = False, **shapes: Any) -> Any:
    """The exported program as a function of the same arguments; every token tensor is (batch, [choices,] sequence)."""

    def dims(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        return (
            {0: BATCH, 1: CHOICES, 2: SEQUENCE} if "MultipleChoice" in type(model).__name__ else {0: BATCH, 1: SEQUENCE}
        )

    given = {name: dims(value) for name, value in inputs.items()} | shapes
    return torch.export.export(model, (), inputs, dynamic_shapes=given, strict=strict).module()


def batches() -> list[dict[str, Tensor]]:
    """Padded on the right, on the left, with holes, and not; a row of padding alone; one row, one token, all tokens."""
    found = [batch(lengths) for lengths in ((5, 9, MAX_TOKENS), (4, 0, 6), (1,), (1, 1), (MAX_TOKENS,), (3, 3))]
    found.append({name: value.flip(1) for name, value in batch((2, 7, 5)).items()})
    holes = batch((9, 9, 9, 9))
    holes["attention_mask"] = torch.randint(2, (4, 9))
    return [*found, holes]


def as_choices(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:, None] if len(value) % 2 else value[None] for name, value in inputs.items()}


def assert_same(program: Any, model: Any, inputs: dict[str, Any]) -> None:
    with torch.no_grad():
        found, expected = program(**inputs), model(**inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        for one, other in zip(*[(v if isinstance(v, tuple) else (v,)) for v in (found[name], value)], strict=True):
            assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "strict"),
    [
        ("ErnieMModel", False),
        pytest.param("ErnieMModel", True, marks=pytest.mark.slow),
        # tests/export/test_onnx.py exports all of them.
        pytest.param("ErnieMForMultipleChoice", False, marks=pytest.mark.slow),
        pytest.param("ErnieMForInformationExtraction", False, marks=pytest.mark.slow),
    ],
)
def test_one_program_for_all_batches(name: str, strict: bool) -> None:
    model = make(name, torch.float32, num_hidden_layers=1 + strict)[1]
    example = batch((7, 3, 10, 1))
    if name == "ErnieMForMultipleChoice":
        example = {key: value.view(2, 2, -1) for key, value in example.items()}
    program = export(model, example, strict)
    for inputs in batches():
        assert_same(program, model, as_choices(inputs) if name == "ErnieMForMultipleChoice" else inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"position_embedding_type": "relative_key_query"},
        {"pruned_heads": {0: [1, 3]}},
        {"hidden_act": "silu"},
    ],
    ids=str,
)
def test_configurations(changes: dict[str, Any]) -> None:
    model = make("ErnieMForTokenClassification", torch.float32, num_hidden_layers=1, **changes)[1]
    program = export(model, batch((7, 3)))
    for inputs in batches():
        assert_same(program, model, inputs)


@pytest.mark.slow
def test_other_arguments() -> None:
    model = make("ErnieMModel", torch.float32, num_hidden_layers=1)[1]

    def others(lengths: tuple[int, ...]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Inputs and the dimensions of those that are not (batch, sequence)."""
        both = batch(lengths)
        ids, mask = both["input_ids"], both["attention_mask"]
        seen = mask[:, :, None] * mask[:, None] * torch.randint(2, (mask.shape[1], mask.shape[1]))
        return [
            ({"input_ids": ids}, {}),
            ({"input_ids": ids, "position_ids": mask.cumsum(1) - 1, "attention_mask": mask}, {}),
            ({"inputs_embeds": torch.randn(*ids.shape, 32), "attention_mask": mask}, {}),
            ({"input_ids": ids, "attention_mask": seen}, {"attention_mask": {0: BATCH, 1: SEQUENCE, 2: SEQUENCE}}),
            (both | {"output_hidden_states": True, "output_attentions": True}, {}),
        ]

    for (example, shapes), *rest in zip(*map(others, ((7, 3), (5, 9, 2), LENGTHS)), strict=True):
        program = export(model, example, **shapes)
        for inputs, _ in rest:
            assert_same(program, model, inputs)


@pytest.mark.slow
def test_modules_that_are_called_are_exported_as_called() -> None:
    model = make("ErnieMForTokenClassification", torch.float32, num_hidden_layers=1)[1]
    model.ernie_m.encoder.layers[0].linear1.register_forward_hook(lambda module, given, output: 2 * output)
    program = export(model, batch((7, 3)))
    for inputs in batches():
        assert_same(program, model, inputs)


@pytest.mark.slow
def test_the_reference_is_exported_as_it_is() -> None:
    model = make("ErnieMForQuestionAnswering", torch.float32, num_hidden_layers=1)[0]
    program = export(model, batch((7, 3)))
    for inputs in batches():
        assert_same(program, model, inputs)


def test_rows_with_padding_give_what_packed_rows_give() -> None:
    mask = torch.randint(2, (6, 5)).bool()
    mask[0], mask[1] = False, True
    ids = torch.randint(2, 100, mask.shape)
    inputs = PaddedInputs(ids, None, torch.arange(5).expand(6, 5), mask, None, int(mask.sum()), int(mask.sum(1).max()))
    grid, packed = PaddedGrid.of(inputs), PackedBatch.from_padded(inputs)
    assert torch.equal(grid.input_ids[mask.flatten()], packed.input_ids)
    assert grid.num_sequences == packed.num_sequences
    assert grid.token_shape == packed.token_shape
    rows = torch.randn(30, 4)
    real = rows[mask.flatten()]
    for found, expected in (
        (grid.output(rows), packed.output(real)),
        (grid.output(rows[:, 0], LOWEST), packed.output(real[:, 0], LOWEST)),
        (grid.to_grid(rows > 0, False), packed.to_grid(real > 0, False)),
        (grid.to_grid(rows > 0, True), packed.to_grid(real > 0, True)),
        (grid.first(rows), packed.first(real)),
        (grid.rows(grid.output(rows))[mask.flatten()], packed.rows(packed.output(real))),
    ):
        assert torch.equal(found, expected)
    assert_close(grid.mean(rows), packed.mean(real))


@pytest.mark.slow
def test_too_many_tokens_and_bad_ids_are_errors_in_the_program() -> None:
    model = make("ErnieMModel", torch.float32, num_hidden_layers=1)[1]
    program = export(model, batch((7, 3)))
    with pytest.raises((AssertionError, RuntimeError), match="64"):
        program(**batch((MAX_TOKENS + 1,)))
    inputs = batch((4, 2))
    inputs["input_ids"][0, 1] = 100
    with pytest.raises(IndexError):
        program(**inputs)


@pytest.mark.slow
def test_labels_are_refused() -> None:
    model = make("ErnieMForTokenClassification", torch.float32, num_hidden_layers=1)[1]
    with pytest.raises(ValueError, match=r"labels must be None under torch\.export"):
        export(model, batch((4, 2)) | {"labels": torch.zeros(2, 4, dtype=torch.int64)})


@pytest.mark.parametrize("name", CLASSES)
def test_tracing_is_refused(name: str) -> None:
    ids = torch.randint(2, 100, (2, 3, 5) if name == "ErnieMForMultipleChoice" else (2, 5))
    for model in make(name, torch.float32, num_hidden_layers=1):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace is not supported: .* use torch\.export\.export"):
            torch.jit.trace(model, (ids,))


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
def test_the_old_onnx_exporter_is_refused(tmp_path: Any) -> None:
    model = make("ErnieMForTokenClassification", torch.float32, num_hidden_layers=1)[1]
    with pytest.raises(RuntimeError, match=r"erniem_fast\.export\.export_onnx for ONNX"):
        torch.onnx.export(model, (torch.ones(1, 3, dtype=torch.int64),), str(tmp_path / "model.onnx"), dynamo=False)
