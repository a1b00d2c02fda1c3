"""Signatures of the forwards: annotated outputs, and every argument by name."""

import inspect
import typing
from typing import Any

import pytest
import torch
from helpers.pairs import CLASSES, SIZES, batch

import erniem_fast
from erniem_fast import ErnieMConfig, reference

HEADS = [name for name in CLASSES if name not in ("ErnieMModel", "ErnieMForMultipleChoice")]


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("name", CLASSES)
def test_signatures(models: Any, name: str) -> None:
    """`forward` is annotated with what it returns, and hides no argument: an unknown one is an error."""
    model = getattr(models, name)(ErnieMConfig(**SIZES)).eval()
    inputs = batch()
    if name == "ErnieMForMultipleChoice":
        inputs = {key: value[None] for key, value in inputs.items()}
    assert type(model(**inputs)) is typing.get_type_hints(model.forward)["return"]
    assert typing.get_type_hints(type(model))["config"] is type(model.config) is ErnieMConfig
    parameters = inspect.signature(model.forward).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    with pytest.raises(TypeError, match="unexpected keyword argument 'cu_seqlens'"):
        model(**inputs, cu_seqlens=torch.tensor([0, 21]))


@pytest.mark.parametrize("name", HEADS)
def test_heads_name_the_packed_arguments(name: str) -> None:
    plain, fast = (getattr(models, name)(ErnieMConfig(**SIZES)).eval() for models in (reference, erniem_fast))
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 5, "max_length_k": 5}
    assert packed.keys() <= inspect.signature(fast.forward).parameters.keys()
    ids = torch.randint(2, 100, (1, 9))
    assert fast(ids, **packed, validate=True)[0].isfinite().all()
    for argument, value in packed.items():
        with pytest.raises(ValueError, match=f"{argument} must be None: the reference takes padded batches only"):
            plain(ids, **{argument: value})
