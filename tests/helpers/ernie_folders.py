"""Folders of ERNIE 1.0, 2.0, 3.0, Tiny and Gram zh in the original forms of their keys, written with numpy alone.

The names are spelt out here by themselves: they judge the tables of `erniem_fast.checkpoints`.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import ErnieConfig

FORMS = ("original", "paddlenlp", "static")
SHAPES: dict[str, dict[str, Any]] = {
    "ernie-1.0-base-zh": {"vocab_size": 18000, "hidden_act": "relu", "max_position_embeddings": 513},
    "ernie-2.0-base-en": {"vocab_size": 30522, "type_vocab_size": 4},
    "ernie-2.0-base-zh": {
        "vocab_size": 18000, "hidden_act": "relu", "max_position_embeddings": 513, "type_vocab_size": 4,
    },
    "ernie-3.0-base-zh": {
        "vocab_size": 40000, "max_position_embeddings": 2048, "type_vocab_size": 4, "task_type_vocab_size": 3,
        "use_task_id": True,
    },
    "ernie-3.0-nano-zh": {
        "vocab_size": 40000, "max_position_embeddings": 2048, "type_vocab_size": 4, "task_type_vocab_size": 16,
        "use_task_id": True, "hidden_size": 312, "num_hidden_layers": 4, "intermediate_size": 1248,
    },
    "ernie-tiny": {
        "vocab_size": 50006, "hidden_act": "relu", "max_position_embeddings": 600, "hidden_size": 1024,
        "num_hidden_layers": 3, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "ernie-gram-zh": {"vocab_size": 18018},
}  # fmt: skip
"""Fields of transformers' ErnieConfig for published checkpoints. Its defaults are of base size."""
PUBLISHED_AS = {
    "ernie-1.0-base-zh": "original",
    "ernie-2.0-base-en": "original",
    "ernie-2.0-base-zh": "static",
    "ernie-3.0-base-zh": "paddlenlp",
    "ernie-3.0-nano-zh": "paddlenlp",
    "ernie-tiny": "original",
    "ernie-gram-zh": "original",
}
TINY = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 30,
    "type_vocab_size": 4,
    "task_type_vocab_size": 3,
    "initializer_range": 0.2,
}
CLASSES = {
    "ErnieModel": {"original": "ErnieModel", "paddlenlp": "ErnieModel"},
    "ErnieForSequenceClassification": {
        "original": "ErnieModelForSequenceClassification",
        "paddlenlp": "ErnieForSequenceClassification",
    },
    "ErnieForTokenClassification": {
        "original": "ErnieModelForTokenClassification",
        "paddlenlp": "ErnieForTokenClassification",
    },
    "ErnieForQuestionAnswering": {
        "original": "ErnieModelForQuestionAnswering",
        "paddlenlp": "ErnieForQuestionAnswering",
    },
    "ErnieForMultipleChoice": {"paddlenlp": "ErnieForMultipleChoice"},
    "ErnieForMaskedLM": {"paddlenlp": "ErnieForMaskedLM"},
    "ErnieForPreTraining": {"original": "ErnieModelForPretraining", "paddlenlp": "ErnieForPretraining"},
}
"""What a configuration calls a class. Those of static graphs name none."""


def build_ernie(class_name: str = "ErnieModel", seed: int | None = None, **changes: Any) -> Any:
    """A model of transformers with random parameters, biases and layer-norms included, and eps 1e-5."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())) if seed is None else seed)
    model = getattr(transformers, class_name)(ErnieConfig(**({"layer_norm_eps": 1e-5} | TINY | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = model.config.initializer_range if parameter.dim() > 1 else 0.1
            parameter.copy_(float(name.endswith("LayerNorm.weight")) + spread * noise)
    return model


def arrays_of(model: Any, form: str, prefix: str | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """A model's parameters as Paddle names and stores them. A head without a pooler gets one, as in Paddle.

    Args:
        model: a model of transformers.
        form: "original", "paddlenlp" or "static".
        prefix: what PaddleNLP calls the encoder in a head; None: "ernie.".
        seed: of the pooler that a head lacks.
    """
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    bare = type(model) is transformers.ErnieModel
    if bare:
        state = {f"ernie.{key}": tensor for key, tensor in state.items()}
    if "ernie.pooler.dense.weight" not in state:
        size, generator = model.config.hidden_size, torch.Generator().manual_seed(seed)
        state["ernie.pooler.dense.weight"] = torch.randn(size, size, generator=generator).to(model.dtype)
        state["ernie.pooler.dense.bias"] = torch.randn(size, generator=generator).to(model.dtype)
    write = {"original": _original, "paddlenlp": _paddlenlp, "static": _static}[form]
    arrays = write(state, model.config.num_hidden_layers, type(model).__name__)
    if form == "paddlenlp":
        before = ("" if bare else "ernie.") if prefix is None else prefix
        arrays = {f"{before}{key.removeprefix('ERNIE/')}" if "ERNIE/" in key else key: arrays[key] for key in arrays}
    return {key: np.ascontiguousarray(tensor.numpy()) for key, tensor in arrays.items() if tensor is not None}


def _original(state: dict[str, Any], layers: int, name: str) -> dict[str, Any]:
    arrays = {
        "word_emb.weight": state["ernie.embeddings.word_embeddings.weight"],
        "pos_emb.weight": state["ernie.embeddings.position_embeddings.weight"],
        "sent_emb.weight": state["ernie.embeddings.token_type_embeddings.weight"],
        "task_emb.weight": state.get("ernie.embeddings.task_type_embeddings.weight"),
        "ln.weight": state["ernie.embeddings.LayerNorm.weight"],
        "ln.bias": state["ernie.embeddings.LayerNorm.bias"],
        "pooler.weight": state["ernie.pooler.dense.weight"].T,
        "pooler.bias": state["ernie.pooler.dense.bias"],
    }
    for i in range(layers):
        ours, theirs = f"ernie.encoder.layer.{i}", f"encoder_stack.block.{i}"
        arrays |= {
            f"{theirs}.attn.q.weight": state[f"{ours}.attention.self.query.weight"].T,
            f"{theirs}.attn.q.bias": state[f"{ours}.attention.self.query.bias"],
            f"{theirs}.attn.k.weight": state[f"{ours}.attention.self.key.weight"].T,
            f"{theirs}.attn.k.bias": state[f"{ours}.attention.self.key.bias"],
            f"{theirs}.attn.v.weight": state[f"{ours}.attention.self.value.weight"].T,
            f"{theirs}.attn.v.bias": state[f"{ours}.attention.self.value.bias"],
            f"{theirs}.attn.o.weight": state[f"{ours}.attention.output.dense.weight"].T,
            f"{theirs}.attn.o.bias": state[f"{ours}.attention.output.dense.bias"],
            f"{theirs}.ln1.weight": state[f"{ours}.attention.output.LayerNorm.weight"],
            f"{theirs}.ln1.bias": state[f"{ours}.attention.output.LayerNorm.bias"],
            f"{theirs}.ffn.i.weight": state[f"{ours}.intermediate.dense.weight"].T,
            f"{theirs}.ffn.i.bias": state[f"{ours}.intermediate.dense.bias"],
            f"{theirs}.ffn.o.weight": state[f"{ours}.output.dense.weight"].T,
            f"{theirs}.ffn.o.bias": state[f"{ours}.output.dense.bias"],
            f"{theirs}.ln2.weight": state[f"{ours}.output.LayerNorm.weight"],
            f"{theirs}.ln2.bias": state[f"{ours}.output.LayerNorm.bias"],
        }
    if name in ("ErnieForMaskedLM", "ErnieForPreTraining"):
        arrays |= {
            "mlm.weight": state["cls.predictions.transform.dense.weight"].T,
            "mlm.bias": state["cls.predictions.transform.dense.bias"],
            "mlm_ln.weight": state["cls.predictions.transform.LayerNorm.weight"],
            "mlm_ln.bias": state["cls.predictions.transform.LayerNorm.bias"],
            "mlm_bias": state["cls.predictions.bias"],
        }
    if name == "ErnieForPreTraining":
        arrays |= {
            "pooler_heads.0.nsp.weight": state["cls.seq_relationship.weight"].T,
            "pooler_heads.0.nsp.bias": state["cls.seq_relationship.bias"],
        }
    if name in ("ErnieForSequenceClassification", "ErnieForTokenClassification"):
        arrays |= {"classifier.weight": state["classifier.weight"].T, "classifier.bias": state["classifier.bias"]}
    if name == "ErnieForQuestionAnswering":
        arrays |= {"classifier.weight": state["qa_outputs.weight"].T, "classifier.bias": state["qa_outputs.bias"]}
    return arrays


def _paddlenlp(state: dict[str, Any], layers: int, name: str) -> dict[str, Any]:
    arrays = {
        "ERNIE/embeddings.word_embeddings.weight": state["ernie.embeddings.word_embeddings.weight"],
        "ERNIE/embeddings.position_embeddings.weight": state["ernie.embeddings.position_embeddings.weight"],
        "ERNIE/embeddings.token_type_embeddings.weight": state["ernie.embeddings.token_type_embeddings.weight"],
        "ERNIE/embeddings.task_type_embeddings.weight": state.get("ernie.embeddings.task_type_embeddings.weight"),
        "ERNIE/embeddings.layer_norm.weight": state["ernie.embeddings.LayerNorm.weight"],
        "ERNIE/embeddings.layer_norm.bias": state["ernie.embeddings.LayerNorm.bias"],
        "ERNIE/pooler.dense.weight": state["ernie.pooler.dense.weight"].T,
        "ERNIE/pooler.dense.bias": state["ernie.pooler.dense.bias"],
    }
    for i in range(layers):
        ours, theirs = f"ernie.encoder.layer.{i}", f"ERNIE/encoder.layers.{i}"
        arrays |= {
            f"{theirs}.self_attn.q_proj.weight": state[f"{ours}.attention.self.query.weight"].T,
            f"{theirs}.self_attn.q_proj.bias": state[f"{ours}.attention.self.query.bias"],
            f"{theirs}.self_attn.k_proj.weight": state[f"{ours}.attention.self.key.weight"].T,
            f"{theirs}.self_attn.k_proj.bias": state[f"{ours}.attention.self.key.bias"],
            f"{theirs}.self_attn.v_proj.weight": state[f"{ours}.attention.self.value.weight"].T,
            f"{theirs}.self_attn.v_proj.bias": state[f"{ours}.attention.self.value.bias"],
            f"{theirs}.self_attn.out_proj.weight": state[f"{ours}.attention.output.dense.weight"].T,
            f"{theirs}.self_attn.out_proj.bias": state[f"{ours}.attention.output.dense.bias"],
            f"{theirs}.norm1.weight": state[f"{ours}.attention.output.LayerNorm.weight"],
            f"{theirs}.norm1.bias": state[f"{ours}.attention.output.LayerNorm.bias"],
            f"{theirs}.linear1.weight": state[f"{ours}.intermediate.dense.weight"].T,
            f"{theirs}.linear1.bias": state[f"{ours}.intermediate.dense.bias"],
            f"{theirs}.linear2.weight": state[f"{ours}.output.dense.weight"].T,
            f"{theirs}.linear2.bias": state[f"{ours}.output.dense.bias"],
            f"{theirs}.norm2.weight": state[f"{ours}.output.LayerNorm.weight"],
            f"{theirs}.norm2.bias": state[f"{ours}.output.LayerNorm.bias"],
        }
    if name in ("ErnieForMaskedLM", "ErnieForPreTraining"):
        arrays |= {
            "cls.predictions.transform.weight": state["cls.predictions.transform.dense.weight"].T,
            "cls.predictions.transform.bias": state["cls.predictions.transform.dense.bias"],
            "cls.predictions.layer_norm.weight": state["cls.predictions.transform.LayerNorm.weight"],
            "cls.predictions.layer_norm.bias": state["cls.predictions.transform.LayerNorm.bias"],
            # The word table once more: PaddleNLP gives one parameter both names.
            "cls.predictions.decoder_weight": state["ernie.embeddings.word_embeddings.weight"],
            "cls.predictions.decoder_bias": state["cls.predictions.bias"],
        }
    if name == "ErnieForPreTraining":
        arrays |= {
            "cls.seq_relationship.weight": state["cls.seq_relationship.weight"].T,
            "cls.seq_relationship.bias": state["cls.seq_relationship.bias"],
        }
    if "classifier.weight" in state:
        arrays |= {"classifier.weight": state["classifier.weight"].T, "classifier.bias": state["classifier.bias"]}
    if name == "ErnieForQuestionAnswering":
        arrays |= {"classifier.weight": state["qa_outputs.weight"].T, "classifier.bias": state["qa_outputs.bias"]}
    return arrays


def _static(state: dict[str, Any], layers: int, name: str) -> dict[str, Any]:
    arrays = {
        "word_embedding": state["ernie.embeddings.word_embeddings.weight"],
        "pos_embedding": state["ernie.embeddings.position_embeddings.weight"],
        "sent_embedding": state["ernie.embeddings.token_type_embeddings.weight"],
        "task_embedding": state.get("ernie.embeddings.task_type_embeddings.weight"),
        "pre_encoder_layer_norm_scale": state["ernie.embeddings.LayerNorm.weight"],
        "pre_encoder_layer_norm_bias": state["ernie.embeddings.LayerNorm.bias"],
        "pooled_fc.w_0": state["ernie.pooler.dense.weight"].T,
        "pooled_fc.b_0": state["ernie.pooler.dense.bias"],
    }
    for i in range(layers):
        ours, theirs = f"ernie.encoder.layer.{i}", f"encoder_layer_{i}"
        arrays |= {
            f"{theirs}_multi_head_att_query_fc.w_0": state[f"{ours}.attention.self.query.weight"].T,
            f"{theirs}_multi_head_att_query_fc.b_0": state[f"{ours}.attention.self.query.bias"],
            f"{theirs}_multi_head_att_key_fc.w_0": state[f"{ours}.attention.self.key.weight"].T,
            f"{theirs}_multi_head_att_key_fc.b_0": state[f"{ours}.attention.self.key.bias"],
            f"{theirs}_multi_head_att_value_fc.w_0": state[f"{ours}.attention.self.value.weight"].T,
            f"{theirs}_multi_head_att_value_fc.b_0": state[f"{ours}.attention.self.value.bias"],
            f"{theirs}_multi_head_att_output_fc.w_0": state[f"{ours}.attention.output.dense.weight"].T,
            f"{theirs}_multi_head_att_output_fc.b_0": state[f"{ours}.attention.output.dense.bias"],
            f"{theirs}_post_att_layer_norm_scale": state[f"{ours}.attention.output.LayerNorm.weight"],
            f"{theirs}_post_att_layer_norm_bias": state[f"{ours}.attention.output.LayerNorm.bias"],
            f"{theirs}_ffn_fc_0.w_0": state[f"{ours}.intermediate.dense.weight"].T,
            f"{theirs}_ffn_fc_0.b_0": state[f"{ours}.intermediate.dense.bias"],
            f"{theirs}_ffn_fc_1.w_0": state[f"{ours}.output.dense.weight"].T,
            f"{theirs}_ffn_fc_1.b_0": state[f"{ours}.output.dense.bias"],
            f"{theirs}_post_ffn_layer_norm_scale": state[f"{ours}.output.LayerNorm.weight"],
            f"{theirs}_post_ffn_layer_norm_bias": state[f"{ours}.output.LayerNorm.bias"],
        }
    if name in ("ErnieForMaskedLM", "ErnieForPreTraining"):
        arrays |= {
            "mask_lm_trans_fc.w_0": state["cls.predictions.transform.dense.weight"].T,
            "mask_lm_trans_fc.b_0": state["cls.predictions.transform.dense.bias"],
            "mask_lm_trans_layer_norm_scale": state["cls.predictions.transform.LayerNorm.weight"],
            "mask_lm_trans_layer_norm_bias": state["cls.predictions.transform.LayerNorm.bias"],
            "mask_lm_out_fc.b_0": state["cls.predictions.bias"],
        }
    if name == "ErnieForPreTraining":
        arrays |= {
            "next_sent_fc.w_0": state["cls.seq_relationship.weight"].T,
            "next_sent_fc.b_0": state["cls.seq_relationship.bias"],
        }
    if name == "ErnieForSequenceClassification":
        arrays |= {"cls_out_w": state["classifier.weight"].T, "cls_out_b": state["classifier.bias"]}
    if name == "ErnieForTokenClassification":
        arrays |= {"cls_seq_label_out_w": state["classifier.weight"].T, "cls_seq_label_out_b": state["classifier.bias"]}
    if name == "ErnieForQuestionAnswering":
        arrays |= {"cls_mrc_out_w": state["qa_outputs.weight"].T, "cls_mrc_out_b": state["qa_outputs.bias"]}
    return arrays


def config_of(model: Any, form: str, **changes: Any) -> dict[str, Any]:
    """What the configuration of a form says: ernie_config.json of ERNIE's repository, or PaddleNLP's config.json."""
    config = model.config
    names = (
        "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range",
        "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "vocab_size", "task_type_vocab_size",
        "use_task_id",
    )  # fmt: skip
    fields = {name: getattr(config, name) for name in names}
    if form == "paddlenlp":
        fields |= {
            "architectures": [CLASSES[type(model).__name__]["paddlenlp"]],
            "model_type": "ernie",
            "type_vocab_size": config.type_vocab_size,
            "intermediate_size": config.intermediate_size,
            "layer_norm_eps": 1e-12,  # PaddleNLP's default, which the models were not trained with
            "pad_token_id": 0,
            "task_id": 0,
            "pool_act": "tanh",
            "fuse": False,
            "paddlenlp_version": None,
        }
    else:
        fields["sent_type_vocab_size"] = config.type_vocab_size
        if config.intermediate_size != 4 * config.hidden_size:
            fields["intermediate_size"] = config.intermediate_size
        name = CLASSES[type(model).__name__].get(form)
        if form == "original" and name not in (None, "ErnieModel", "ErnieModelForPretraining"):
            fields["architectures"] = [name]  # by the user's hand: the weights don't tell
    return fields | changes


def vocabulary(size: int) -> list[str]:
    """Tokens of a vocabulary of BERT's kind, in which [PAD], [CLS], [SEP] and [MASK] go first, as in ERNIE's."""
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "，", "的", "、", "一", "人", "有", "[UNK]", ".", "!"]
    tokens += [*"abcdefghij"] + [f"##{letter}" for letter in "abcdefghij"]
    return tokens + [f"[unused{i}]" for i in range(size - len(tokens))]


def write_folder(folder: Path, arrays: Any, fields: dict[str, Any], form: str, vocab: list[str]) -> Path:
    """A folder as the form lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"original": "saved_weights", "paddlenlp": "model_state", "static": "ernie"}[form]
    names = {} if form == "static" else {"StructuredToParameterName@@": {key: f"p_{key}" for key in arrays}}
    with open(folder / f"{weights}.pdparams", "wb") as file:
        pickle.dump({**arrays, **names}, file, 2 if form == "static" else 4)
    (folder / ("config.json" if form == "paddlenlp" else "ernie_config.json")).write_text(json.dumps(fields))
    ending = "\t{}" if form == "original" else ""  # ERNIE 1.0's names each token's id
    lines = [f"{token}{ending.format(index)}\n" for index, token in enumerate(vocab)]
    (folder / "vocab.txt").write_text("".join(lines), encoding="utf-8")
    if form == "paddlenlp":
        tokenizer = {"do_lower_case": True, "unk_token": "[UNK]", "tokenizer_class": "ErnieTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def write_ernie_checkpoint(
    folder: Path, form: str, config: dict[str, Any], seed: int = 0, name: str = "ErnieModel"
) -> Any:
    """Write a folder in a form of keys, with random weights, and return the model of transformers that it holds.

    Args:
        folder: where.
        form: "original", "paddlenlp" or "static".
        config: fields of transformers' ErnieConfig besides its defaults: one of SHAPES, or TINY.
        seed: of the weights.
        name: the class of transformers.
    """
    defaults = {key: getattr(ErnieConfig(), key) for key in TINY}
    model = build_ernie(name, seed, **(defaults | config))
    fields = config_of(model, form)
    return write_folder(folder, arrays_of(model, form), fields, form, vocabulary(model.config.vocab_size)) and model
