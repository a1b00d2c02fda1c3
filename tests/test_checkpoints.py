"""Loading and saving: every form of checkpoint in the wild, into both models."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMForMaskedLM, ErnieMForSequenceClassification, ErnieMModel, reference
from erniem_fast.checkpoints import convert, needs_conversion

GOLDEN = Path(__file__).parent / "golden" / "model"
HEADS = (
    "ErnieMForSequenceClassification",
    "ErnieMForMultipleChoice",
    "ErnieMForTokenClassification",
    "ErnieMForQuestionAnswering",
    "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM",
)
CONFIG_OF_4_40_2 = {
    "act_dropout": 0.0,
    "architectures": ["ErnieMModel"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "id2label": {"0": "entailment", "1": "contradiction"},
    "initializer_range": 0.2,
    "intermediate_size": 48,
    "label2id": {"contradiction": 1, "entailment": 0},
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 66,
    "model_type": "ernie_m",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.40.2",
    "type_vocab_size": 16,
    "vocab_size": 100,
}
IDS = torch.tensor([[0, 5, 9, 17, 2], [0, 40, 2, 1, 1]])
PARAMETERS_OF_4_40_2 = set(load_file(GOLDEN / "model_right_padded" / "weights.safetensors"))
HEAD_KEYS_OF_4_40_2 = {
    "ErnieMForSequenceClassification": ({"classifier"}, True),
    "ErnieMForMultipleChoice": ({"classifier"}, True),
    "ErnieMForTokenClassification": ({"classifier"}, False),
    "ErnieMForQuestionAnswering": ({"qa_outputs"}, False),
    "ErnieMForInformationExtraction": ({"linear_start", "linear_end"}, True),
}
"""Linear layers of the head, and whether there is a pooler."""


def config(**changes: Any) -> ErnieMConfig:
    return ErnieMConfig(**({k: v for k, v in CONFIG_OF_4_40_2.items() if k != "transformers_version"} | changes))


def make(name: str = "ErnieMModel", **changes: Any) -> Any:
    """A reference model whose every parameter is random, biases and layer-norms too."""
    model = getattr(reference, name)(config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def weights(model: Any) -> dict[str, Tensor]:
    """What 4.40.2 would save: every name, no two of one storage."""
    return {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}


def write(folder: Path, state: dict[str, Tensor], kind: str = "bin", **changes: Any) -> Path:
    """A folder as transformers 4.x leaves it: `bin`, `safetensors`, or either in shards with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG_OF_4_40_2 | changes))
    stem, ending = ("model", "safetensors") if "safetensors" in kind else ("pytorch_model", "bin")

    def save(tensors: dict[str, Tensor], file: str) -> None:
        if ending == "bin":
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, metadata={"format": "pt"})

    if not kind.startswith("sharded"):
        save(state, f"{stem}.{ending}")
        return folder
    names, index = list(state), {}
    for shard in range(3):
        file = f"{stem}-{shard + 1:05}-of-00003.{ending}"
        # Interleaved: what belongs together is spread over the shards.
        save({name: state[name] for name in names[shard::3]}, file)
        index |= dict.fromkeys(names[shard::3], file)
    size = sum(tensor.nbytes for tensor in state.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(content))
    return folder


def load(folder: Path, name: str = "ErnieMModel", models: Any = erniem_fast, **options: Any) -> tuple[Any, dict]:
    return getattr(models, name).from_pretrained(folder, output_loading_info=True, **options)


def outputs(model: Any, ids: Tensor = IDS) -> list[Tensor]:
    """Floating outputs at the real tokens, which are all that the two models agree on."""
    mask = ids != 1
    if "MultipleChoice" in type(model).__name__:
        return [model(ids[None], attention_mask=mask[None].long())[0].detach()]
    with torch.no_grad():
        results = model(ids, attention_mask=mask.long(), return_dict=True)
    return [value[mask] if value.shape[:2] == ids.shape else value for value in results.values()]


def assert_agree(found: Any, expected: Any, ids: Tensor = IDS) -> None:
    pairs = list(zip(outputs(found, ids), outputs(expected, ids), strict=True))
    assert pairs
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def assert_holds(model: Any, state: dict[str, Tensor]) -> None:
    """Bitwise, and nothing else in it."""
    found = model.state_dict()
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found[key], value), key


def assert_nothing_to_report(info: dict) -> None:
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info


def paddle_style(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {re.sub(r"self_attn\.(self_attn\.[qkv]_proj)", r"\1", key): value for key, value in state.items()}


def fused(state: dict[str, Tensor], inner: str = "") -> dict[str, Tensor]:
    """q, k and v of each layer below each other, under `self_attn.` or `self_attn.self_attn.`."""
    result = {key: value for key, value in state.items() if "_proj." not in key or "out_proj" in key}
    for key in state:
        if "self_attn.self_attn.q_proj." in key:
            stem, kind = key.split("self_attn.q_proj.")
            parts = [state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            result[f"{stem}{inner}in_proj_{kind}"] = torch.cat(parts)
    assert len(result) < len(state)
    return result


def golden_folder(tmp_path: Path, case: str) -> Path:
    """The golden weights, under the name that from_pretrained looks for."""
    folder = tmp_path / case
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((GOLDEN / case / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((GOLDEN / case / "weights.safetensors").read_bytes())
    return folder


FORMS = {
    "as it is": lambda state: state,
    "paddle": paddle_style,
    "fused": fused,
    "fused inside": lambda state: fused(state, "self_attn."),
    "half of each": lambda state: {
        **{k: v for k, v in fused(state).items() if "layers.0" in k},
        **{k: v for k, v in paddle_style(state).items() if "layers.0" not in k},
    },
}


# Loading


@pytest.mark.parametrize("kind", ["bin", "safetensors", "sharded bin", "sharded safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_every_file_and_every_form_of_key(tmp_path: Path, kind: str, form: str) -> None:
    model = make()
    folder = write(tmp_path, FORMS[form](weights(model)), kind)
    for models in (erniem_fast, reference):
        loaded, info = load(folder, models=models)
        assert_nothing_to_report(info)
        assert type(loaded) is models.ErnieMModel
        assert not loaded.training
        assert_holds(loaded, weights(model))
        assert_agree(loaded, model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefixed", [True, False])
def test_base_into_head_and_head_into_base(tmp_path: Path, form: str, prefixed: bool) -> None:
    model = make("ErnieMForSequenceClassification", num_labels=3)
    head = {key: value for key, value in weights(model).items() if key.startswith("classifier.")}
    base = weights(model.ernie_m)

    loaded, info = load(write(tmp_path / "head", FORMS[form](weights(model))))
    assert info["missing_keys"] == set()
    assert set(info["unexpected_keys"]) == head.keys()
    assert_holds(loaded, base)
    assert_agree(loaded, model.ernie_m)

    state = {f"ernie_m.{key}": value for key, value in base.items()} if prefixed else base
    loaded, info = load(write(tmp_path / "base", FORMS[form](state)), "ErnieMForSequenceClassification")
    assert set(info["missing_keys"]) == head.keys()
    assert not info["unexpected_keys"]
    assert_holds(loaded.ernie_m, base)
    assert_agree(loaded.ernie_m, model.ernie_m)
    assert all(value.isfinite().all() for value in loaded.state_dict().values())
    assert not loaded.classifier.bias.any()
    assert 0.05 < loaded.classifier.weight.std() < 0.5  # initializer_range 0.2


@pytest.mark.parametrize("name", HEADS)
def test_reference_and_fast_load_the_same_folder(tmp_path: Path, name: str) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    plain, plain_info = load(tmp_path, name, reference)
    fast, fast_info = load(tmp_path, name)
    assert_nothing_to_report(plain_info)
    assert_nothing_to_report(fast_info)
    assert_agree(plain, model)
    assert_agree(fast, model)


@pytest.mark.parametrize("kind", ["bin", "safetensors", "sharded bin"])
def test_missing_pooler(tmp_path: Path, kind: str) -> None:
    model = make()
    state = {key: value for key, value in weights(model).items() if not key.startswith("pooler.")}
    loaded, info = load(write(tmp_path, state, kind))
    assert set(info["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not info["unexpected_keys"]
    assert not loaded.pooler.dense.bias.any()
    assert 0.15 < loaded.pooler.dense.weight.std() < 0.25
    torch.testing.assert_close(outputs(loaded)[0], outputs(model)[0], rtol=1e-5, atol=1e-5)
    again, info = load(tmp_path, add_pooling_layer=False)
    assert_nothing_to_report(info)
    assert again.pooler is None
    assert again(IDS).pooler_output is None


def test_missing_parameters_are_filled_in_and_reported(tmp_path: Path) -> None:
    gone = {
        "encoder.layers.1.norm1.weight",
        "encoder.layers.1.norm1.bias",
        "encoder.layers.0.linear1.weight",
        "encoder.layers.0.self_attn.self_attn.k_proj.bias",
        "embeddings.position_embeddings.weight",
        "embeddings.word_embeddings.weight",
    }
    state = {key: value for key, value in weights(make()).items() if key not in gone}
    loaded, info = load(write(tmp_path, state))
    assert set(info["missing_keys"]) == gone
    found = loaded.state_dict()
    assert (found["encoder.layers.1.norm1.weight"] == 1).all()
    assert not found["encoder.layers.1.norm1.bias"].any()
    assert not found["encoder.layers.0.self_attn.self_attn.k_proj.bias"].any()
    assert 0.15 < found["encoder.layers.0.linear1.weight"].std() < 0.25
    for table in ("position", "word"):
        table = found[f"embeddings.{table}_embeddings.weight"]
        assert 0.15 < table[2:].std() < 0.25
        assert not table[1].any()  # padding_idx
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert loaded(IDS).last_hidden_state.isfinite().all()


def test_unknown_keys_are_reported_and_ignored(tmp_path: Path) -> None:
    model = make()
    strangers = {"embeddings.token_type_embeddings.weight", "encoder.layers.7.linear1.weight", "in_proj_weight"}
    state = weights(model) | {key: torch.randn(4, 4) for key in strangers}
    # A form that is converted and one that isn't take two ways.
    for form in (FORMS["as it is"], paddle_style):
        loaded, info = load(write(tmp_path, form(state)))
        assert set(info["unexpected_keys"]) == strangers
        assert not info["missing_keys"]
        assert_holds(loaded, weights(model))


@pytest.mark.parametrize("form", FORMS)
def test_wrong_shapes_raise(tmp_path: Path, form: str) -> None:
    state = weights(make())
    key = "encoder.layers.1.linear2.weight"
    state[key] = torch.randn(32, 47)
    folder = write(tmp_path, FORMS[form](state))
    with pytest.raises(RuntimeError, match="mismatched"):
        ErnieMModel.from_pretrained(folder)
    loaded, info = load(folder, ignore_mismatched_sizes=True)
    assert [entry[0] for entry in info["mismatched_keys"]] == [key]
    assert loaded.state_dict()[key].isfinite().all()
    assert loaded.state_dict()[key].shape == (32, 48)


@pytest.mark.parametrize("kind", ["bin", "safetensors", "sharded safetensors"])
def test_wrong_shapes_of_fused_projections_raise(tmp_path: Path, kind: str) -> None:
    state = fused(weights(make()))
    odd = state | {"encoder.layers.0.self_attn.in_proj_weight": torch.randn(95, 32)}
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.in_proj_weight.*95"):
        ErnieMModel.from_pretrained(write(tmp_path / "odd", odd, kind))
    small = state | {"encoder.layers.0.self_attn.in_proj_weight": torch.randn(93, 32)}
    with pytest.raises(RuntimeError, match="mismatched"):
        ErnieMModel.from_pretrained(write(tmp_path / "small", small, kind))


@pytest.mark.parametrize("kind", ["bin", "sharded safetensors"])
def test_a_parameter_given_twice_raises(tmp_path: Path, kind: str) -> None:
    state = weights(make())
    twice = state | {"encoder.layers.1.self_attn.q_proj.weight": torch.randn(32, 32)}
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.self_attn\.q_proj\.weight twice"):
        ErnieMModel.from_pretrained(write(tmp_path, twice, kind))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    state = weights(make())
    folder = write(tmp_path, FORMS[form](state), "safetensors")
    loaded, info = load(folder, dtype=dtype)
    assert_nothing_to_report(info)
    assert loaded.dtype == loaded.config.dtype == dtype
    assert_holds(loaded, {key: value.to(dtype) for key, value in state.items()})
    assert loaded(IDS).last_hidden_state.dtype == dtype
    # The configuration's own dtype counts where none is asked for.
    half, _ = load(write(tmp_path, FORMS[form](state), "safetensors", torch_dtype="bfloat16"))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"], ids=str)
def test_device_map(tmp_path: Path, form: str, device_map: Any) -> None:
    model = make("ErnieMForSequenceClassification")
    folder = write(tmp_path, FORMS[form](weights(model)), "sharded safetensors")
    loaded, info = load(folder, "ErnieMForSequenceClassification", device_map=device_map)
    assert_nothing_to_report(info)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert_holds(loaded, weights(model))
    assert_agree(loaded, model)


@pytest.mark.parametrize("name", ["ErnieMModel", *HEADS])
@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_built_on_meta_and_filled_later(name: str, models: Any) -> None:
    model = make(name)
    with torch.device("meta"):
        empty = getattr(models, name)(config())
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    empty.load_state_dict(weights(model), assign=True)
    empty.tie_weights()
    assert_agree(empty.eval(), model)


@pytest.mark.parametrize("name", ["ErnieMModel", *HEADS])
def test_nothing_stays_on_meta(tmp_path: Path, name: str) -> None:
    """Not even where the checkpoint holds next to nothing."""
    folder = write(tmp_path, {"embeddings.layer_norm.bias": torch.randn(32)}, "safetensors")
    with torch.device("meta"):
        wanted = getattr(erniem_fast, name)(config())
    for _ in range(2):
        loaded, info = load(folder, name)
        tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
        assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
        assert tensors.keys() == {name for name, _ in (*wanted.named_parameters(), *wanted.named_buffers())}
        for key, tensor in tensors.items():
            assert tensor.isfinite().all(), key
            assert tensor.abs().max() < 10 * 0.2 or "layer_norm.bias" in key, key  # initializer_range
        assert len(info["missing_keys"]) >= len(tensors) - 1


# Conversion

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
        # Nearly a form that is converted.
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


@settings(max_examples=100, deadline=None)
@given(keys=st.sets(st.one_of(st.builds(str.__add__, prefixes, plain_keys), st.text(max_size=20))))
def test_what_no_table_knows_passes_unchanged(keys: set[str]) -> None:
    state = {key: torch.randn(3, 2) for key in keys}
    before = dict(state)
    assert not needs_conversion(keys)
    converted = convert(state)
    assert list(converted) == list(state)
    assert all(converted[key] is state[key] for key in keys)
    assert state == before


@settings(max_examples=100, deadline=None)
@given(
    layers=st.dictionaries(
        st.integers(0, 30), st.sampled_from(["plain", "paddle", "fused", "fused inside"]), min_size=1
    ),
    prefix=prefixes,
    rows=st.integers(1, 5),
    data=st.data(),
)
def test_values_are_preserved(layers: dict[int, str], prefix: str, rows: int, data: st.DataObject) -> None:
    """Whatever form each layer has, and in whatever order the keys come."""
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


@settings(max_examples=50, deadline=None)
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


# Saving


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_saved_keys_are_4_40_2s(tmp_path: Path, case: str) -> None:
    golden = load_file(GOLDEN / case / "weights.safetensors")
    name = json.loads((GOLDEN / case / "case.json").read_text())["class"]
    for models in (erniem_fast, reference):
        model, info = load(golden_folder(tmp_path, case), name, models)
        assert_nothing_to_report(info)
        model.save_pretrained(tmp_path / "saved")
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert saved.keys() == golden.keys()
        assert all(torch.equal(saved[key], value) for key, value in golden.items())


@pytest.mark.parametrize("name", sorted(HEAD_KEYS_OF_4_40_2))
def test_saved_keys_of_every_head(tmp_path: Path, name: str) -> None:
    linears, pooler = HEAD_KEYS_OF_4_40_2[name]
    base = {f"ernie_m.{key}" for key in PARAMETERS_OF_4_40_2 if pooler or not key.startswith("pooler.")}
    depth = {key.split(".")[2] for key in PARAMETERS_OF_4_40_2 if "layers." in key}
    model = getattr(erniem_fast, name)(config(num_hidden_layers=len(depth)))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == base | {f"{linear}.{kind}" for linear in linears for kind in ("weight", "bias")}


@pytest.mark.parametrize("name", ["ErnieMForSequenceClassification", "ErnieMForMaskedLM"])
def test_saved_in_shards(tmp_path: Path, name: str) -> None:
    model = make(name)
    fast = getattr(erniem_fast, name)(config())
    fast.load_state_dict(weights(model))
    fast.save_pretrained(tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert not (tmp_path / "model.safetensors").exists()
    for models in (erniem_fast, reference):
        loaded, info = load(tmp_path, name, models)
        assert_nothing_to_report(info)
        assert_holds(loaded, weights(model))
        assert_agree(loaded, model)


def test_a_converted_checkpoint_is_saved_in_4_40_2s_names(tmp_path: Path) -> None:
    model = make("ErnieMForTokenClassification")
    loaded, _ = load(write(tmp_path / "old", fused(weights(model))), "ErnieMForTokenClassification")
    with torch.no_grad():
        loaded(IDS)
    loaded.save_pretrained(tmp_path / "new")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[key], value) for key, value in weights(model).items())
    assert sum(value.nbytes for value in saved.values()) == sum(p.numel() * 4 for p in model.parameters())


# Pruned heads


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "kinds"), [("ErnieMModel", "relative_key"), ("ErnieMForQuestionAnswering", "absolute")]
)
def test_pruned_heads(tmp_path: Path, form: str, name: str, kinds: str) -> None:
    pruned = {"0": [1], "1": [0, 2]}
    model = make(name, pruned_heads=pruned, position_embedding_type=kinds)
    folder = write(tmp_path, FORMS[form](weights(model)), pruned_heads=pruned, position_embedding_type=kinds)
    for models in (erniem_fast, reference):
        loaded, info = load(folder, name, models)
        assert_nothing_to_report(info)
        assert loaded.config.pruned_heads == {0: [1], 1: [0, 2]}
        base = loaded if name == "ErnieMModel" else loaded.ernie_m
        assert [layer.self_attn.self_attn.q_proj.weight.shape[0] for layer in base.encoder.layers] == [24, 16]
        assert [layer.self_attn.out_proj.weight.shape[1] for layer in base.encoder.layers] == [24, 16]
        assert_agree(loaded, model)
        loaded.save_pretrained(tmp_path / "again")
        assert_agree(load(tmp_path / "again", name)[0], model)


def test_pruned_heads_are_heads_that_are_silenced() -> None:
    """Against a whole model whose head mask hides the same heads."""
    whole = make()
    pruned = {0: [1], 1: [0, 2]}
    fast = ErnieMModel(config(pruned_heads=pruned)).eval()
    state = weights(whole)
    for layer, heads in pruned.items():
        stem = f"encoder.layers.{layer}.self_attn."
        kept = [row for row in range(32) if row // 8 not in heads]
        for letter in "qkv":
            for kind in ("weight", "bias"):
                key = f"{stem}self_attn.{letter}_proj.{kind}"
                state[key] = state[key][kept]
        state[f"{stem}out_proj.weight"] = state[f"{stem}out_proj.weight"][:, kept]
    fast.load_state_dict(state)
    mask = torch.ones(2, 4)
    mask[0, 1] = mask[1, 0] = mask[1, 2] = 0
    expected = whole(IDS, head_mask=mask)
    for found in (fast(IDS), fast(IDS, head_mask=torch.ones(4)), fast(IDS, output_attentions=True)):
        torch.testing.assert_close(found[0][IDS != 1], expected[0][IDS != 1], rtol=1e-5, atol=1e-5)
    # A head mask goes by the number of the whole model's heads.
    again = torch.ones(2, 4)
    again[0, 3] = 0
    found, expected = fast(IDS, head_mask=again), whole(IDS, head_mask=mask * again)
    torch.testing.assert_close(found[0][IDS != 1], expected[0][IDS != 1], rtol=1e-5, atol=1e-5)


# Vocabulary and tying


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("size", [113, 71])
def test_resize_token_embeddings(tmp_path: Path, models: Any, size: int) -> None:
    model = models.ErnieMModel(config()).eval()
    before = weights(model)["embeddings.word_embeddings.weight"]
    expected = outputs(model)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size
    table = model.get_input_embeddings().weight
    assert table.shape == (size, 32)
    assert torch.equal(table[: min(size, 100)], before[:size])
    for one, other in zip(outputs(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert model(torch.tensor([[0, size - 1, 2]])).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match=f"input_ids.*{size}"):
        model(torch.tensor([[0, size, 2]]))
    model.save_pretrained(tmp_path)
    assert_agree(load(tmp_path, models=models)[0], model)


def assert_tied(model: Any) -> None:
    words = model.ernie_m.embeddings.word_embeddings.weight
    head = model.lm_head
    assert head.decoder.weight is words
    assert head.decoder.bias is head.bias
    assert head.bias.shape == (words.shape[0],) == (model.config.vocab_size,)
    assert head.decoder.out_features == words.shape[0]


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("size", [113, 71])
def test_resize_token_embeddings_of_a_masked_lm(tmp_path: Path, models: Any, size: int) -> None:
    model = models.ErnieMForMaskedLM(config()).eval()
    assert_tied(model)
    with torch.no_grad():
        model.lm_head.bias.normal_()
        before, logits = weights(model), model(IDS).logits
    model.resize_token_embeddings(size)
    assert_tied(model)
    common = min(size, 100)
    found = model(IDS)
    assert found.logits.shape == (2, 5, size)
    torch.testing.assert_close(found.logits[..., :common], logits[..., :common], rtol=1e-5, atol=1e-5)
    assert torch.equal(model.lm_head.bias[:common], before["lm_head.bias"][:common])
    assert model.lm_head.bias.isfinite().all()
    # One parameter, trained from both sides.
    model(IDS, labels=torch.where(IDS == 1, -100, IDS)).loss.backward()
    assert model.get_input_embeddings().weight.grad.shape == (size, 32)
    assert model.lm_head.bias.grad.any()
    model.save_pretrained(tmp_path)
    again, info = load(tmp_path, "ErnieMForMaskedLM", models)
    assert_nothing_to_report(info)
    assert_tied(again)
    assert_holds(again, weights(model))


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("change", ["another decoder", "resized"])
def test_changed_decoder_of_an_untied_masked_lm(tmp_path: Path, models: Any, change: str) -> None:
    model = models.ErnieMForMaskedLM(config(tie_word_embeddings=False)).eval()
    if change == "resized":
        model.resize_token_embeddings(113)
    else:
        model.set_output_embeddings(torch.nn.Linear(32, 100))
    decoder = model.get_output_embeddings()
    with torch.no_grad():
        decoder.bias.normal_()
    assert decoder is model.lm_head.decoder
    assert decoder.weight is not model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    for others in (erniem_fast, reference):
        loaded, info = load(tmp_path, "ErnieMForMaskedLM", others)
        assert_nothing_to_report(info)
        assert_agree(loaded, model)


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_masked_lm_is_tied_after_loading_and_saved_once(tmp_path: Path, models: Any) -> None:
    model = make("ErnieMForMaskedLM")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert sum(file.get_tensor(key).numel() for key in keys) == model.num_parameters()
    assert "ernie_m.embeddings.word_embeddings.weight" in keys
    assert "lm_head.decoder.weight" not in keys
    assert len({"lm_head.bias", "lm_head.decoder.bias"} & keys) == 1
    loaded, info = load(tmp_path, "ErnieMForMaskedLM", models)
    assert_nothing_to_report(info)
    assert_tied(loaded)
    assert_agree(loaded, model)
    with torch.no_grad():
        loaded.get_input_embeddings().weight[7] += 1
        loaded.lm_head.bias[3] += 1
    assert torch.equal(loaded.lm_head.decoder.weight[7], model.lm_head.decoder.weight[7] + 1)
    assert torch.equal(loaded.lm_head.decoder.bias[3], model.lm_head.bias[3] + 1)
    assert_tied(copy.deepcopy(loaded))


@pytest.mark.parametrize("form", FORMS)
def test_base_into_masked_lm(tmp_path: Path, form: str) -> None:
    model = make()
    loaded, info = load(write(tmp_path, FORMS[form](weights(model))), "ErnieMForMaskedLM")
    assert_tied(loaded)
    assert torch.equal(loaded.lm_head.decoder.weight, model.embeddings.word_embeddings.weight)
    assert set(info["unexpected_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    head = {"dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "bias"}
    # transformers also names what would be tied to a missing parameter.
    assert set(info["missing_keys"]) - {"lm_head.decoder.bias"} == {f"lm_head.{key}" for key in head}
    assert not loaded.lm_head.bias.any()
    assert (loaded.lm_head.layer_norm.weight == 1).all()


def test_xlm_r_keys_of_the_head_load(tmp_path: Path) -> None:
    """With the decoder stored too, as old XLM-R checkpoints do."""
    model = make("ErnieMForMaskedLM")
    loaded, info = load(write(tmp_path, weights(model)), "ErnieMForMaskedLM")
    assert_nothing_to_report(info)
    assert_tied(loaded)
    assert_agree(loaded, model)


def test_untied_masked_lm(tmp_path: Path) -> None:
    model = ErnieMForMaskedLM(config(tie_word_embeddings=False)).eval()
    assert model.lm_head.decoder.weight is not model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    for models in (erniem_fast, reference):
        loaded, info = load(tmp_path, "ErnieMForMaskedLM", models)
        assert_nothing_to_report(info)
        assert_holds(loaded, weights(model))
        assert_agree(loaded, model)


def test_a_state_dict_may_be_given(tmp_path: Path) -> None:
    model = make("ErnieMForSequenceClassification")
    for form in FORMS.values():
        loaded = ErnieMForSequenceClassification.from_pretrained(
            None, config=model.config, state_dict=form(weights(model))
        )
        assert_holds(loaded, weights(model))
        assert_agree(loaded, model)
