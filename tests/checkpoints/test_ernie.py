"""ERNIE's Paddle checkpoints become transformers' models: three forms of keys, configurations, vocabularies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.ernie_folders import (
    CLASSES,
    FORMS,
    PUBLISHED_AS,
    SHAPES,
    TINY,
    arrays_of,
    build_ernie,
    config_of,
    vocabulary,
    write_ernie_checkpoint,
    write_folder,
)  # fmt: skip

from erniem_fast import paddle

IDS = torch.tensor([[1, 5, 9, 17, 2], [1, 40, 2, 0, 0]])
SLOW = pytest.mark.slow
ONE_FORM = ["static", pytest.param("original", marks=SLOW), pytest.param("paddlenlp", marks=SLOW)]
"""One form in every run, each where breadth is tested."""
HEADS = [
    pytest.param(form, name, marks=() if name == "ErnieForMaskedLM" else SLOW)
    for form in FORMS
    for name in CLASSES
    if form == "paddlenlp" or name != "ErnieForMultipleChoice"
]
POOLER = ["ernie.pooler.dense.weight", "ernie.pooler.dense.bias"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """transformers' bars cost more than tiny weights do."""
    transformers.utils.logging.disable_progress_bar()


def make(folder: Path, form: str, name: str = "ErnieModel", vocab: list[str] | None = None, **changes: Any) -> Any:
    """A model of transformers, written to a folder."""
    sizes = {key: changes.pop(key) for key in list(changes) if hasattr(transformers.ErnieConfig(), key)}
    model = build_ernie(name, **sizes)
    vocab = vocabulary(TINY["vocab_size"]) if vocab is None else vocab
    write_folder(folder, arrays_of(model, form), config_of(model, form, **changes), form, vocab)
    return model


def outputs(model: Any, **more: Any) -> list[torch.Tensor]:
    """Every floating-point output, types of tokens and a mask included."""
    ids = IDS % model.config.vocab_size
    given = {"input_ids": ids, "token_type_ids": (ids > 8).long(), "attention_mask": (ids != 0).long(), **more}
    if "MultipleChoice" in type(model).__name__:
        given = {key: value[None] for key, value in given.items()}
    with torch.no_grad():
        return [value for value in model(**given).values() if value.is_floating_point()]


def assert_is(found: Any, expected: Any, **more: Any) -> None:
    """Check that two models hold the same, bit for bit, and compute the same."""
    assert type(found) is type(expected)
    states = found.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(states[0][key].dtype == value.dtype for key, value in states[1].items())
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    assert not found.training
    if found.dtype.itemsize > 2:  # half precision rounds by the address of a matrix
        pairs = list(zip(outputs(found, **more), outputs(expected, **more), strict=True))
        assert pairs
        for pair in pairs:
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("form", "name"), HEADS)
def test_every_form_and_class(tmp_path, form, name):
    labels = {"num_labels": 5} if name.endswith(("SequenceClassification", "TokenClassification")) else {}
    model = make(tmp_path / "x", form, name, hidden_act="relu", **labels)
    loaded = paddle.load(tmp_path / "x")
    assert_is(loaded.model, model)
    assert loaded.model.config.layer_norm_eps == 1e-5
    assert loaded.model.config.hidden_act == "relu"
    assert loaded.model.config.num_labels == model.config.num_labels
    assert loaded.architecture == CLASSES[name].get(form, name)
    has_pooler = any(".pooler." in f".{key}" for key in model.state_dict())
    assert [*loaded.kept] == (POOLER if name == "ErnieForMaskedLM" else [])
    assert loaded.dropped == ([] if has_pooler or loaded.kept else POOLER)


@pytest.mark.parametrize("form", FORMS)
def test_types_of_tasks(tmp_path, form):
    model = make(tmp_path / "x", form, use_task_id=True)
    assert_is(paddle.load(tmp_path / "x").model, model, task_type_ids=IDS % 3)


@pytest.mark.parametrize("form", ONE_FORM)
def test_a_table_of_tasks_that_is_not_used(tmp_path, form):
    model = build_ernie(use_task_id=True)
    fields = config_of(model, form, use_task_id=False)
    write_folder(tmp_path / "x", arrays_of(model, form), fields, form, vocabulary(60))
    loaded = paddle.load(tmp_path / "x")
    assert loaded.dropped == ["embeddings.task_type_embeddings.weight"]
    assert not loaded.model.config.use_task_id
    expected = build_ernie()
    expected.load_state_dict({key: value for key, value in model.state_dict().items() if "task_type" not in key})
    assert_is(loaded.model, expected)


@pytest.mark.parametrize("prefix", ["", "ernie.", "ernie_gram."])
def test_prefixes_of_paddlenlp(tmp_path, prefix):
    """With and without the encoder's name; ERNIE-Gram zh has its own, and an unused buffer."""
    model = build_ernie()
    arrays = arrays_of(model, "paddlenlp", prefix) | {f"{prefix}embeddings.position_ids": np.arange(30)[None]}
    changes = {
        "model_type": "ernie_gram",
        "architectures": ["ErnieGramModel"],
        "embedding_size": 24,
        "rel_pos_size": None,
    }
    fields = config_of(model, "paddlenlp", **(changes if "gram" in prefix else {}))
    write_folder(tmp_path / "x", arrays, fields, "paddlenlp", vocabulary(60))
    assert_is(paddle.load(tmp_path / "x").model, model)


@pytest.mark.parametrize("form", ONE_FORM)
def test_more_than_ten_layers_keep_their_order(tmp_path, form):
    model = make(tmp_path / "x", form, num_hidden_layers=12)
    assert_is(paddle.load(tmp_path / "x").model, model)


def test_the_form_before_configurations(tmp_path):
    """PaddleNLP's model_config.json: fields in init_args, some of them left to its classes."""
    model = build_ernie("ErnieForSequenceClassification", num_labels=3)
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_act")
    encoder = {name: getattr(model.config, name) for name in kept} | {"init_class": "ErnieModel"}
    fields = {"init_args": [encoder, 3], "dropout": 0.3, "init_class": "ErnieForSequenceClassification"}
    write_folder(tmp_path / "x", arrays_of(model, "paddlenlp"), fields, "paddlenlp", vocabulary(60))
    (tmp_path / "x" / "config.json").rename(tmp_path / "x" / "model_config.json")
    loaded = paddle.load(tmp_path / "x")
    assert_is(loaded.model, model)
    assert (loaded.model.config.classifier_dropout, loaded.model.config.num_labels) == (0.3, 3)


def test_fields_of_the_repository(tmp_path):
    changes = {"type_vocab_size": 9, "classifier_dropout_prob": 0.4, "hidden_dropout_prob": 0.2, "epsilon": 1e-3}
    model = build_ernie(layer_norm_eps=1e-3)
    write_folder(
        tmp_path / "x", arrays_of(model, "original"), config_of(model, "original") | changes, "original", vocabulary(60)
    )
    config = paddle.load(tmp_path / "x").model.config
    assert config.type_vocab_size == 4  # sent_type_vocab_size goes first, as in the repository
    assert (config.classifier_dropout, config.hidden_dropout_prob, config.layer_norm_eps) == (0.4, 0.2, 1e-3)


def test_names_of_labels(tmp_path):
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    fields = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = build_ernie("ErnieForTokenClassification", num_labels=3)
    fields = config_of(model, "paddlenlp", **fields)
    write_folder(tmp_path / "x", arrays_of(model, "paddlenlp"), fields, "paddlenlp", vocabulary(60))
    config = paddle.load(tmp_path / "x").model.config
    assert config.id2label == names
    assert config.label2id == fields["label2id"]


@pytest.mark.parametrize("name", ["ErnieModel", "ErnieForMaskedLM", "ErnieForPreTraining"])
@pytest.mark.parametrize("form", ONE_FORM)
def test_the_weights_tell_the_class_where_nothing_else_does(tmp_path, form, name):
    model = make(tmp_path / "x", form, name, architectures=None, model_type=None)
    assert_is(paddle.load(tmp_path / "x").model, model)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(tmp_path, dtype):
    model = build_ernie("ErnieForMaskedLM").to(getattr(torch, dtype))
    write_folder(tmp_path / "x", arrays_of(model, "static"), config_of(model, "static"), "static", vocabulary(60))
    loaded = paddle.load(tmp_path / "x")
    assert_is(loaded.model, model)
    assert loaded.model.dtype == model.dtype


# --- vocabularies


@pytest.mark.parametrize("form", ONE_FORM)
def test_vocabulary(tmp_path, form):
    make(tmp_path / "x", form)
    tokenizer = paddle.load(tmp_path / "x").tokenizer
    ids = {token: index for index, token in enumerate(vocabulary(60))}
    tokens = ["[CLS]", "a", "##b", "的", "[MASK]", "[UNK]", "[SEP]", "一", "[SEP]"]
    encoded = tokenizer("Ab的 [MASK] zz", "一")
    assert encoded.input_ids == [ids[token] for token in tokens]
    assert encoded.token_type_ids == [0] * 7 + [1] * 2
    assert (len(tokenizer), tokenizer.pad_token_id) == (60, 0)


def test_case_is_kept_where_the_file_says_so(tmp_path):
    make(tmp_path / "x", "paddlenlp")
    (tmp_path / "x" / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    tokenizer = paddle.load(tmp_path / "x").tokenizer
    assert tokenizer("A a").input_ids == [1, vocabulary(60).index("[UNK]"), vocabulary(60).index("a"), 2]


def test_a_vocabulary_that_starts_elsewhere(tmp_path):
    """[PAD] is where the vocabulary has it."""
    vocab = vocabulary(60)
    vocab[0], vocab[7] = vocab[7], vocab[0]
    make(tmp_path / "x", "original", vocab=vocab)
    assert paddle.load(tmp_path / "x").model.config.pad_token_id == 7


def test_a_vocabulary_of_berts_kind_may_hold_that_character(tmp_path):
    make(tmp_path / "x", "original", vocab=[*vocabulary(58), "\u2581", "\u2581a"])
    assert len(paddle.load(tmp_path / "x").tokenizer) == 60


def test_tiny_has_no_tokenizer_of_that_kind(tmp_path):
    vocab = [*vocabulary(23), *(f"\u2581{i}" for i in range(30))]
    model = make(tmp_path / "x", "original", vocab=vocab)
    loaded = paddle.load(tmp_path / "x")
    assert_is(loaded.model, model)
    assert loaded.tokenizer is None


# --- what is refused


def spoil(how: str, arrays: dict[str, np.ndarray], form: str) -> None:
    layer = {
        "original": "encoder_stack.block.1.ffn.i.weight",
        "paddlenlp": "ernie.encoder.layers.1.linear1.weight",
        "static": "encoder_layer_1_ffn_fc_0.w_0",
    }[form]
    match how:
        case "unknown":
            arrays["learning_rate_0"] = np.zeros(1, np.float32)
        case "unknown in a layer":
            arrays[layer.replace("ffn.i", "ffn.x").replace("linear1", "linear3").replace("fc_0", "fc_2")] = arrays[
                layer
            ]
        case "another layer":
            arrays[layer.replace("1", "01", 1)] = arrays[layer]
        case "missing":
            del arrays[layer]
        case "not transposed":
            arrays[layer] = np.ascontiguousarray(arrays[layer].T)
        case "dimensions":
            arrays[layer] = arrays[layer][None]
        case "integers":
            arrays[layer] = arrays[layer].astype(np.int32)
        case "braces":
            arrays[layer.replace("1", "{}", 1)] = arrays[layer]
        case "all but the table":
            for key in list(arrays)[1:]:
                del arrays[key]


@pytest.mark.parametrize("form", ONE_FORM)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unknown", r"ErnieForSequenceClassification has no such parameters: learning_rate_0 \(1,\)"),
        ("unknown in a layer", r"no such parameters: .*1.*(ffn\.x|linear3|fc_2)"),
        (
            "another layer",
            r"hold more than config.json says: ernie.encoder.layer.01.intermediate.dense.weight|holds? 3",
        ),
        ("missing", "the weights lack ernie.encoder.layer.1.intermediate.dense.weight"),
        ("not transposed", "other shapes than config.json says: ernie.encoder.layer.1.intermediate.dense.weight"),
        ("dimensions", r"no such parameters: .*\(1, 24, 40\)"),
        ("integers", "floating-point numbers, got int32"),
        ("braces", r"no such parameters: .*\{\}"),
        ("all but the table", "num_hidden_layers is 2, and the weights hold 0"),
    ],
)
def test_spoilt_weights_raise(tmp_path, form, how, message):
    model = build_ernie("ErnieForSequenceClassification")
    arrays = arrays_of(model, form)
    spoil(how, arrays, form)
    fields = config_of(model, form, architectures=["ErnieForSequenceClassification"])
    if form == "original":
        fields["architectures"] = ["ErnieModelForSequenceClassification"]
        message = message.replace("ErnieForSequence", "ErnieModelForSequence")
    with pytest.raises(ValueError, match=message):
        paddle.load(write_folder(tmp_path / "x", arrays, fields, form, vocabulary(60)))


def test_a_decoder_of_its_own_is_refused(tmp_path):
    model = build_ernie("ErnieForMaskedLM")
    arrays = arrays_of(model, "paddlenlp")
    arrays["cls.predictions.decoder_weight"] = arrays["cls.predictions.decoder_weight"] + 1
    folder = write_folder(tmp_path / "x", arrays, config_of(model, "paddlenlp"), "paddlenlp", vocabulary(60))
    with pytest.raises(
        ValueError, match=r"decoder\.weight has other values than ernie\.embeddings\.word_embeddings\.weight"
    ):
        paddle.load(folder)


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("original", {"hidden_act": None}, "the configuration lacks hidden_act"),
        ("original", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; expected one of relu, gelu"),
        ("original", {"vocab_size": 70}, "other shapes than config.json says: embeddings.word_embeddings.weight"),
        ("original", {"sent_type_vocab_size": 2}, "other shapes than config.json says: embeddings.token_type"),
        ("original", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and the weights hold 2"),
        ("original", {"num_attention_heads": 5}, "multiple"),
        ("original", {"num_attention_heads": 0}, "the configuration is no model's"),
        ("original", {"hidden_size": 10**30, "emb_size": None}, "the configuration is no model's"),
        ("original", {"epsilon": "small"}, "the configuration is not ERNIE's"),
        ("original", {"hidden_dropout_prob": "a lot"}, "the configuration is not ERNIE's"),
        ("original", {"id2label": ["a"]}, "the configuration is not ERNIE's"),
        ("original", {"use_task_id": True}, "the weights lack embeddings.task_type_embeddings.weight"),
        ("original", {"emb_size": 12}, "emb_size is 12 and hidden_size 24; expected tables as wide as the layers"),
        ("original", {"architectures": ["ErnieRanker"]}, "the class is 'ErnieRanker'; expected one of ErnieModel, "),
        ("paddlenlp", {"architectures": ["UIE"]}, "the class is 'UIE'; expected one of ErnieModel, "),
        ("paddlenlp", {"model_type": "bert"}, "model_type is 'bert'; expected one of ernie_m, ernie, ernie_gram"),
        ("paddlenlp", {"model_type": ["ernie"]}, r"model_type is \['ernie'\]; expected one of ernie_m"),
        ("paddlenlp", {"use_task_id": True, "task_id": 2}, "task_id is 2; expected 0"),
        ("static", {"architectures": ["ErnieForMaskedLM"]}, "the weights lack cls.predictions.bias"),
    ],
)
def test_wrong_configurations_raise(tmp_path, form, changes, message):
    make_fields = {key: value for key, value in changes.items() if key != "use_task_id"}
    model = build_ernie()
    fields = config_of(model, form, **make_fields) | changes
    with pytest.raises(ValueError, match=message):
        paddle.load(write_folder(tmp_path / "x", arrays_of(model, form), fields, form, vocabulary(60)))


def test_a_classifier_alone_tells_no_class(tmp_path):
    model = build_ernie("ErnieForTokenClassification")
    fields = config_of(model, "original", architectures=None)
    folder = write_folder(tmp_path / "x", arrays_of(model, "original"), fields, "original", vocabulary(60))
    with pytest.raises(
        ValueError, match=r"names no class, .* fit ErnieModelForSequenceClassification, .*expected it as"
    ):
        paddle.load(folder)


@pytest.mark.parametrize(
    ("name", "form", "fields", "keys"),
    [
        ("ERNIE-Gram en", "original", {"rel_pos_size": 34}, []),
        ("ERNIE-Gram en", "original", {}, ["rel_pos_bias_emb.weight"]),
        ("ERNIE-Gram en", "static", {}, ["rel_pos_embedding"]),
        (
            "ERNIE-Gram en",
            "paddlenlp",
            {"model_type": "ernie_gram"},
            ["ernie_gram.embeddings.rel_pos_embeddings.weight"],
        ),
        ("ERNIE-Doc", "static", {"memory_len": 128}, []),
        ("ERNIE-Doc", "static", {}, ["encoder_layer_0_multi_head_att_r_w_bias"]),
        ("ERNIE-Doc", "paddlenlp", {"architectures": ["ErnieDocForSequenceClassification"]}, []),
        ("ERNIE-Doc", "paddlenlp", {"architectures": None}, ["ernie_doc.encoder.layers.0.attn.r_proj.weight"]),
        ("ERNIE-ViL", "static", {"v_hidden_size": 1024}, []),
        ("ERNIE-ViL", "static", {}, ["image_emb.w_0"]),
        ("ERNIE-ViL", "paddlenlp", {"model_type": "ernie_vil"}, []),
        ("UNIMO", "paddlenlp", {"architectures": ["UNIMOLMHeadModel"], "model_type": None}, []),
        ("UNIMO", "paddlenlp", {"architectures": None}, ["unimo.encoder_norm.weight"]),
        ("ERNIE-Sage", "original", {"model_type": "ErnieSageV2"}, []),
        ("ERNIE-Sage", "static", {}, ["erniesage_v2_0_l.w_0"]),
        ("ERNIE-Gen", "original", {"architectures": ["ErnieModelForGeneration"]}, []),
        ("ERNIE-Gen", "paddlenlp", {"architectures": ["ErnieForGeneration"]}, []),
        ("ERNIE-Gen", "static", {}, ["role_embedding"]),
    ],
)
def test_relatives_are_refused_by_name(tmp_path, name, form, fields, keys):
    model = build_ernie()
    arrays = arrays_of(model, form) | {key: np.zeros(3, np.float32) for key in keys}
    folder = write_folder(tmp_path / "x", arrays, config_of(model, form, **fields), form, vocabulary(60))
    with pytest.raises(ValueError, match=f"it is {name}, which .*; expected ERNIE-M, or ERNIE 1.0"):
        paddle.load(folder)


@pytest.mark.parametrize("form", ["original", "static"])
def test_masked_lm_without_a_pooler_is_gen(tmp_path, form):
    model = build_ernie("ErnieForMaskedLM")
    arrays = {key: array for key, array in arrays_of(model, form).items() if not key.startswith(("pooler", "pooled"))}
    folder = write_folder(tmp_path / "x", arrays, config_of(model, form), form, vocabulary(60))
    with pytest.raises(ValueError, match="it is ERNIE-Gen"):
        paddle.load(folder)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"holds no tokenizer \(no vocab.txt\)"),
        (b"\xff\xfe", ValueError, "utf-8"),
        ("\n".join(vocabulary(61)).encode(), ValueError, "vocab.txt holds 61 tokens, and the word table 60 rows"),
        ("\n".join(vocabulary(60)[1:]).encode(), ValueError, r"vocab.txt lacks \[PAD\]"),
        (b"", ValueError, r"vocab.txt lacks \[UNK\], \[SEP\], "),
    ],
)
def test_wrong_vocabularies_raise(tmp_path, content, error, message):
    make(tmp_path / "x", "original")
    file = tmp_path / "x" / "vocab.txt"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(error, match=message):
        paddle.load(tmp_path / "x")


def test_a_folder_of_single_files_is_led_on(tmp_path):
    make(tmp_path / "x", "static")
    (tmp_path / "x" / "ernie.pdparams").unlink()
    (tmp_path / "x" / "params").mkdir()
    with pytest.raises(ValueError, match=r"got none; docs/paddle\.md says how to make one of params"):
        paddle.load(tmp_path / "x")


def test_weights_of_no_form_raise(tmp_path):
    model = build_ernie()
    arrays = {f"bert.{key}": array for key, array in arrays_of(model, "original").items()}
    folder = write_folder(tmp_path / "x", arrays, config_of(model, "original"), "original", vocabulary(60))
    with pytest.raises(ValueError, match=r"hold no embeddings.word_embeddings.weight \(PaddleNLP\) or word_emb.weight"):
        paddle.load(folder)


@SLOW
@pytest.mark.parametrize("shape", ["ernie-3.0-nano-zh"])
def test_a_published_shape(tmp_path, shape):
    model = write_ernie_checkpoint(tmp_path / "x", PUBLISHED_AS[shape], SHAPES[shape])
    assert_is(paddle.load(tmp_path / "x").model, model)
