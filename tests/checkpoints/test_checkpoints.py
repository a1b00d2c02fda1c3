"""Loading and saving of every published form of checkpoint, with both models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_folders import (
    FORMS,
    GOLDEN_MODEL,
    HEAD_KEYS_OF_4_40_2,
    HEADS,
    IDS,
    PARAMETERS_OF_4_40_2,
    assert_agree,
    assert_holds,
    assert_nothing_to_report,
    config,
    fused,
    golden_folder,
    load,
    make,
    outputs,
    paddle_style,
    weights,
    write,
)
from safetensors.torch import load_file

import erniem_fast
from erniem_fast import ErnieMModel, reference

# Loading


KINDS = ("bin", "safetensors", "sharded bin", "sharded safetensors")
FILES = [
    pytest.param(kind, form, marks=[] if kind == "bin" or form == "half of each" else pytest.mark.slow)
    for kind in KINDS
    for form in FORMS
]


@pytest.mark.parametrize(("kind", "form"), FILES)
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
    strangers = {"embeddings.token_type_embeddings.weight", "encoder.layers.1.linear7.weight", "in_proj_weight"}
    state = weights(model) | {key: torch.randn(4, 4) for key in strangers}
    # Converted and plain checkpoints are loaded by different code.
    for form in (FORMS["as it is"], paddle_style):
        loaded, info = load(write(tmp_path, form(state)))
        assert set(info["unexpected_keys"]) == strangers
        assert not info["missing_keys"]
        assert_holds(loaded, weights(model))


@pytest.mark.parametrize("kind", ["bin", "sharded safetensors"])
@pytest.mark.parametrize("form", ["as it is", "fused"])
def test_more_layers_than_the_configuration_says_raise(tmp_path: Path, kind: str, form: str) -> None:
    model = make("ErnieMForSequenceClassification", num_hidden_layers=3)
    folder = write(tmp_path, FORMS[form](weights(model)), kind)  # config.json has 2
    message = "num_hidden_layers is 2 in the configuration, but the checkpoint holds 3 encoder layers"
    for models in (erniem_fast, reference):
        for name in ("ErnieMModel", "ErnieMForSequenceClassification"):
            with pytest.raises(ValueError, match=message):
                load(folder, name, models)
    whole, info = load(folder, "ErnieMForSequenceClassification", num_hidden_layers=3)
    assert_nothing_to_report(info)
    assert_agree(whole, model)
    # ignore_mismatched_sizes=True asks for the first layers, as for distillation.
    first, info = load(folder, "ErnieMForSequenceClassification", ignore_mismatched_sizes=True)
    assert {key.split("layers.")[1][:2] for key in info["unexpected_keys"]} == {"2."}
    assert len(first.ernie_m.encoder.layers) == 2
    model.ernie_m.encoder.layers = model.ernie_m.encoder.layers[:2]
    model.config.num_hidden_layers = 2
    assert_agree(first, model)


def test_more_layers_than_the_configuration_says_raise_in_a_given_state_dict() -> None:
    state = weights(make(num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"num_hidden_layers is 2 .* holds 3 encoder layers"):
        ErnieMModel.from_pretrained(None, config=config(), state_dict=state)


def test_fewer_layers_than_the_configuration_says_are_filled_in_and_reported(tmp_path: Path) -> None:
    loaded, info = load(write(tmp_path, weights(make()), num_hidden_layers=3))
    assert {key.split(".")[2] for key in info["missing_keys"]} == {"2"}
    assert len(info["missing_keys"]) == 16
    assert loaded(IDS).last_hidden_state.isfinite().all()


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
    # Without an argument the configuration's dtype counts.
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
    """Every tensor is allocated and initialised, even from a checkpoint that holds a single one."""
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


# Saving


@pytest.mark.parametrize("case", sorted(path.name for path in GOLDEN_MODEL.iterdir() if path.is_dir()))
def test_saved_keys_are_4_40_2s(tmp_path: Path, case: str) -> None:
    golden = load_file(GOLDEN_MODEL / case / "weights.safetensors")
    name = json.loads((GOLDEN_MODEL / case / "case.json").read_text())["class"]
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
    """A pruned model agrees with a whole model whose head mask hides the same heads."""
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
    # A head mask counts the heads of the whole model.
    again = torch.ones(2, 4)
    again[0, 3] = 0
    found, expected = fast(IDS, head_mask=again), whole(IDS, head_mask=mask * again)
    torch.testing.assert_close(found[0][IDS != 1], expected[0][IDS != 1], rtol=1e-5, atol=1e-5)
