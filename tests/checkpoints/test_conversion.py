"""Conversion of other parameter names to those of 4.40.2."""

import pytest
import torch
from helpers.checkpoint_folders import paddle_style
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erniem_fast.checkpoints import convert, needs_conversion

TAILS = ("linear1.weight", "self_attn.out_proj.bias", "norm1.weight")
PROJECTIONS = [
    f"encoder.layers.3.self_attn.self_attn.{letter}_proj.{kind}" for letter in "qk" for kind in ("w", "bias")
]
plain_keys = st.sampled_from(
    [
        *(f"encoder.layers.{layer}.{tail}" for layer in (0, 11) for tail in TAILS),
        *PROJECTIONS,
        "embeddings.word_embeddings.weight",
        "pooler.dense.bias",
        "classifier.weight",
        # Similar to a form that is converted.
        "in_proj_weight",
        "encoder.self_attn.q_proj.weight",
        "layers.self_attn.in_proj_bias",
        "encoder.layers.1.self_attn.in_proj_weights",
        "encoder.layers.1.self_attn.q_proj_weight",
        "encoder.layers.1.self_attn.o_proj.weight",
        "xlayers.1.self_attn.q_proj.weight",
    ]
)
prefixes = st.sampled_from(["", "ernie_m.", "module.ernie_m."])


@settings(max_examples=50)
@given(keys=st.sets(st.one_of(st.builds(str.__add__, prefixes, plain_keys), st.text(max_size=20))))
def test_unknown_keys_pass_unchanged(keys: set[str]) -> None:
    state = {key: torch.randn(3, 2) for key in keys}
    before = dict(state)
    assert not needs_conversion(keys)
    converted = convert(state)
    assert list(converted) == list(state)
    assert all(converted[key] is state[key] for key in keys)
    assert state == before


@settings(max_examples=100)
@given(
    layers=st.dictionaries(
        st.integers(0, 30), st.sampled_from(["plain", "paddle", "fused", "fused inside"]), min_size=1
    ),
    prefix=prefixes,
    rows=st.integers(1, 5),
    data=st.data(),
)
def test_values_are_preserved(layers: dict[int, str], prefix: str, rows: int, data: st.DataObject) -> None:
    """Conversion gives every tensor its name, for any form of each layer and any order of the keys."""
    expected: dict[str, Tensor] = {}
    given_: dict[str, Tensor] = {}
    for layer, form in layers.items():
        stem = f"{prefix}encoder.layers.{layer}."
        for kind, shape in (("weight", (rows, 4)), ("bias", (rows,))):
            parts = {f"self_attn.self_attn.{letter}_proj.{kind}": torch.randn(shape) for letter in "qkv"}
            other = {f"self_attn.out_proj.{kind}": torch.randn(shape), f"linear1.{kind}": torch.randn(shape)}
            expected |= {stem + key: value for key, value in (parts | other).items()}
            given_ |= {stem + key: value for key, value in other.items()}
            if form.startswith("fused"):
                inner = "self_attn." if form == "fused inside" else ""
                given_[f"{stem}self_attn.{inner}in_proj_{kind}"] = torch.cat(list(parts.values()))
            else:
                named = parts if form == "plain" else paddle_style(parts)
                given_ |= {stem + key: value for key, value in named.items()}
    state = {key: given_[key] for key in data.draw(st.permutations(list(given_)))}
    before = {key: value.clone() for key, value in state.items()}
    assert needs_conversion(state) == any(form != "plain" for form in layers.values())
    converted = convert(state)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert not needs_conversion(converted)
    assert all(value is converted[key] for key, value in convert(converted).items())


@settings(max_examples=50)
@given(
    letter=st.sampled_from("qkv"),
    kind=st.sampled_from(["weight", "bias"]),
    prefix=prefixes,
    forms=st.permutations(["plain", "paddle", "fused", "fused inside"]),
)
def test_duplicates_raise(letter: str, kind: str, prefix: str, forms: list[str]) -> None:
    stem = f"{prefix}encoder.layers.4.self_attn."
    keys = {
        "plain": f"{stem}self_attn.{letter}_proj.{kind}",
        "paddle": f"{stem}{letter}_proj.{kind}",
        "fused": f"{stem}in_proj_{kind}",
        "fused inside": f"{stem}self_attn.in_proj_{kind}",
    }
    with pytest.raises(ValueError, match="twice") as caught:
        convert({keys[form]: torch.randn(6, 2) for form in forms[:2]})
    assert keys[forms[1]] in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 3), (1,), (95, 32), ()], ids=str)
def test_fused_projections_that_are_no_three_parts_raise(shape: tuple[int, ...]) -> None:
    key = "ernie_m.encoder.layers.0.self_attn.in_proj_weight"
    with pytest.raises(ValueError, match="in_proj_weight"):
        convert({key: torch.randn(shape)})
