"""Names of parameters in published checkpoints: ErnieM's become those of transformers 4.40.2, and Paddle's are tables.

`paddle_names.py` says how a table is read, `paddle.py` reads files by them.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .paddle_names import (
    EMBEDDING,
    LINEAR,
    LONE_BIAS,
    LONE_WEIGHT,
    NORM,
    STATIC_BIAS,
    STATIC_EMBEDDING,
    STATIC_LINEAR,
    STATIC_NORM,
    STATIC_OUTPUT,
    Family,
    Head,
    Kind,
    Modules,
)  # fmt: skip

RENAMES = (
    # PaddleNLP's projections lie in one module, 4.40.2's in two.
    (re.compile(r"(\blayers\.\d+\.self_attn)\.(?=[qkv]_proj\.)"), r"\1.self_attn."),
)
FUSED_PROJECTION = re.compile(r"(\blayers\.\d+\.self_attn)(?:\.self_attn)?\.in_proj_(weight|bias)$")
"""PyTorch's fused projection, as an early conversion kept it: q, k and v one below the other."""
LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


def needs_conversion(keys: Iterable[str]) -> bool:
    """True if `convert` changes any of the keys."""
    return any(FUSED_PROJECTION.search(key) or _rename(key) != key for key in keys)


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with 4.40.2's parameter names.

    Prefixes (`ernie_m.`) stay: `from_pretrained` adds and drops them. Unknown keys stay too: it reports them.

    Args:
        state_dict: parameter name to tensor. Not changed.

    Raises:
        ValueError: two keys give the same parameter, or a fused projection cannot be split in three.
    """
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        fused = FUSED_PROJECTION.search(key)
        if fused is None:
            parts = {_rename(key): tensor}
        elif tensor.dim() == 0 or tensor.shape[0] % 3:
            raise ValueError(f"{key} must hold q, k and v in equal parts, got shape {tuple(tensor.shape)}")
        else:
            names = (f"{fused[1]}.self_attn.{letter}_proj.{fused[2]}" for letter in "qkv")
            parts = {key[: fused.start()] + name: part for name, part in zip(names, tensor.chunk(3), strict=True)}
        for name, part in parts.items():
            if name in converted:
                raise ValueError(f"the checkpoint holds {name} twice, once as {key}")
            converted[name] = part
    return converted


def check_num_layers(keys: Iterable[str], num_hidden_layers: int) -> None:
    """Refuse parameters of encoder layers that the model does not have.

    Raises:
        ValueError: a key names layer `num_hidden_layers` or a later one.
    """
    layers = {int(match[1]) for match in map(LAYER.search, keys) if match}
    if layers and max(layers) >= num_hidden_layers:
        raise ValueError(
            f"num_hidden_layers is {num_hidden_layers} in the configuration, but the checkpoint holds "
            f"{max(layers) + 1} encoder layers. Set num_hidden_layers={max(layers) + 1}, or load the first "
            f"{num_hidden_layers} only with ignore_mismatched_sizes=True"
        )


def _rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = pattern.sub(replacement, key)
    return key


CLASSIFIER = ((LINEAR, {"classifier": "classifier"}),)
QUESTION_ANSWERING = ((LINEAR, {"classifier": "qa_outputs"}),)
ERNIE_M = Family(
    form="PaddleNLP",
    model_type="ernie_m",
    prefix="ernie_m.",
    prefixes=("ernie_m.", "encoder."),
    encoder=(
        (
            EMBEDDING,
            {
                "embeddings.word_embeddings": "embeddings.word_embeddings",
                "embeddings.position_embeddings": "embeddings.position_embeddings",
            },
        ),
        (
            NORM,
            {
                "embeddings.layer_norm": "embeddings.layer_norm",
                "encoder.layers.{}.norm1": "encoder.layers.{}.norm1",
                "encoder.layers.{}.norm2": "encoder.layers.{}.norm2",
            },
        ),
        (
            LINEAR,
            {
                "encoder.layers.{}.self_attn.q_proj": "encoder.layers.{}.self_attn.self_attn.q_proj",
                "encoder.layers.{}.self_attn.k_proj": "encoder.layers.{}.self_attn.self_attn.k_proj",
                "encoder.layers.{}.self_attn.v_proj": "encoder.layers.{}.self_attn.self_attn.v_proj",
                "encoder.layers.{}.self_attn.out_proj": "encoder.layers.{}.self_attn.out_proj",
                "encoder.layers.{}.linear1": "encoder.layers.{}.linear1",
                "encoder.layers.{}.linear2": "encoder.layers.{}.linear2",
                "pooler.dense": "pooler.dense",
            },
        ),
    ),
    heads={
        "ErnieMModel": Head("ErnieMModel"),
        "ErnieMForSequenceClassification": Head("ErnieMForSequenceClassification", CLASSIFIER, "classifier"),
        "ErnieMForTokenClassification": Head("ErnieMForTokenClassification", CLASSIFIER, "classifier"),
        "ErnieMForMultipleChoice": Head("ErnieMForMultipleChoice", CLASSIFIER),
        "ErnieMForQuestionAnswering": Head("ErnieMForQuestionAnswering", QUESTION_ANSWERING),
        "UIEM": Head(
            "ErnieMForInformationExtraction",
            ((LINEAR, {"linear_start": "linear_start", "linear_end": "linear_end"}),),
        ),
    },
    buffers=frozenset({"embeddings.position_ids"}),
)

# ERNIE 1.0, 2.0, 3.0, Tiny and Gram zh: one encoder under three sets of names.
# transformers | ERNIE's repository | PaddleNLP | static graphs
TABLES = (
    ("embeddings.word_embeddings", "word_emb", "embeddings.word_embeddings", "word_embedding"),
    ("embeddings.position_embeddings", "pos_emb", "embeddings.position_embeddings", "pos_embedding"),
    ("embeddings.token_type_embeddings", "sent_emb", "embeddings.token_type_embeddings", "sent_embedding"),
    ("embeddings.task_type_embeddings", "task_emb", "embeddings.task_type_embeddings", "task_embedding"),
)
NORMS = (("embeddings.LayerNorm", "ln", "embeddings.layer_norm", "pre_encoder_layer_norm"),)
POOLER = (("pooler.dense", "pooler", "pooler.dense", "pooled_fc"),)
IN_LAYER = ("encoder.layer.{}.", "encoder_stack.block.{}.", "encoder.layers.{}.", "encoder_layer_{}_")
LAYER_LINEARS = (
    ("attention.self.query", "attn.q", "self_attn.q_proj", "multi_head_att_query_fc"),
    ("attention.self.key", "attn.k", "self_attn.k_proj", "multi_head_att_key_fc"),
    ("attention.self.value", "attn.v", "self_attn.v_proj", "multi_head_att_value_fc"),
    ("attention.output.dense", "attn.o", "self_attn.out_proj", "multi_head_att_output_fc"),
    ("intermediate.dense", "ffn.i", "linear1", "ffn_fc_0"),
    ("output.dense", "ffn.o", "linear2", "ffn_fc_1"),
)
LAYER_NORMS = (
    ("attention.output.LayerNorm", "ln1", "norm1", "post_att_layer_norm"),
    ("output.LayerNorm", "ln2", "norm2", "post_ffn_layer_norm"),
)
MLM_TRANSFORM = (("cls.predictions.transform.dense", "mlm", "cls.predictions.transform", "mask_lm_trans_fc"),)
MLM_NORM = (
    ("cls.predictions.transform.LayerNorm", "mlm_ln", "cls.predictions.layer_norm", "mask_lm_trans_layer_norm"),
)
MLM_BIAS = (("cls.predictions", "mlm", "cls.predictions.decoder", "mask_lm_out_fc"),)
NEXT_SENTENCE = (("cls.seq_relationship", "pooler_heads.0.nsp", "cls.seq_relationship", "next_sent_fc"),)
TIED = {
    "cls.predictions.decoder.weight": "ernie.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
Rows = tuple[tuple[str, str, str, str], ...]


def _column(rows: Rows, column: int, before: tuple[str, str, str, str] = ("", "", "", "")) -> dict[str, str]:
    return {before[column] + row[column]: before[0] + row[0] for row in rows}


def _encoder(column: int, embedding: Kind, norm: Kind, linear: Kind) -> Modules:
    return (
        (embedding, _column(TABLES, column)),
        (norm, _column(NORMS, column) | _column(LAYER_NORMS, column, IN_LAYER)),
        (linear, _column(LAYER_LINEARS, column, IN_LAYER) | _column(POOLER, column)),
    )


def _masked_lm(column: int, norm: Kind, linear: Kind, bias: Kind) -> Modules:
    return (
        (linear, _column(MLM_TRANSFORM, column)),
        (norm, _column(MLM_NORM, column)),
        (bias, _column(MLM_BIAS, column)),
    )


def _pretraining(masked_lm: Modules, next_sentence: Modules) -> tuple[Head, Head]:
    """Both heads of pre-training, without and with the one that scores pairs of sentences."""
    return (
        Head("ErnieForMaskedLM", masked_lm, keeps_pooler=True, tied=TIED),
        Head("ErnieForPreTraining", masked_lm + next_sentence, tied=TIED),
    )


ORIGINAL_MLM, ORIGINAL_PRETRAINING = _pretraining(
    _masked_lm(1, NORM, LINEAR, LONE_BIAS), ((LINEAR, _column(NEXT_SENTENCE, 1)),)
)
ERNIE_ORIGINAL = Family(
    form="ERNIE's repository",
    model_type="ernie",
    prefix="ernie.",
    prefixes=(),
    encoder=_encoder(1, EMBEDDING, NORM, LINEAR),
    heads={
        "ErnieModel": Head("ErnieModel"),
        "ErnieModelForSequenceClassification": Head("ErnieForSequenceClassification", CLASSIFIER, "classifier"),
        "ErnieModelForTokenClassification": Head("ErnieForTokenClassification", CLASSIFIER, "classifier"),
        "ErnieModelForQuestionAnswering": Head("ErnieForQuestionAnswering", QUESTION_ANSWERING, "qa_outputs"),
        "ErnieModelForPretraining": ORIGINAL_PRETRAINING,
        # What was published of ERNIE 1.0 is that class without the scores of pairs.
        "ErnieForMaskedLM": ORIGINAL_MLM,
    },
)

PADDLENLP_MLM, PADDLENLP_PRETRAINING = _pretraining(
    (
        *_masked_lm(2, NORM, LINEAR, LONE_BIAS),
        (LONE_WEIGHT, {"cls.predictions.decoder": "cls.predictions.decoder"}),
    ),
    ((LINEAR, _column(NEXT_SENTENCE, 2)),),
)
ERNIE_PADDLENLP = Family(
    form="PaddleNLP",
    model_type="ernie",
    prefix="ernie.",
    prefixes=("ernie.", "ernie_gram."),
    encoder=_encoder(2, EMBEDDING, NORM, LINEAR),
    heads={
        f"{name}{task}": head
        for task, head in {
            "Model": Head("ErnieModel"),
            "ForSequenceClassification": Head("ErnieForSequenceClassification", CLASSIFIER, "classifier"),
            "ForTokenClassification": Head("ErnieForTokenClassification", CLASSIFIER, "classifier"),
            "ForQuestionAnswering": Head("ErnieForQuestionAnswering", QUESTION_ANSWERING, "qa_outputs"),
            "ForMultipleChoice": Head("ErnieForMultipleChoice", CLASSIFIER),
            "ForPretraining": PADDLENLP_PRETRAINING,
            "ForMaskedLM": PADDLENLP_MLM,
        }.items()
        for name in ("Ernie", "ErnieGram")
    },
    buffers=frozenset({"embeddings.position_ids"}),
)

STATIC_MLM, STATIC_PRETRAINING = _pretraining(
    _masked_lm(3, STATIC_NORM, STATIC_LINEAR, STATIC_BIAS), ((STATIC_LINEAR, _column(NEXT_SENTENCE, 3)),)
)
ERNIE_STATIC = Family(
    form="a static graph of ERNIE's repository",
    model_type="ernie",
    prefix="ernie.",
    prefixes=(),
    encoder=_encoder(3, STATIC_EMBEDDING, STATIC_NORM, STATIC_LINEAR),
    heads={
        "ErnieModel": Head("ErnieModel"),
        "ErnieForSequenceClassification": Head(
            "ErnieForSequenceClassification", ((STATIC_OUTPUT, {"cls_out": "classifier"}),), "classifier"
        ),
        "ErnieForTokenClassification": Head(
            "ErnieForTokenClassification", ((STATIC_OUTPUT, {"cls_seq_label_out": "classifier"}),), "classifier"
        ),
        "ErnieForQuestionAnswering": Head(
            "ErnieForQuestionAnswering", ((STATIC_OUTPUT, {"cls_mrc_out": "qa_outputs"}),), "qa_outputs"
        ),
        "ErnieForPreTraining": STATIC_PRETRAINING,
        "ErnieForMaskedLM": STATIC_MLM,
    },
)
