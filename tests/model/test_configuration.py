"""ErnieMConfig: the fields, order and files of 4.40.2; wrong values are refused by name."""

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import GOLDEN_MODEL
from transformers import AutoConfig

import erniem_fast
from erniem_fast import ErnieMConfig

DEFAULTS_OF_4_40_2 = {
    "vocab_size": 250002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 514,
    "initializer_range": 0.02,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-05,
    "classifier_dropout": None,
    "act_dropout": 0.0,
}
"""In the order of the positional arguments."""

JSON_OF_4_40_2 = {
    "_name_or_path": "somewhere",
    "act_dropout": 0.05,
    "architectures": ["ErnieMForSequenceClassification"],
    "attention_probs_dropout_prob": 0.2,
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.3,
    "hidden_size": 32,
    "id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"},
    "initializer_range": 0.03,
    "intermediate_size": 64,
    "label2id": {"contradiction": 2, "entailment": 0, "neutral": 1},
    "layer_norm_eps": 1e-06,
    "max_position_embeddings": 66,
    "model_type": "ernie_m",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "pruned_heads": {"0": [1], "1": [0, 2]},
    "torch_dtype": "float16",
    "transformers_version": "4.40.2",
    "type_vocab_size": 16,
    "vocab_size": 100,
}


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def fields(config: ErnieMConfig) -> dict[str, Any]:
    """All fields except the origin of the configuration."""
    return {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "architectures")}


def test_defaults_of_4_40_2() -> None:
    config = ErnieMConfig()
    assert {name: getattr(config, name) for name in DEFAULTS_OF_4_40_2} == DEFAULTS_OF_4_40_2
    assert config.model_type == "ernie_m"
    assert config.num_labels == 2
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    assert config.problem_type is None
    assert config.return_dict is True
    assert (config.output_attentions, config.output_hidden_states) == (False, False)
    assert (config.is_decoder, config.add_cross_attention, config.is_encoder_decoder) == (False, False, False)
    assert (config.use_cache, config.tie_word_embeddings, config.pruned_heads) == (True, True, {})
    assert (config.bos_token_id, config.eos_token_id) == (None, None)
    assert config.chunk_size_feed_forward == 0
    assert config.position_embedding_type == "absolute"
    assert config.max_tokens == 512


def test_positional_arguments_keep_4_40_2s_order() -> None:
    values = (99, 24, 3, 6, 40, "relu", 0.2, 0.3, 77, 0.5, 7, 1e-3, 0.4, 0.6)
    config = ErnieMConfig(*values)
    assert tuple(getattr(config, name) for name in DEFAULTS_OF_4_40_2) == values
    assert tuple(inspect.signature(ErnieMConfig.__init__).parameters)[1:15] == tuple(DEFAULTS_OF_4_40_2)


def test_attribute_map() -> None:
    config = ErnieMConfig(classifier_dropout=0.25, num_labels=4)
    assert (config.dropout, config.num_classes) == (0.25, 4)
    config.dropout, config.num_classes = 0.5, 3
    assert (config.classifier_dropout, config.num_labels) == (0.5, 3)
    assert list(config.id2label) == [0, 1, 2]
    by_alias = ErnieMConfig(dropout=0.15, num_classes=7)
    assert (by_alias.classifier_dropout, by_alias.num_labels) == (0.15, 7)
    assert "dropout" not in by_alias.to_dict()


@pytest.mark.parametrize("load", [ErnieMConfig.from_pretrained, AutoConfig.from_pretrained])
def test_config_json_of_4_40_2(tmp_path: Path, load: Any) -> None:
    config = load(write(tmp_path, JSON_OF_4_40_2))
    assert type(config) is ErnieMConfig
    translated = {"pruned_heads", "torch_dtype", "id2label", "transformers_version", "_name_or_path", "model_type"}
    for name in JSON_OF_4_40_2.keys() - translated:
        assert getattr(config, name) == JSON_OF_4_40_2[name], name
    assert config.dtype == torch.float16
    assert config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert config.num_labels == 3
    assert config.pruned_heads == {0: [1], 1: [0, 2]}
    assert config.max_tokens == 64


@pytest.mark.parametrize("golden", sorted(GOLDEN_MODEL.glob("*/config.json")), ids=str)
def test_golden_configs_load_unchanged(golden: Path) -> None:
    content = json.loads(golden.read_text())
    config = ErnieMConfig.from_pretrained(golden.parent)
    for name in DEFAULTS_OF_4_40_2.keys() & content.keys():
        assert getattr(config, name) == content[name], name


def test_round_trip(tmp_path: Path) -> None:
    config = ErnieMConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=3, num_attention_heads=6, intermediate_size=5,
        hidden_act="gelu_new", hidden_dropout_prob=0, attention_probs_dropout_prob=0.5, max_position_embeddings=9,
        initializer_range=1, pad_token_id=None, layer_norm_eps=1e-3, classifier_dropout=0.3, act_dropout=None,
        position_embedding_type="relative_key", pruned_heads={"2": [5, 0, 5], 0: {3}}, num_labels=5,
        problem_type="regression", return_dict=False, output_attentions=True, tie_word_embeddings=False,
    )  # fmt: skip
    assert config.pruned_heads == {2: [0, 5], 0: [3]}
    config.save_pretrained(tmp_path)
    again = ErnieMConfig.from_pretrained(tmp_path)
    assert fields(again) == fields(config)
    assert again.pruned_heads == {2: [0, 5], 0: [3]}
    assert (again.output_attentions, again.return_dict, again.pad_token_id) == (True, False, None)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "ernie_m"
    for other in (ErnieMConfig(**config.to_dict()), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert fields(other) == fields(config)
    assert fields(ErnieMConfig.from_pretrained(tmp_path, num_labels=2, act_dropout=0.5)) != fields(config)


def test_two_configurations_share_nothing() -> None:
    one, other = ErnieMConfig(), ErnieMConfig()
    one.pruned_heads[0] = [1]
    one.id2label[0] = "changed"
    assert other.pruned_heads == {}
    assert other.id2label[0] == "LABEL_0"


INTEGERS = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "act_dropout")
BAD = [
    *((name, value) for name in INTEGERS for value in (-1, 1.5, "12", True, None)),
    *((name, 0) for name in INTEGERS),
    *(("num_labels", value) for value in (0, -3, 1.5, "3", True, None, 2**20 + 1, 10**12)),
    ("num_classes", 10**12),
    *(("id2label", value) for value in (["no", "yes"], "no", 2)),
    *(("id2label", value) for value in ({}, {"x": "no"}, {0.5: "no"}, {-1: "no"}, {None: "no"})),
    ("problem_type", "ranking"),
    *(("max_position_embeddings", value) for value in (2, 0, -5, 66.0, None)),
    *((name, value) for name in PROBABILITIES for value in (-0.1, 1, 1.5, float("nan"), float("inf"), "0.1", True)),
    *((name, None) for name in PROBABILITIES[:2]),
    *((name, v) for name in ("initializer_range", "layer_norm_eps") for v in (0, -1e-5, float("inf"), "1", None)),
    ("initializer_range", float("nan")),
    ("layer_norm_eps", float("nan")),
    *(("pad_token_id", value) for value in (-1, 250002, 1.0, "1")),
    *(("hidden_act", value) for value in ("gelu_erf", "", None)),
    *(("position_embedding_type", value) for value in ("rotary", "", None)),
    *(("pruned_heads", value) for value in ({12: [0]}, {-1: [0]}, {0: [12]}, {0: [-1]}, {"1": list(range(12))})),
    ("is_decoder", True),
    ("add_cross_attention", True),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value!r}" for name, value in BAD])
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ErnieMConfig(**{name: value})
    message = str(caught.value)
    assert {"num_classes": "num_labels"}.get(name, name) in message
    if name == "pruned_heads":
        (layer, heads), *_ = value.items()
        assert f"{{{int(layer)}: {heads}}}" in message
    elif name == "id2label":
        assert (
            all(repr(key) in message for key in value) if isinstance(value, dict) else type(value).__name__ in message
        )
    elif name not in ("is_decoder", "add_cross_attention"):
        assert repr(value) in message


def test_hidden_size_must_divide() -> None:
    with pytest.raises(ValueError, match=r"hidden_size.*num_attention_heads.*30 and 4"):
        ErnieMConfig(hidden_size=30, num_attention_heads=4)


def test_limits_are_accepted() -> None:
    ErnieMConfig(max_position_embeddings=3, num_hidden_layers=1, pad_token_id=None, hidden_dropout_prob=0)
    ErnieMConfig(vocab_size=2, pad_token_id=1, pruned_heads={0: []}, classifier_dropout=None, act_dropout=None)
    ErnieMConfig(hidden_act=torch.nn.functional.silu, attention_probs_dropout_prob=0.999)
    assert ErnieMConfig(num_labels=1, problem_type="regression").id2label == {0: "LABEL_0"}
    assert ErnieMConfig(id2label={"0": "no", 1: "yes"}).id2label == {0: "no", 1: "yes"}


def test_num_labels_is_checked_wherever_it_is_set(tmp_path: Path) -> None:
    """The check comes before the base class makes as many names."""
    config = ErnieMConfig(num_labels=3)
    for name in ("num_labels", "num_classes"):
        with pytest.raises(ValueError, match=r"num_labels must be an integer in \[1, 1048576\], got 1000000000000"):
            setattr(config, name, 10**12)
    assert config.num_labels == 3
    config.num_labels = 4
    assert list(config.id2label) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="num_labels must be an integer"):
        ErnieMConfig.from_pretrained(write(tmp_path, JSON_OF_4_40_2), num_labels=10**12)


def test_dropouts_follow_hidden_dropout_where_none() -> None:
    config = ErnieMConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4,
        max_position_embeddings=8, hidden_dropout_prob=0.35, act_dropout=None, classifier_dropout=None,
    )  # fmt: skip
    model = erniem_fast.ErnieMForSequenceClassification(config)
    assert model.dropout.p == model.ernie_m.encoder.layers[0].dropout.p == 0.35
    config.act_dropout, config.classifier_dropout = 0.0, 0.0
    model = erniem_fast.ErnieMForSequenceClassification(config)
    assert model.dropout.p == model.ernie_m.encoder.layers[0].dropout.p == 0.0
