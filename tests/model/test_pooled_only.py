"""Heads that read the pooler only: the last layer computes a row a sequence, and nobody can see it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.pairs import (
    NO_DROPOUT,
    assert_agree,
    assert_close,
    assert_same_gradients,
    batch,
    gradients,
    make,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from erniem_fast import PackedBatch, batch_invariant, modeling

NAME = "ErnieMForSequenceClassification"
LAST = "ernie_m.encoder.layers.1"
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2, "act_dropout": 0.1}


class LinearRows(TorchFunctionMode):
    """Rows of each call of a linear layer, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            self.rows.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def linear_rows(run: Callable[[], Any]) -> list[int]:
    with LinearRows() as mode:
        run()
    return mode.rows


def packed(lengths: list[int]) -> PackedBatch:
    return PackedBatch.from_sequences([torch.randint(2, 100, (length,)) for length in lengths])


def everything(model: Any, **inputs: Any) -> Any:
    """Run with a hook that does nothing: all rows are computed."""
    handle = model.ernie_m.register_forward_hook(lambda *_: None)
    try:
        return model(**inputs)
    finally:
        handle.remove()


@pytest.mark.parametrize("train", [False, True])
def test_the_last_layer_computes_a_row_a_sequence(train: bool) -> None:
    _, model = make(NAME)
    model.train(train)
    inputs = batch((7, 3, 10, 1))
    full = [21] * 4  # q, k and v in one product, out, linear1, linear2
    assert linear_rows(lambda: model(**inputs)) == [*full, 21, 4, 4, 4, 4, 4]  # pooler, classifier
    assert linear_rows(lambda: everything(model, **inputs)) == [*full, *full, 4, 4]
    assert linear_rows(lambda: model(**inputs, output_hidden_states=True)) == [*full, *full, 4, 4]
    _, choice = make("ErnieMForMultipleChoice")
    choices = {name: value.view(2, 2, -1) for name, value in inputs.items()}
    assert linear_rows(lambda: choice(**choices)) == [*full, 21, 4, 4, 4, 4, 4]


@settings(max_examples=8)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8), checkpointing=st.booleans())
def test_results_and_gradients_are_those_of_all_rows(lengths: list[int], checkpointing: bool) -> None:
    _, model = make(NAME, **NO_DROPOUT)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = {"input_ids": packed(lengths), "labels": torch.randint(2, (len(lengths),))}
    other = make(NAME, **NO_DROPOUT)[1].train()
    other.load_state_dict(model.state_dict())
    found, expected = model(**inputs), everything(other, **inputs)
    for output in (found, expected):
        output.loss.backward()
    assert_close(found.logits, expected.logits, 1e-12)
    assert_same_gradients(model, other, 1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"output_attentions": True},
        {"head_mask": torch.tensor([1.0, 0.5, 0.0, 1.0])},
        {"mask": 3},
        {"position_embedding_type": "relative_key_query"},
        {"hidden_act": "silu"},
        {"pruned_heads": {1: [2]}},
    ],
    ids=str,
)
def test_where_not_all_is_fused(change: dict[str, Any]) -> None:
    inputs, options = batch(), dict(change)
    if options.pop("mask", None):
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = mask[:, None, :] * mask[:, :, None]
    call = {name: options.pop(name) for name in ("output_attentions", "head_mask") if name in options}
    plain, model = make(NAME, **options)
    rows = linear_rows(lambda: model(**inputs, **call))
    assert rows[-3:] == [4, 4, 4], "linear2, pooler and classifier"
    if "position_embedding_type" not in change:  # whose scores are products, too
        assert rows[:-5] == [21] * (len(rows) - 5)
    found, expected = model(**inputs, **call), everything(model, **inputs, **call)
    assert_close(found.logits, expected.logits, 1e-12)
    for one, other in zip(found.attentions or (), expected.attentions or (), strict=True):
        assert torch.equal(one, other)
    if "mask" not in change:
        assert_close(found.logits, plain(**inputs, **call).logits, 1e-6)


SEEN = [
    "ernie_m", "ernie_m.encoder",
    *(f"{LAST}.{name}".removesuffix(".") for name in (
        "", "self_attn", "self_attn.out_proj", "dropout1", "norm1", "linear1", "activation", "dropout", "linear2",
        "dropout2", "norm2",
    )),
]  # fmt: skip


@pytest.mark.parametrize("path", SEEN)
def test_a_hook_sees_all_rows(path: str) -> None:
    model = make(NAME)[1].train()
    seen: list[int] = []

    def look(_: nn.Module, __: Any, output: Any) -> None:
        rows = output if isinstance(output, Tensor) else output[0]
        seen.append(rows.shape[0])

    model.get_submodule(path).register_forward_hook(look)
    model(**batch((7, 3, 10, 1)))
    assert seen == [21]


def test_a_global_hook_sees_all_rows() -> None:
    _, model = make(NAME)
    linear2, seen = model.get_submodule(f"{LAST}.linear2"), []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if module is linear2:
            seen.append(output.shape[0])

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        model(**batch((7, 3, 10, 1)))
    finally:
        handle.remove()
    assert seen == [21]


class OwnEncoder(modeling.ErnieMEncoder):
    def forward(self, *arguments: Any) -> Any:
        *rest, _ = arguments
        return super().forward(*rest)


class OwnLayer(modeling.ErnieMEncoderLayer):
    def forward(self, x: Tensor, context: Any, head_mask: Any) -> Any:
        assert context.rows_to_keep is None
        return super().forward(x, context, head_mask)


class OwnAttention(modeling.ErnieMAttention):
    def forward(self, x: Tensor, context: Any, head_mask: Any) -> Any:
        heads, probabilities = self.self_attn(x, context, head_mask)
        return self.out_proj(heads), probabilities


@pytest.mark.parametrize(
    ("path", "cls"),
    [("ernie_m.encoder", OwnEncoder), (LAST, OwnLayer), (f"{LAST}.self_attn", OwnAttention)],
)
def test_modules_of_the_user_s_own_get_all_rows(path: str, cls: type) -> None:
    plain, model = make(NAME)
    model.get_submodule(path).__class__ = cls
    assert_agree(model, plain, batch(), 1e-6)


class Scaled(nn.Linear):
    """Counts its rows."""

    def forward(self, x: Tensor) -> Tensor:
        self.rows = x.shape[:-1].numel()
        return 1.5 * super().forward(x)


@pytest.mark.parametrize("path", ["self_attn.out_proj", "linear1", "linear2"])
def test_other_linear_layers_are_called_on_the_kept_rows(path: str) -> None:
    plain, model = make(NAME)
    for one in (plain, model):
        one.get_submodule(f"{LAST}.{path}").__class__ = Scaled
    assert_agree(model, plain, batch((7, 3, 10, 1)), 1e-6)
    assert model.get_submodule(f"{LAST}.{path}").rows == 4


def test_dropout_is_repeatable_and_its_gradient_right() -> None:
    _, model = make(NAME, **DROPOUT)
    model.train()
    inputs = {"input_ids": packed([7, 0, 3, 19, 1]), "labels": torch.randint(2, (5,))}

    def loss() -> Tensor:
        torch.manual_seed(5)
        return model(**inputs).loss

    first = loss()
    first.backward()
    assert torch.equal(loss(), first)
    torch.manual_seed(6)
    assert not torch.equal(model(**inputs).loss, first)
    grads = gradients(model)
    directions = {name: torch.randn_like(grad) for name, grad in grads.items()}
    step = 1e-6
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for name, parameter in model.named_parameters():
                if name in directions:
                    parameter.add_(directions[name], alpha=sign * step)
            ends.append(loss())
    expected = sum((grads[name] * direction).sum() for name, direction in directions.items())
    assert_close((ends[0] - ends[1]) / (2 * step), expected, 1e-6)


@pytest.mark.parametrize("lengths", [[0, 0], [0, 3, 0], [4]])
def test_empty_sequences(lengths: list[int]) -> None:
    plain, model = make(NAME)
    inputs = packed(lengths)
    with torch.no_grad():
        found = model(inputs).logits
        pooled = plain.ernie_m.pooler(torch.zeros(1, 32, dtype=torch.float64))
        empty = plain.classifier(pooled)[0]
        assert_close(found, everything(model, input_ids=inputs).logits, 1e-12)
    for length, logits in zip(lengths, found, strict=True):
        assert length or torch.allclose(logits, empty, rtol=0, atol=1e-12)


def test_the_base_model_says_that_it_left_out_the_hidden_states() -> None:
    _, model = make()
    inputs = batch()
    expected = model(**inputs)
    output = model(**inputs, pooled_only=True)
    assert output.last_hidden_state is None
    assert_close(output.pooler_output, expected.pooler_output, 1e-12)
    nothing, pooled = model(**inputs, pooled_only=True, return_dict=False)
    assert nothing is None
    assert torch.equal(pooled, output.pooler_output)
    output = model(**inputs, pooled_only=True, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    bare = modeling.ErnieMModel(model.config, add_pooling_layer=False)
    with pytest.raises(ValueError, match="pooled_only must be False"):
        bare(inputs["input_ids"], pooled_only=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_order")
def test_batch_invariance(device: torch.device) -> None:
    pytest.importorskip("triton")
    model = make(NAME, torch.float32, num_attention_heads=2)[1].to(device)
    rows = [torch.randint(2, 100, (length,)) for length in (5, 40, 1, 0, 20)]

    def logits(*places: int) -> Tensor:
        return model(PackedBatch.from_sequences([rows[place] for place in places], device)).logits

    with torch.inference_mode(), batch_invariant():
        together, shuffled, alone = logits(0, 1, 2, 3, 4), logits(4, 3, 1), logits(1)
    assert torch.equal(shuffled, together[[4, 3, 1]])
    assert torch.equal(alone, together[[1]])
