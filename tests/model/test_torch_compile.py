"""torch.compile of the packed model: whole, right, and once for all batches."""

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from helpers.pairs import NO_DROPOUT, SIZES
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import erniem_fast
from erniem_fast import ErnieMConfig, PackedBatch
from erniem_fast.validation import warn_once

LENGTHS = [(5, 3, 9), (16, 2, 2, 7, 11), (64, 30), (4, 4, 4, 4, 4, 4, 4), (2, 60), (1, 12, 0, 13), (6, 6, 6, 6)]
"""Other totals, numbers of sequences and longest sequences each."""
SPECIAL_LENGTHS = [(7,), (1, 1)]
"""The compiler takes sizes of 1 for constants: each of these may cost a graph."""
MOST_GRAPHS = 2
"""One for the first sizes seen, one for all."""
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "act_dropout": 0.1}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(name: str = "ErnieMModel", **changes: Any) -> Any:
    model = getattr(erniem_fast, name)(ErnieMConfig(**(SIZES | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def packed(lengths: tuple[int, ...]) -> dict[str, Any]:
    """As DataCollatorWithFlattening makes them."""
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.randint(2, 100, (1, sum(lengths))),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def labels_for(name: str, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    if name == "ErnieMForSequenceClassification":
        return {"labels": torch.randint(3, (len(lengths),))}
    if name == "ErnieMForQuestionAnswering":
        ends = torch.tensor(lengths)
        return {"start_positions": torch.randint(100, ends.shape) % ends.clamp(min=1), "end_positions": ends - 1}
    if name == "ErnieMForInformationExtraction":
        return {key: torch.randint(2, (1, sum(lengths))) for key in ("start_positions", "end_positions")}
    labels = torch.randint(100 if name == "ErnieMForMaskedLM" else 3, (1, sum(lengths)))
    labels[0, ::3] = -100
    return {"labels": labels}


def compiled(model: Any, backend: str = "aot_eager") -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, fullgraph=True, backend=counter), counter


def loss_of(output: Any) -> Tensor:
    if getattr(output, "loss", None) is not None:
        return output.loss
    return output.last_hidden_state.tanh().square().sum() + output.pooler_output.sum()


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    keys = [key for key, value in expected.items() if isinstance(value, Tensor)]
    assert keys
    assert found.keys() == expected.keys()
    for key in keys:
        torch.testing.assert_close(found[key], expected[key], rtol=tolerance, atol=tolerance)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    assert found
    for name, grad in expected.items():
        scale = max(1.0, float(grad.abs().max()))
        torch.testing.assert_close(found[name] / scale, grad / scale, rtol=tolerance, atol=tolerance)


def check(model: Any, inputs_of: Callable[[tuple[int, ...]], dict[str, Any]], backend: str = "aot_eager") -> None:
    """Forward and backward are eager's on every batch, by few graphs."""
    fast, counter = compiled(model, backend)
    for lengths in LENGTHS:
        inputs = inputs_of(lengths)
        found, expected = fast(**inputs), model(**inputs)
        assert_same(found, expected)
        loss_of(found).backward()
        found_gradients = gradients(model)
        loss_of(expected).backward()
        assert_same_gradients(found_gradients, gradients(model))
    assert 1 <= counter.frame_count <= MOST_GRAPHS


def test_forward_and_backward_are_eagers() -> None:
    check(make(num_hidden_layers=1, **NO_DROPOUT).train(), packed)


@pytest.mark.slow
def test_inference_is_eagers() -> None:
    model = make()
    fast, counter = compiled(model)
    with torch.no_grad():
        for lengths in (*LENGTHS, *SPECIAL_LENGTHS, *LENGTHS):
            if lengths == SPECIAL_LENGTHS[0]:
                assert 1 <= counter.frame_count <= MOST_GRAPHS
            inputs = packed(lengths)
            assert_same(fast(**inputs), model(**inputs))
    assert counter.frame_count <= MOST_GRAPHS + len(SPECIAL_LENGTHS)


def test_weights_may_change_between_calls() -> None:
    """No weight, fused ones neither, is frozen into the graph."""
    model = make()
    fast, counter = compiled(model)
    inputs = packed(LENGTHS[0])
    with torch.no_grad():
        model(**inputs)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            assert_same(fast(**inputs), copy.deepcopy(model)(**inputs))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ErnieMForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("ErnieMForTokenClassification", marks=pytest.mark.slow),
        pytest.param("ErnieMForQuestionAnswering", marks=pytest.mark.slow),
        pytest.param("ErnieMForInformationExtraction", marks=pytest.mark.slow),
        pytest.param("ErnieMForMaskedLM", marks=pytest.mark.slow),
    ],
)
def test_heads_with_labels(name: str) -> None:
    changes = {} if name == "ErnieMForQuestionAnswering" else {"num_labels": 3}
    check(make(name, num_hidden_layers=1, **changes), lambda lengths: packed(lengths) | labels_for(name, lengths))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForSequenceClassification"])
def test_packed_batch_as_input(name: str) -> None:
    def inputs(lengths: tuple[int, ...]) -> dict[str, Any]:
        batch = PackedBatch.from_sequences([torch.randint(2, 100, (length,)) for length in lengths])
        return {"input_ids": batch} | ({} if name == "ErnieMModel" else labels_for(name, lengths))

    check(make(name, num_hidden_layers=1, num_labels=3), inputs)


@pytest.mark.slow
def test_inputs_embeds_without_positions() -> None:
    def inputs(lengths: tuple[int, ...]) -> dict[str, Any]:
        given = packed(lengths)
        del given["input_ids"], given["position_ids"]
        return given | {"inputs_embeds": torch.randn(1, sum(lengths), 32)}

    check(make(num_hidden_layers=1), inputs)


@pytest.mark.slow
def test_prefix_lens() -> None:
    def inputs(lengths: tuple[int, ...]) -> dict[str, Any]:
        batch = PackedBatch.from_sequences([torch.randint(2, 100, (length,)) for length in lengths])
        prefixes = torch.tensor([length // 2 for length in lengths], dtype=torch.int32)
        return {"input_ids": PackedBatch(**(vars(batch) | {"prefix_lens": prefixes}))}

    check(make(num_hidden_layers=1), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForTokenClassification"])
def test_dropout(name: str) -> None:
    """Another mask each call, governed by manual_seed; the encoder's masks are those of eager mode."""
    # Masks outside attention are many operations to compile.
    changes = DROPOUT if name == "ErnieMModel" else {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.3}
    model = make(name, num_hidden_layers=1, **changes).train()
    fast, counter = compiled(model)

    def run(runner: Any, inputs: dict[str, Any], seed: int | None) -> tuple[Tensor, dict[str, Tensor]]:
        if seed is not None:
            torch.manual_seed(seed)
        loss = loss_of(runner(**inputs))
        loss.backward()
        return loss.detach(), gradients(model)

    for lengths in LENGTHS[:4]:
        inputs = packed(lengths) | ({} if name == "ErnieMModel" else labels_for(name, lengths))
        (first, grads), (again, same), (other, _) = (run(fast, inputs, seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert all(torch.equal(same[key], grad) for key, grad in grads.items())
        assert not torch.equal(first, other)
        assert not torch.equal(run(fast, inputs, None)[0], run(fast, inputs, None)[0])
        if name == "ErnieMModel":
            expected, eager_gradients = run(model, inputs, 1)
            torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
            assert_same_gradients(grads, eager_gradients)
    assert 1 <= counter.frame_count <= MOST_GRAPHS


@pytest.mark.slow
def test_training_and_evaluation_in_turn() -> None:
    """Each has its graph, and neither is compiled again."""
    model = make("ErnieMForSequenceClassification", num_labels=3, num_hidden_layers=1, hidden_dropout_prob=0.0)
    fast, counter = compiled(model)
    for _ in range(2):
        for lengths in LENGTHS[:3]:
            inputs = packed(lengths) | labels_for("ErnieMForSequenceClassification", lengths)
            loss_of(fast.train()(**inputs)).backward()
            fast.eval()
            with torch.no_grad():
                assert_same(fast(**inputs), model(**inputs))
    assert counter.frame_count <= 2 * MOST_GRAPHS


@pytest.mark.slow
def test_called_submodules_compile() -> None:
    """Those that are not fused are in the graph all the same."""
    model = make()
    model.encoder.layers[0].norm1 = torch.nn.RMSNorm(32)
    model.encoder.layers[1].self_attn.self_attn.v_proj = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh())
    model.encoder.layers[1].activation = torch.nn.SiLU()
    model.embeddings.dropout = torch.nn.Identity()
    check(model, packed)


def test_ids_out_of_range_stay_in_bounds() -> None:
    """Nobody reads values under compile; the kernels clamp."""
    fast, _ = compiled(make())
    inputs = packed((5, 4))
    inputs["input_ids"][0, 3], inputs["input_ids"][0, 4] = 100_000, -7
    inputs["position_ids"][0, 2] = 5_000
    with torch.no_grad():
        output = fast(**inputs)
    assert output.last_hidden_state.isfinite().all()


def test_shapes_are_still_checked() -> None:
    fast, _ = compiled(make())
    inputs = packed((5, 4))
    inputs["position_ids"] = inputs["position_ids"][:, :-1]
    with pytest.raises(Exception, match="position_ids"):
        fast(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForTokenClassification"])
def test_inductor(name: str) -> None:
    def inputs(lengths: tuple[int, ...]) -> dict[str, Any]:
        return packed(lengths) | ({} if name == "ErnieMModel" else labels_for(name, lengths))

    check(make(name, num_hidden_layers=1, num_labels=3), inputs, "inductor")


@pytest.mark.slow
def test_inductor_with_dropout() -> None:
    model = make(num_hidden_layers=1, **DROPOUT).train()
    fast, _ = compiled(model, "inductor")
    for lengths in LENGTHS[:3]:
        inputs = packed(lengths)
        losses = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            loss = loss_of(fast(**inputs))
            loss.backward()
            losses.append(loss.detach())
        assert torch.equal(losses[0], losses[1])
        assert not torch.equal(losses[0], losses[2])
        assert all(grad.isfinite().all() for grad in gradients(model).values())


def operands(lengths: tuple[int, ...], dropout: bool, prefixed: bool, grad: bool, dtype: torch.dtype) -> list[Any]:
    qkv = torch.randn(sum(lengths), 3, 2, 8, dtype=dtype, requires_grad=grad)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    prefixes = torch.tensor([length // 2 for length in lengths], dtype=torch.int32) if prefixed else None
    seed = torch.randint(2**62, (1,)) if dropout else None
    return [qkv, offsets, max(lengths), prefixes, prefixed and dropout, 0.3 if dropout else 0.0, seed, 5]


CASES = [
    pytest.param(*case, marks=() if case[1:] == (True, True, True) else pytest.mark.slow)
    for case in product(
        [((4, 3, 0, 4), torch.float64), ((6,), torch.bfloat16)], (False, True), (False, True), (False, True)
    )
]


@pytest.mark.parametrize(("batch", "dropout", "prefixed", "grad"), CASES, ids=str)
def test_the_operation_keeps_its_promises(
    batch: tuple[tuple[int, ...], torch.dtype], dropout: bool, prefixed: bool, grad: bool
) -> None:
    lengths, dtype = batch
    arguments = operands(lengths, dropout, prefixed, grad, dtype)
    torch.library.opcheck(torch.ops.erniem_fast.varlen_attention_torch, arguments)
    result = torch.randn(sum(lengths), 2, 8, dtype=dtype)
    arguments[0] = arguments[0].detach()
    torch.library.opcheck(torch.ops.erniem_fast.varlen_attention_torch_backward, [result, *arguments])
    # A transposed operand too: gradients come in any strides.
    strided = torch.randn(8, 2, sum(lengths), dtype=dtype).permute(2, 1, 0)
    torch.library.opcheck(torch.ops.erniem_fast.varlen_attention_torch_backward, [strided, *arguments])
    arguments[0] = torch.randn(3, sum(lengths), 2, 8, dtype=dtype).transpose(0, 1)
    torch.library.opcheck(torch.ops.erniem_fast.varlen_attention_torch, arguments)


@pytest.mark.parametrize(
    ("dropout", "prefixed"),
    [
        (True, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((True, False), (False, True), (False, False))),
    ],
)
def test_the_gradient_of_the_operation(dropout: bool, prefixed: bool) -> None:
    arguments = operands((3, 1, 4), dropout, prefixed, True, torch.float64)
    operation = torch.ops.erniem_fast.varlen_attention_torch
    assert torch.autograd.gradcheck(lambda qkv: operation(qkv, *arguments[1:]), arguments[:1])


def test_a_later_warning_compiles_nothing_again() -> None:
    fast, counter = compiled(make(hidden_act="silu"))
    for message in ("one warning", "another"):
        with torch.no_grad():
            fast(**packed((3, 7)))
        warn_once(message)
    with torch.no_grad():
        fast(**packed((3, 7)))
    assert counter.frame_count == 1
