"""PaddleNLP's checkpoints become our models: names, layout, configurations, tokenizers."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoint_folders import assert_agree, assert_holds
from helpers.golden_tokenizer import build
from helpers.paddle_folders import CLASSES_IN_PADDLE, in_chunks, new_config, old_config, paddle_arrays, pickled, write
from helpers.pairs import SIZES

import erniem_fast
from erniem_fast import ErnieMConfig, paddle, reference

CLASSES = [*CLASSES_IN_PADDLE]
IDS = torch.tensor([[0, 5, 9, 17, 2], [0, 40, 2, 1, 1]])


@pytest.fixture(scope="module")
def tokenizer():
    return build()


@pytest.fixture
def _same_tokenizer(monkeypatch, tokenizer):
    """Loading a tokenizer takes longer than all else of a tiny checkpoint."""
    monkeypatch.setattr(paddle, "ernie_m_tokenizer", lambda folder, fields: tokenizer)


def make(name: str = "ErnieMModel", **changes: Any) -> Any:
    """Reference model with random parameters; its feed-forward is 4 hidden_size wide, as those of PaddleNLP."""
    sizes = SIZES | {"intermediate_size": 4 * SIZES["hidden_size"]}
    model = getattr(reference, name)(ErnieMConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def assert_is(loaded: paddle.Loaded, model: Any) -> None:
    """Check that a loaded model is bitwise a reference model, padding-free."""
    assert type(loaded.model) is getattr(erniem_fast, type(model).__name__)
    assert_holds(loaded.model, model.state_dict())
    assert_agree(loaded.model, model, IDS)
    assert not loaded.model.training


@pytest.mark.usefixtures("_same_tokenizer")
@pytest.mark.parametrize("name", CLASSES)
def test_every_class(tmp_path, name):
    model = make(name)
    config = new_config(model)
    loaded = paddle.load(write(tmp_path / "x", pickled(paddle_arrays(model)), config))
    assert_is(loaded, model)
    assert loaded.architecture == config["architectures"][0]
    pooled = hasattr(getattr(model, "ernie_m", model), "pooler") and any("pooler" in key for key in model.state_dict())
    assert loaded.dropped == ([] if pooled else ["ernie_m.pooler.dense.weight", "ernie_m.pooler.dense.bias"])


@pytest.mark.usefixtures("_same_tokenizer")
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_form_before_configurations(tmp_path, name, protocol):
    """The encoder's fields lie in init_args; its parameters in `encoder.` in UIE-M."""
    labels = {"num_labels": 3} if name in ("ErnieMForSequenceClassification", "ErnieMForTokenClassification") else {}
    model = make(name, **labels)
    arrays = paddle_arrays(model, "encoder." if "Extraction" in name else "ernie_m.")
    arrays["embeddings.position_ids" if name == "ErnieMModel" else "ernie_m.embeddings.position_ids"] = np.arange(66)[
        None
    ]
    if "Extraction" in name:
        arrays["encoder.embeddings.position_ids"] = arrays.pop("ernie_m.embeddings.position_ids")
    config = old_config(model, *labels.values())
    loaded = paddle.load(write(tmp_path / "x", pickled(arrays, protocol, numpy_1=True), config, "model_config.json"))
    assert_is(loaded, model)
    assert loaded.model.config.num_labels == model.config.num_labels


@pytest.mark.usefixtures("_same_tokenizer")
def test_names_of_labels(tmp_path):
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    model = make("ErnieMForTokenClassification", id2label=names)
    fields = {"id2label": names, "label2id": {name: index for index, name in names.items()}, "classifier_dropout": 0.25}
    loaded = paddle.load(write(tmp_path / "x", pickled(paddle_arrays(model)), new_config(model, **fields)))
    assert loaded.model.config.id2label == names
    assert loaded.model.config.label2id == fields["label2id"]
    assert loaded.model.config.classifier_dropout == 0.25


def test_configuration_and_tokenizer(tmp_path):
    model = make(hidden_dropout_prob=0.3, hidden_act="relu")
    loaded = paddle.load(write(tmp_path / "x", pickled(paddle_arrays(model)), new_config(model)))
    config = loaded.model.config
    assert (config.hidden_dropout_prob, config.hidden_act) == (0.3, "relu")
    assert config.intermediate_size == 128  # PaddleNLP's says 3072 and is not read
    assert config.pad_token_id == 1  # 0 in PaddleNLP's, which is [CLS]
    assert config.layer_norm_eps == 1e-5
    text = "Hello, 中文 WORLD [MASK]"
    assert loaded.tokenizer(text).input_ids == build(do_lower_case=True)(text).input_ids
    assert "vocab_file" not in json.dumps(loaded.tokenizer.init_kwargs, default=str).replace('"vocab_file": null', "")


@pytest.mark.usefixtures("_same_tokenizer")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(tmp_path, dtype):
    model = make("ErnieMForSequenceClassification")
    loaded = paddle.load(write(tmp_path / "x", pickled(paddle_arrays(model, dtype=dtype)), new_config(model)))
    assert loaded.model.dtype == getattr(torch, dtype)
    assert_holds(loaded.model, {key: value.to(loaded.model.dtype) for key, value in model.state_dict().items()})


@pytest.mark.usefixtures("_same_tokenizer")
def test_of_two_dtypes_the_one_that_holds_both(tmp_path):
    model = make()
    arrays = paddle_arrays(model, dtype="bfloat16")
    norms = {key: array for key, array in paddle_arrays(model).items() if "norm" in key}
    loaded = paddle.load(write(tmp_path / "x", pickled(arrays | norms), new_config(model)))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.encoder.layers[1].norm2.bias, model.encoder.layers[1].norm2.bias)


@pytest.mark.usefixtures("_same_tokenizer")
def test_chunked_tables(tmp_path):
    model = make()
    arrays = in_chunks(paddle_arrays(model), 1000)
    assert "embeddings.word_embeddings.weight@@.2" in arrays
    assert_is(paddle.load(write(tmp_path / "x", pickled(arrays, 2), new_config(model))), model)


@pytest.mark.usefixtures("_same_tokenizer")
@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForInformationExtraction"])
def test_the_weights_tell_the_class_where_nothing_else_does(tmp_path, name):
    model = make(name)
    config = new_config(model)
    del config["architectures"]
    assert_is(paddle.load(write(tmp_path / "x", pickled(paddle_arrays(model)), config)), model)


def spoil_weights(how: str, arrays: dict[str, np.ndarray]) -> None:
    match how:
        case "unknown":
            arrays["ernie_m.embeddings.task_type_embeddings.weight"] = np.zeros((3, 32), np.float32)
        case "unknown in a layer":
            arrays["ernie_m.encoder.layers.0.linear3.weight"] = np.zeros((3, 32), np.float32)
        case "unknown parameter":
            arrays["ernie_m.pooler.dense.scale"] = np.zeros(32, np.float32)
        case "bias of a table":
            arrays["ernie_m.embeddings.word_embeddings.bias"] = np.zeros(32, np.float32)
        case "not of the encoder":
            arrays["encoder.layers.0.linear1.weight"] = arrays.pop("ernie_m.encoder.layers.0.linear1.weight")
        case "missing":
            del arrays["ernie_m.encoder.layers.1.norm2.bias"]
        case "missing head":
            del arrays["classifier.bias"]
        case "missing in every layer":
            for key in [key for key in arrays if "linear1.bias" in key]:
                del arrays[key]
        case "braces":
            arrays["ernie_m.encoder.layers.{}.linear1.bias"] = np.zeros(3, np.float32)
        case "missing layer":
            for key in [key for key in arrays if "layers.1." in key]:
                del arrays[key]
        case "no table":
            del arrays["ernie_m.embeddings.word_embeddings.weight"]
        case "transposed":
            arrays["ernie_m.encoder.layers.0.linear1.weight"] = arrays[
                "ernie_m.encoder.layers.0.linear1.weight"
            ].T.copy()
        case "rows":
            arrays["ernie_m.embeddings.word_embeddings.weight"] = np.zeros((20, 32), np.float32)
        case "integers":
            arrays["classifier.bias"] = np.zeros(2, np.int64)
        case "dimensions":
            arrays["classifier.bias"] = np.zeros((2, 1), np.float32)


@pytest.mark.usefixtures("_same_tokenizer")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unknown", "task_type_embeddings.weight"),
        ("unknown in a layer", "ernie_m.encoder.layers.0.linear3.weight"),
        ("unknown parameter", "no such parameters: ernie_m.pooler.dense.scale"),
        ("bias of a table", "no such parameters: ernie_m.embeddings.word_embeddings.bias"),
        ("not of the encoder", "no such parameters: encoder.layers.0.linear1.weight"),
        ("missing", "the weights lack ernie_m.encoder.layers.1.norm2.bias"),
        ("missing head", "the weights lack classifier.bias"),
        ("missing in every layer", "the weights lack linear1.bias of every layer"),
        ("braces", r"no such parameters: ernie_m.encoder.layers.{}.linear1.bias \(3,\)"),
        ("missing layer", "num_hidden_layers is 2, and the weights hold 1"),
        ("no table", "hold no embeddings.word_embeddings.weight"),
        ("transposed", "other shapes than config.json says: ernie_m.encoder.layers.0.linear1.weight"),
        ("rows", "other shapes than config.json says: ernie_m.embeddings.word_embeddings.weight"),
        ("integers", "floating-point numbers, got int64"),
        ("dimensions", r"no such parameters: classifier.bias \(2, 1\)"),
    ],
)
def test_spoilt_weights_raise(tmp_path, how, message):
    model = make("ErnieMForSequenceClassification")
    arrays = paddle_arrays(model)
    spoil_weights(how, arrays)
    with pytest.raises(ValueError, match=message):
        paddle.load(write(tmp_path / "x", pickled(arrays), new_config(model)))


@pytest.mark.usefixtures("_same_tokenizer")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["ErnieModel"]}, "the class is 'ErnieModel'; expected one of ErnieMModel, "),
        ({"architectures": []}, "the weights fit ErnieMForSequenceClassification, ErnieMForTokenClassification"),
        ({"architectures": ["A", "B"]}, "architectures must name one class"),
        ({"architectures": "UIEM"}, "architectures must name one class"),
        ({"architectures": ["ErnieMModel"]}, "ErnieMModel has no such parameters: classifier.bias"),
        ({"architectures": ["UIEM"]}, "UIEM has no such parameters: classifier.bias"),
        ({"model_type": "bert"}, "model_type is 'bert'; expected one of ernie_m, ernie, ernie_gram"),
        ({"init_args": 3}, "init_args must be a list"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and the weights hold 2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and the weights hold 2"),
        ({"hidden_size": None}, "the configuration lacks hidden_size"),
        ({"hidden_size": 64}, "other shapes"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"vocab_size": 20}, "other shapes"),
        ({"hidden_act": "nothing"}, "hidden_act must be one of"),
    ],
)
def test_wrong_configurations_raise(tmp_path, changes, message):
    model = make("ErnieMForSequenceClassification")
    with pytest.raises(ValueError, match=message):
        paddle.load(write(tmp_path / "x", pickled(paddle_arrays(model)), new_config(model, **changes)))


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("config.json", None, FileNotFoundError, "config.json, model_config.json or ernie_config.json"),
        ("config.json", "{", ValueError, "config.json is not JSON"),
        ("config.json", "[" * 100_000, ValueError, "config.json is not JSON"),
        ("config.json", "[1]", ValueError, "must hold an object, got list"),
        ("config.json", "{}", ValueError, "the configuration lacks hidden_size"),
        ("vocab.txt", None, FileNotFoundError, r"holds no tokenizer \(no vocab.txt\)"),
        ("sentencepiece.bpe.model", None, FileNotFoundError, r"no sentencepiece.bpe.model"),
        ("sentencepiece.bpe.model", "abc", ValueError, "expected a SentencePiece model"),
        ("tokenizer_config.json", "[", ValueError, "tokenizer_config.json is not JSON"),
        ("model_state.pdparams", None, ValueError, "must hold one .pdparams file, with all parameters, got none"),
        ("other.pdparams", "", ValueError, "got model_state.pdparams, other.pdparams"),
        ("model_state.pdparams", "abc", ValueError, "no file of parameters"),
    ],
)
def test_wrong_folders_raise(tmp_path, file, content, error, message):
    model = make()
    folder = write(tmp_path / "x", pickled(paddle_arrays(model)), new_config(model))
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(error, match=message):
        paddle.load(folder)


def test_without_a_tokenizer_config(tmp_path):
    model = make()
    folder = write(tmp_path / "x", pickled(paddle_arrays(model)), new_config(model))
    (folder / "tokenizer_config.json").unlink()
    assert paddle.load(folder).tokenizer("Hello").input_ids == build()("Hello").input_ids


@pytest.mark.parametrize("models", [erniem_fast, reference])
@pytest.mark.parametrize("config_name", ["config.json", "model_config.json"])
def test_from_pretrained_names_the_command(tmp_path, models, config_name):
    model = make()
    config = new_config(model) if config_name == "config.json" else old_config(model)
    folder = write(tmp_path / "x", pickled(paddle_arrays(model)), config, config_name)
    for path in (folder, str(folder)):
        with pytest.raises(OSError, match=r"`erniem-fast convert .*x OUT`"):
            models.ErnieMModel.from_pretrained(path)
    with pytest.raises(OSError, match="no file named") as info:
        models.ErnieMModel.from_pretrained(tmp_path, config=model.config)
    assert "convert" not in str(info.value)
