"""Submodules that are not what they were built as: hooked, replaced, subclassed, switched off, pruned."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from helpers.pairs import (
    NO_DROPOUT,
    as_reference,
    assert_agree,
    assert_close,
    assert_same_gradients,
    batch,
    labels_for,
    make,
    parent_of,
    real,
)
from torch import Tensor, nn
from torch.nn.utils import prune


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """All modules that 4.40.2 calls: lists have no forward."""
    return {name: module for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)}


ALL_PATHS = list(leaves(make("ErnieMForSequenceClassification", num_hidden_layers=1)[1]))
assert len(ALL_PATHS) == 28


def stretch(_: Any, __: Any, output: Any) -> Any:
    """Changes a result, so that a hook which is not run is seen."""
    if isinstance(output, Tensor):
        return output * 1.25
    return output


@pytest.mark.parametrize("path", ALL_PATHS)
def test_every_submodule_takes_hooks(path: str) -> None:
    plain, fast = make("ErnieMForSequenceClassification", num_hidden_layers=1)
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
    calls: list[str] = []
    for model, name in ((plain, "plain"), (fast, "fast")):
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(f"{name} before"))
        module.register_forward_hook(lambda *_, name=name: calls.append(f"{name} after"))
        module.register_forward_hook(stretch)
    with torch.no_grad():
        found, expected = fast(**inputs).logits, plain(**inputs).logits
    assert sorted(calls) == ["fast after", "fast before", "plain after", "plain before"]
    assert_close(found, expected)
    module = fast.get_submodule(path)
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()
    with torch.no_grad():
        assert_close(fast(**inputs).logits, before)


# PyTorch runs backward hooks on modules that return tensors.
@pytest.mark.parametrize("path", ALL_PATHS[1:])
def test_every_submodule_takes_backward_hooks(path: str) -> None:
    plain, fast = make("ErnieMForSequenceClassification", num_hidden_layers=1)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    calls: list[str] = []
    for model, name in ((plain, "plain"), (fast, "fast")):
        module = model.get_submodule(path)
        module.register_full_backward_pre_hook(lambda *_, name=name: calls.append(name))
        model(**inputs).loss.backward()
    assert calls == ["plain", "fast"]
    assert_same_gradients(fast, plain)


def test_global_hooks_see_every_module() -> None:
    _, fast = make("ErnieMForSequenceClassification")
    seen: set[int] = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(id(module)))
    try:
        fast(**batch())
    finally:
        handle.remove()
    assert [name for name, module in leaves(fast).items() if id(module) not in seen] == []


class RMSNorm(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


class BoundedEmbedding(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).tanh()


class LoudNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.1


class HalfDropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


class Quadratic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def subclassed(cls: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def convert(module: nn.Module) -> nn.Module:
        changed = copy.deepcopy(module)
        changed.__class__ = cls
        return changed

    return convert


def bias_free(module: Any) -> nn.Module:
    changed = nn.Linear(module.in_features, module.out_features, bias=False, dtype=module.weight.dtype)
    changed.load_state_dict({"weight": module.weight.detach()})
    return changed


def norm_without(**what: bool) -> Callable[[Any], nn.Module]:
    return lambda module: nn.LayerNorm(module.normalized_shape, eps=0.5, dtype=module.weight.dtype, **what)


def in_two(module: Any) -> nn.Module:
    size, dtype = module.out_features, module.weight.dtype
    return nn.Sequential(copy.deepcopy(module), nn.Linear(size, size, dtype=dtype))


REPLACEMENTS: dict[str, tuple[type[nn.Module], Callable[[Any], nn.Module]]] = {
    "RMSNorm": (nn.LayerNorm, lambda module: RMSNorm(module.weight)),
    "subclass of LayerNorm": (nn.LayerNorm, subclassed(LoudNorm)),
    "LayerNorm without weights": (nn.LayerNorm, norm_without(elementwise_affine=False)),
    "LayerNorm without bias": (nn.LayerNorm, norm_without(bias=False)),
    "no norm": (nn.LayerNorm, lambda _: nn.Identity()),
    "no dropout": (nn.Dropout, lambda _: nn.Identity()),
    "subclass of Dropout": (nn.Dropout, subclassed(HalfDropout)),
    "subclass of Linear": (nn.Linear, subclassed(ScaledLinear)),
    "Linear without bias": (nn.Linear, bias_free),
    "Linear in two": (nn.Linear, in_two),
    "subclass of Embedding": (nn.Embedding, subclassed(BoundedEmbedding)),
    "activation": (transformers.activations.GELUActivation, lambda _: Quadratic()),
    "plain nn.GELU": (transformers.activations.GELUActivation, lambda _: nn.GELU()),
    "tanh GELU": (transformers.activations.GELUActivation, lambda _: nn.GELU(approximate="tanh")),
}


def replace(model: nn.Module, kind: str, only: str = "") -> int:
    cls, change = REPLACEMENTS[kind]
    paths = [name for name, module in model.named_modules() if type(module) is cls and name.endswith(only)]
    for path in paths:
        parent, name = parent_of(model, path)
        setattr(parent, name, change(getattr(parent, name)))
    return len(paths)


def assert_replaced_alike(kind: str, only: str = "") -> None:
    plain, fast = make("ErnieMForTokenClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    with torch.no_grad():
        before = fast(**inputs).logits
    assert replace(plain, kind, only) > 0
    replace(fast, kind, only)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_agree(fast, plain, inputs)
        changed = (fast(**inputs).logits - before).abs().max() > 1e-4
        # A key's bias adds a constant to all scores of a softmax.
        alike = kind in ("no dropout", "plain nn.GELU") or (kind, only) == ("Linear without bias", "k_proj")
        assert changed == (not alike)
    for model in (plain, fast):
        model.train()(**inputs).loss.backward()
    assert_same_gradients(fast, plain)


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_replaced_submodules_are_honoured(kind: str) -> None:
    assert_replaced_alike(kind)


@pytest.mark.parametrize("path", ["q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2", "classifier"])
@pytest.mark.parametrize("kind", ["subclass of Linear", "Linear without bias", "Linear in two"])
def test_one_replaced_linear(path: str, kind: str) -> None:
    assert_replaced_alike(kind, path)


@pytest.mark.parametrize("path", ["norm1", "norm2", "embeddings.layer_norm"])
@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm without weights", "LayerNorm without bias"])
def test_one_replaced_norm(path: str, kind: str) -> None:
    assert_replaced_alike(kind, path)


@pytest.mark.parametrize("path", ["word_embeddings", "position_embeddings"])
def test_one_replaced_embedding(path: str) -> None:
    assert_replaced_alike("subclass of Embedding", path)


@pytest.mark.parametrize("path", ["word_embeddings", "position_embeddings"])
@pytest.mark.parametrize("option", [{"sparse": True}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}], ids=str)
def test_options_of_an_embedding_are_honoured(path: str, option: dict[str, Any]) -> None:
    plain, fast = make(**NO_DROPOUT)
    # One row: where a row repeats, padded and packed batches count it differently.
    inputs = batch((9,))
    inputs["input_ids"][0, 3:6] = 17
    for model in (plain, fast):
        module = model.embeddings.get_submodule(path)
        for name, value in option.items():
            setattr(module, name, value)
        output = model(**inputs)
        (output.last_hidden_state.square().sum() + output.pooler_output.sum()).backward()
    one, other = (model.embeddings.get_submodule(path).weight for model in (fast, plain))
    assert one.grad.is_sparse == other.grad.is_sparse == ("sparse" in option)
    assert_close(one.grad.to_dense(), other.grad.to_dense(), 1e-4)
    assert_close(one.detach(), other.detach())


@pytest.mark.parametrize(("words", "positions"), [(4, None), (4, 6), (None, 4), (90, None), (-3, None)])
def test_padding_rows_of_the_two_tables_are_their_own(words: int | None, positions: int | None) -> None:
    """No gradient flows to a table's own padding_idx, whatever the other's is."""
    plain, fast = make(**NO_DROPOUT)
    inputs = batch((9, 7))
    inputs["input_ids"][0, :4] = torch.tensor([4, 90, 97, 6])
    for model in (plain, fast):
        for module, padding in (
            (model.embeddings.word_embeddings, words),
            (model.embeddings.position_embeddings, positions),
        ):
            table = nn.Embedding(*module.weight.shape, padding_idx=padding)
            table.weight = module.weight
            parent, name = parent_of(model, next(n for n, m in model.named_modules() if m is module))
            setattr(parent, name, table)
        real(model(**inputs).last_hidden_state, inputs).tanh().square().sum().backward()
    assert_same_gradients(fast, plain)


def test_a_padding_id_beyond_the_position_table() -> None:
    plain, fast = make(pad_token_id=90)
    inputs = batch()
    inputs["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"] == 1, 90)
    assert_agree(fast, plain, inputs)


def replica_of(module: Any) -> Any:
    """A replica as torch.nn.DataParallel makes them: its weights are plain attributes."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter.clone())
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replica_of(child)
    return replica


def test_replicas_of_data_parallel() -> None:
    _, fast = make()
    inputs = batch()
    assert torch.equal(replica_of(fast)(**inputs).last_hidden_state, fast(**inputs).last_hidden_state)


@pytest.mark.parametrize("with_embeds", [False, True])
def test_word_embeddings_without_a_weight(with_embeds: bool) -> None:
    """A table that is computed has neither `weight` nor `padding_idx`."""

    class Hashed(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return (input_ids[..., None] * torch.arange(1, 33)).cos().double()

    models = make()
    for model in models:
        model.set_input_embeddings(Hashed())
    inputs = batch()
    if with_embeds:
        inputs["inputs_embeds"] = torch.randn(*inputs.pop("input_ids").shape, 32, dtype=torch.float64)
    with torch.no_grad():
        assert_agree(models[1], models[0], inputs)


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_changed_dropout_probabilities(p: float) -> None:
    plain, fast = make("ErnieMForTokenClassification")
    inputs = batch((40, 33))
    for model in (plain, fast):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    with torch.no_grad():
        assert_agree(fast, plain, inputs)
        expected = as_reference(fast).eval()(**inputs).logits
        assert_close(real(fast(**inputs).logits, inputs), real(expected, inputs))
        # One site alone, so that its rate can be counted.
        fast.ernie_m.embeddings.dropout.p = p
        rows = real(fast(**inputs, output_hidden_states=True).hidden_states[0], inputs)
    assert (rows == 0).float().mean() == pytest.approx(p, abs=0.05)
    assert rows.isfinite().all()


@pytest.mark.parametrize("where", ["embeddings.dropout", "layers.0.dropout1", "layers.1.dropout2", "self_attn.dropout"])
def test_a_dropout_that_is_left_on_in_eval_mode(where: str) -> None:
    """As for Monte Carlo dropout: it draws from torch's generator."""
    _, fast = make("ErnieMForTokenClassification")
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
        for name, module in fast.named_modules():
            if name.endswith(where):
                module.train()
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(fast(**inputs).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], before)


@pytest.mark.parametrize("off", ["layers.0.dropout1", "embeddings.dropout"])
def test_a_dropout_that_is_switched_off_in_training(off: str) -> None:
    _, fast = make(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
    fast.train()
    for name, module in fast.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith(off):
            module.p = 0.0
        elif name.endswith(off):
            module.eval()
    inputs = batch()
    with torch.no_grad():
        assert_agree(fast, as_reference(fast).eval(), inputs)


@pytest.mark.parametrize("path", ["q_proj", "v_proj", "linear1", "linear2", "out_proj"])
def test_pruned_and_parametrised_weights(path: str) -> None:
    plain, fast = make()
    inputs = batch()
    paths = [name for name, _ in fast.named_modules() if name.endswith(path)]
    with torch.no_grad():
        before = fast(**inputs).last_hidden_state
        for model in (plain, fast):
            for name in paths:
                prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.4)
        assert_agree(fast, plain, inputs)
        for model in (fast, plain):
            for name in paths:
                prune.remove(model.get_submodule(name), "weight")
        assert_agree(fast, plain, inputs)
        for model in (plain, fast):
            for name in paths:
                module = nn.utils.parametrizations.weight_norm(model.get_submodule(name))
                module.parametrizations.weight.original0.mul_(1.5)
        assert_agree(fast, plain, inputs)
        assert (fast(**inputs).last_hidden_state - before).abs().max() > 1e-2
