"""Hooks, replaced containers and recorded outputs: transformers' results, and what hooks see is the padded grid."""

import copy
import logging
from typing import Any

import pytest
import torch
from helpers.families import (
    NO_DROPOUT,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    batch,
    by_rows,
    exact_softmax,
    gradients,
    labels_for,
    make,
)
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from erniem_fast import PackedBatch, encoder, validation

HEAD = "ForTokenClassification"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that each layer was called with where it computed packed rows."""
    seen: list[int] = []
    run_layer = encoder.run_layer

    def count(parts: Any, x: Tensor, *args: Any) -> Any:
        seen.append(len(x))
        return run_layer(parts, x, *args)

    monkeypatch.setattr(encoder, "run_layer", count)
    return seen


@pytest.fixture(autouse=True)
def _said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_warned", set())


def stretch(_: Any, __: Any, output: Any) -> Any:
    """Changes a result, so that a hook that is not run is seen."""
    if isinstance(output, Tensor):
        return output * 1.25
    if isinstance(output, tuple):
        return (output[0] * 1.25, *output[1:])
    output = copy.copy(output)
    output.last_hidden_state = output.last_hidden_state * 1.25
    return output


LEAVES = {
    "bert": ["embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings",
             "embeddings.LayerNorm", "embeddings.dropout", "encoder.layer.0.attention.self.query",
             "encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.value",
             "encoder.layer.0.attention.output.dense", "encoder.layer.0.attention.output.LayerNorm",
             "encoder.layer.0.attention.output.dropout", "encoder.layer.0.intermediate.dense",
             "encoder.layer.1.intermediate.intermediate_act_fn", "encoder.layer.0.output.dense",
             "encoder.layer.1.output.LayerNorm"],
    "distilbert": ["embeddings.LayerNorm", "transformer.layer.0.attention.q_lin",
                   "transformer.layer.0.attention.out_lin", "transformer.layer.1.ffn.lin1",
                   "transformer.layer.0.ffn.activation", "transformer.layer.0.ffn.lin2",
                   "transformer.layer.0.output_layer_norm"],
    "electra": ["embeddings_project"],
    "xlm": ["embeddings", "lang_embeddings", "position_embeddings", "layer_norm_emb", "attentions.0.q_lin",
            "attentions.1.out_lin", "layer_norm1.0", "ffns.0.lin1", "layer_norm2.1"],
}  # fmt: skip
ON_LAYERS = {
    "bert": ["encoder.layer.0.attention", "encoder.layer.0.attention.self", "encoder.layer.1.attention.output",
             "encoder.layer.0.intermediate", "encoder.layer.1.output", "encoder.layer.0", "encoder.layer.1"],
    "distilbert": ["transformer.layer.0.attention", "transformer.layer.1.ffn", "transformer.layer.1"],
}  # fmt: skip
ON_ENCODERS = {
    "bert": ["embeddings", "encoder", ""],
    "distilbert": ["transformer", ""],
    "electra": ["encoder"],
    "xlm": ["attentions.0", "ffns.1", ""],
}
QUICK = ("encoder.layer.0.attention.self.query", "encoder.layer.1.attention.output", "encoder.layer.0", "encoder", "")


def cases(paths: dict[str, list[str]]) -> Any:
    return pytest.mark.parametrize(
        ("family", "path"),
        [pytest.param(family, path, marks=() if family == "bert" and path in QUICK else pytest.mark.slow)
         for family in paths for path in paths[family]],
    )  # fmt: skip


def inside(model: Any, path: str) -> nn.Module:
    return model.base_model.get_submodule(path) if path else model.base_model


def assert_hooked_alike(plain: Any, fast: Any, family: str, path: str) -> list[tuple[int, ...]]:
    """Hooks that change the result do so as in transformers, and once removed leave no trace. Gives the shapes seen."""
    inputs = batch(family)
    inputs |= labels_for(family, HEAD, inputs)
    real = inputs["attention_mask"] == 1
    with torch.no_grad():
        before = fast(**inputs).logits
    shapes: list[tuple[int, ...]] = []
    calls = []
    for model in (plain, fast):
        module = inside(model, path)
        calls.append(module.register_forward_hook(stretch))
        if model is fast:
            calls.append(module.register_forward_hook(lambda _, given, __: shapes.append(shape_of(given))))
    with exact_softmax():
        found, expected = fast(**inputs), plain(**inputs)
    assert_close(found.logits[real], expected.logits[real])
    assert_close(found.loss, expected.loss)
    assert float((found.logits - before)[real].abs().max()) > 1e-4
    found.loss.backward()
    expected.loss.backward()
    assert_same_gradients(gradients(fast), gradients(plain))
    for call in calls:
        call.remove()
    with torch.no_grad():
        assert torch.equal(fast(**inputs).logits, before)
    return shapes


def shape_of(given: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(given[0].shape) if given else ()


@cases(LEAVES)
def test_hooks_on_leaves(family: str, path: str, rows: list[int]) -> None:
    """The packed path runs on."""
    plain, fast = make(family, HEAD, **NO_DROPOUT)
    if "dropout" in path:
        for model in (plain, fast):
            inside(model, path).p = 0.0
    assert_hooked_alike(plain, fast, family, path)
    assert rows == [20, 20] * 3


@cases(ON_LAYERS)
def test_hooks_on_layers_and_their_containers(family: str, path: str, rows: list[int]) -> None:
    """They see the padded grid; the other layer stays packed."""
    plain, fast = make(family, HEAD, **NO_DROPOUT)
    shapes = assert_hooked_alike(plain, fast, family, path)
    assert shapes == [(4, 9, 40 if path.endswith(".output") and "attention" not in path else 32)]
    assert rows == [20, 20, 20, 20, 20]  # before; the other layer; afterwards


@cases(ON_ENCODERS)
def test_hooks_on_the_encoder_and_its_containers(family: str, path: str) -> None:
    plain, fast = make(family, HEAD, **NO_DROPOUT)
    assert_hooked_alike(plain, fast, family, path)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM", "ForMultipleChoice"])
def test_a_hook_on_the_encoder_of_a_head_sees_what_transformers_gives(head: str) -> None:
    """All tokens, and not only what the head reads."""
    plain, fast = make("roberta", head)
    inputs = batch("roberta")
    if head == "ForMultipleChoice":
        inputs = {name: ids.unflatten(0, (2, 2)) for name, ids in inputs.items()}
    seen = []
    for model in (plain, fast):
        model.base_model.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
        model.base_model.register_forward_hook(stretch)
    with torch.no_grad():
        expected, found = plain(**inputs).logits, fast(**inputs).logits
    assert seen[0].shape == seen[1].shape == (4, 9, 32)
    real = batch("roberta")["attention_mask"] == 1
    assert_close(seen[1][real], seen[0][real])
    assert_close(found[real] if head == "ForMaskedLM" else found, expected[real] if head == "ForMaskedLM" else expected)


@pytest.mark.parametrize("way", ["forward", "hook", "peft"])
def test_a_classifier_that_reads_other_tokens_than_the_first(way: str) -> None:
    """RoBERTa's classifier is given all states, so what replaces its forward, or a hook, may read them all."""
    plain, fast = make("roberta", "ForSequenceClassification", **NO_DROPOUT)
    if way == "peft":
        plain, fast = (get_peft_model(m, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
                       for m in (plain, fast))  # fmt: skip
        fast.load_state_dict(plain.state_dict())
    for model in (plain, fast):
        reader: Any = model.base_model.model.classifier.modules_to_save.default if way == "peft" else model.classifier
        if way == "forward":
            reader.forward = lambda states, reader=reader: reader.out_proj(reader.dense(states.mean(1)).tanh())
        else:
            reader.register_forward_pre_hook(lambda _, given: (given[0].flip(1),))
    inputs = batch("roberta", "none")
    with torch.no_grad():
        assert_close(fast(**inputs).logits, plain(**inputs).logits)


def test_backward_hooks_see_the_padded_grid() -> None:
    plain, fast = make("bert", HEAD, **NO_DROPOUT)
    inputs = batch("bert")
    inputs |= labels_for("bert", HEAD, inputs)
    seen: list[tuple[int, ...]] = []
    for model in (plain, fast):
        module = inside(model, "encoder.layer.1.attention")
        module.register_full_backward_hook(lambda _, __, grads: seen.append(tuple(grads[0].shape)))
        model(**inputs).loss.backward()
    assert seen == [(4, 9, 32)] * 2
    assert_same_gradients(gradients(fast), gradients(plain))


class Stretched(nn.Module):
    """A replacement of a container, of the same signature."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return stretch(self, args, self.inner(*args, **kwargs))


REPLACED = ["encoder.layer.0.attention", "encoder.layer.0.attention.self", "encoder.layer.0.attention.output",
            "encoder.layer.1.intermediate", "encoder.layer.1.output", "encoder.layer.1", "encoder", "embeddings",
            "encoder.layer.0.intermediate.dense", "pooler"]  # fmt: skip


@pytest.mark.parametrize("path", [
    pytest.param(path, marks=() if path in REPLACED[1:6:4] else pytest.mark.slow) for path in REPLACED
])  # fmt: skip
def test_replaced_containers(path: str, caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = make("bert", **NO_DROPOUT)
    inputs = batch("bert")
    real = inputs["attention_mask"] == 1
    with torch.no_grad():
        before = fast(**inputs)
    for model in (plain, fast):
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        setattr(module, name, Stretched(getattr(module, name)))
    caplog.set_level(logging.WARNING, "erniem_fast")
    found, expected = fast(**inputs), plain(**inputs)
    assert_close(found.last_hidden_state[real], expected.last_hidden_state[real])
    assert_close(found.pooler_output, expected.pooler_output)
    changed = (found.pooler_output - before.pooler_output).abs().max() > 1e-4
    assert changed
    for output in (found, expected):
        (output.last_hidden_state[real].sin().sum() + output.pooler_output.sum()).backward()
    assert_same_gradients(gradients(fast), gradients(plain))
    if not path.endswith("dense"):
        assert "Stretched" in caplog.text


@pytest.mark.parametrize(
    "asked", [True, False, None, 1, -1, [0, 2], [-1], [7], pytest.param(0, id="zero"), []], ids=str
)
@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("electra", "distilbert"))]
)
def test_hidden_states_that_were_asked_for(asked: Any, family: str) -> None:
    plain, fast = make(family)
    inputs = batch(family, "none")
    with torch.no_grad():
        found, expected = (model(**inputs, output_hidden_states=asked) for model in (fast, plain))
        assert_same_outputs(found, expected)
        one, other = found.hidden_states, expected.hidden_states
        assert (one is None) == (other is None)
        if other is not None:
            assert [state is None for state in one] == [state is None for state in other]


def test_hidden_states_by_configuration_and_their_gradients() -> None:
    plain, fast = make("roberta", output_hidden_states=True, **NO_DROPOUT)
    inputs = batch("roberta", "left")
    found, expected = fast(**inputs), by_rows(plain, "roberta", "Model")(**inputs, output_hidden_states=True)
    assert_same_outputs(found, expected)
    assert found.hidden_states[-1] is found.last_hidden_state
    for output in (found, expected):
        output.hidden_states[1].square().sum().backward()
    assert_same_gradients(gradients(fast), gradients(plain))


@pytest.mark.parametrize(
    "family",
    ["electra", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "xlm-roberta", "distilbert"))],
)
def test_attentions_and_fast_again(family: str, rows: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """Transformers computes them, which is said once; its hooks that stay behind are idle."""
    plain, fast = make(family, HEAD, attn_implementation="eager")
    inputs = batch(family)
    caplog.set_level(logging.WARNING, "erniem_fast")
    with torch.no_grad():
        before = fast(**inputs).logits
        assert rows == [20, 20]
        options = {"output_attentions": True, "output_hidden_states": True}
        for _ in range(2):
            found, expected = (model(**inputs, **options) for model in (fast, plain))
            assert_same_outputs(found, expected)
            assert len(found.attentions) == 2
            assert len(found.hidden_states) == 3
        assert rows == [20, 20]
        assert torch.equal(fast(**inputs).logits, before)
        assert rows == [20, 20] * 2
    assert caplog.text.count("output_attentions is set") == 1


@pytest.mark.parametrize("family", ["bert", pytest.param("distilbert", marks=pytest.mark.slow)])
def test_hidden_states_of_a_fallback_beside_a_hooked_container(family: str) -> None:
    plain, fast = make(family)
    inputs = batch(family)
    name = "transformer" if family == "distilbert" else "encoder"
    seen: list[int] = []
    fast.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        assert_same_outputs(*(model(**inputs, output_hidden_states=True) for model in (fast, plain)))
    assert seen


def test_the_packed_path_runs_under_hooks_of_infrastructure(rows: list[int]) -> None:
    """Idle ones of transformers and such as move parameters don't make it slow."""
    import accelerate

    _, fast = make("bert")
    inputs = batch("bert")
    with torch.no_grad():
        before = fast(**inputs).last_hidden_state
        accelerate.hooks.add_hook_to_module(fast.encoder.layer[0], accelerate.hooks.ModelHook())
        assert_close(fast(**inputs).last_hidden_state, before, 0)
    assert rows == [20] * 4


@pytest.mark.parametrize(
    ("family", "name"),
    [("roberta", "word_embeddings"), pytest.param("bert", "token_type_embeddings", marks=pytest.mark.slow)]
    + [pytest.param(family, "word_embeddings", marks=pytest.mark.slow) for family in ("distilbert", "electra")],
)  # fmt: skip
def test_hooks_on_tables_see_the_shape_of_the_batch(family: str, name: str, rows: list[int]) -> None:
    """As NEFTune's, and as captum's of word embeddings; the layers stay on rows."""
    plain, fast = make(family, **NO_DROPOUT)
    seen: list[Tensor] = []
    inputs = batch(family)
    real = inputs["attention_mask"] == 1

    def weigh(_: Any, __: Any, output: Tensor) -> Tensor:
        seen.append(output.detach())
        return output * (1 + torch.arange(output.shape[1])[:, None])

    for model in (plain, fast):
        getattr(model.embeddings, name).register_forward_hook(weigh)
    found, expected = (model(**inputs).last_hidden_state[real] for model in (fast, plain))
    assert_close(found, expected)
    assert seen[0].shape == seen[1].shape
    assert_close(seen[0][real], seen[1][real])
    assert rows == [20, 20]
    for states in (found, expected):
        states.sin().sum().backward()
    assert_same_gradients(gradients(fast), gradients(plain))


def test_hooks_on_the_word_table_with_packed_input() -> None:
    _, fast = make("roberta")
    rows = [[0, 5, 7, 2], [0, 9, 2]]
    packed = PackedBatch.from_sequences(rows, first_position=fast.limits.first_position)
    seen: list[tuple[int, ...]] = []
    with torch.no_grad():
        before = fast(packed).last_hidden_state
        fast.embeddings.word_embeddings.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape)))
        assert torch.equal(fast(packed).last_hidden_state, before)
    assert seen == [(1, 7, 32)]
