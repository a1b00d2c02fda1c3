"""Dropout by torch's seed, and gradient checkpointing, which draws the same."""

from typing import Any

import pytest
import torch
from helpers.families import (
    FAMILIES,
    NO_DROPOUT,
    assert_close,
    assert_same_gradients,
    batch,
    gradients,
    labels_for,
    make,
)
from torch import Tensor

SOME = ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "bert")]
HEAD = "ForTokenClassification"
DROPOUT = {name: 0.2 for name in NO_DROPOUT if name not in ("summary_last_dropout", "classifier_dropout")}


def step(model: Any, inputs: dict[str, Tensor], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients."""
    torch.manual_seed(seed)
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("family", SOME)
def test_dropout_by_seed(family: str) -> None:
    _, fast = make(family, HEAD, **DROPOUT)
    inputs = batch(family)
    inputs |= labels_for(family, HEAD, inputs)
    with torch.no_grad():
        off = fast(**inputs).loss
    fast.train()
    (one, grads), (again, same), (other, _) = (step(fast, inputs, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert all(torch.equal(same[name], grad) for name, grad in grads.items())
    assert len({float(one), float(other), float(off)}) == 3


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    """The same loss and gradients, and layers run a second time."""
    _, fast = make(family, HEAD, **DROPOUT)
    fast.train()
    inputs = batch(family)
    inputs |= labels_for(family, HEAD, inputs)
    linear = next(module for name, module in fast.named_modules() if name.endswith(("intermediate.dense", "lin1")))
    seen: list[int] = []
    linear.register_forward_hook(lambda *_: seen.append(1))
    loss, wanted = step(fast, inputs, 3)
    assert len(seen) == 1
    fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, found = step(fast, inputs, 3)
    assert len(seen) == 3
    assert_close(again, loss)
    assert_same_gradients(found, wanted)
    with torch.no_grad():
        fast.eval()(**inputs)
    assert len(seen) == 4
    fast.gradient_checkpointing_disable()
    step(fast.train(), inputs, 3)
    assert len(seen) == 5


@pytest.mark.parametrize("family", ["bert", "distilbert", "xlm"])
def test_every_dropout_drops(family: str) -> None:
    """Each site alone changes the result; those of probability 0 do not."""
    _, fast = make(family, **NO_DROPOUT)
    inputs = batch(family)
    with torch.no_grad():
        off = fast(**inputs).last_hidden_state
        assert torch.equal(fast.train()(**inputs).last_hidden_state, off)
        sites = [(module, name) for module in fast.modules() for name in ("p", "dropout")
                 if isinstance(vars(module).get(name), float)]  # fmt: skip
        assert len(sites) == {"bert": 7, "distilbert": 5, "xlm": 5}[family]
        for module, name in sites:
            setattr(module, name, 0.5)
            changed = fast(**inputs).last_hidden_state
            setattr(module, name, 0.0)
            assert float((changed - off).abs().max()) > 1e-3, (type(module), name)


def drops(model: Any, inputs: dict[str, Any]) -> bool:
    with torch.no_grad():
        return not torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


@pytest.mark.parametrize(("itself", "attentions", "ffns"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_each_part_of_xlm_drops_by_its_own_mode(itself: int, attentions: int, ffns: int) -> None:
    """XLM's dropouts are numbers, read where the module that has them is in training mode."""
    plain, fast = make("xlm", **NO_DROPOUT)
    inputs = batch("xlm", "none")
    for model in (plain, fast):
        model.training = bool(itself)
        model.attentions.train(bool(attentions))
        model.ffns.train(bool(ffns))
    for name in ("attentions.0", "ffns.0", ""):
        parts = [model.get_submodule(name) for model in (plain, fast)]
        for part in parts:
            part.dropout = 0.5
        assert drops(fast, inputs) == drops(plain, inputs) == parts[0].training, name
        for part in parts:
            part.dropout = 0.0


def test_dropout_of_a_part_in_eval_mode() -> None:
    """Transformers drops probabilities where the attention itself is in training mode."""
    _, fast = make("bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    inputs = batch("bert")
    with torch.no_grad():
        expected = fast(**inputs).last_hidden_state
        fast.train()
        for layer in fast.encoder.layer:
            layer.attention.self.training = False  # and not its dropout
        assert_close(fast(**inputs).last_hidden_state, expected)
        fast.train()
        assert float((fast(**inputs).last_hidden_state - expected).abs().max()) > 1e-3
