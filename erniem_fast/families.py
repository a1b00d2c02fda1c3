"""BERT and its kin on packed rows: classes by transformers' names, each a subclass of transformers' class.

A new family whose layer is BERT's is one line at the end; one that differs says how in a class of its own.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert import modeling_bert
from transformers.models.camembert import modeling_camembert
from transformers.models.data2vec import modeling_data2vec_text
from transformers.models.distilbert import modeling_distilbert
from transformers.models.electra import modeling_electra
from transformers.models.ernie import modeling_ernie
from transformers.models.roberta import modeling_roberta
from transformers.models.xlm_roberta import modeling_xlm_roberta

from . import fusion
from .fusion import PackedContext
from .layer_parts import AttentionParts, LayerParts
from .packed import Containers, PackedEmbeddings, PackedEncoder, PackedLayer, Swapped, by_name
from .packed_heads import FindsSpans, PackedHead, PackedMaskedLM, PackedPreTraining, ScoresChoices, ScoresSequences
from .validation import Limits


class BertKindEmbeddings(PackedEmbeddings):
    """Words, positions and token types."""

    word_embeddings: nn.Module
    position_embeddings: nn.Module
    token_type_embeddings: nn.Module
    LayerNorm: nn.Module
    dropout: nn.Module

    def further(self, ids: dict[str, Tensor]) -> list[tuple[nn.Module, Tensor | int]]:
        """Tables besides those of words and positions, with the rows to read."""
        return [(self.token_type_embeddings, ids.get("token_type_ids", 0))]

    def rows(self, context: PackedContext) -> Tensor:
        return fusion.embed(
            self.word_embeddings, self.position_embeddings, self.LayerNorm, self.dropout, context.batch.position_ids,
            context, self.further(context.batch.token_ids),
        )  # fmt: skip


class ErnieKindEmbeddings(BertKindEmbeddings):
    """Task types besides."""

    use_task_id: bool
    task_type_embeddings: nn.Module

    def further(self, ids: dict[str, Tensor]) -> list[tuple[nn.Module, Tensor | int]]:
        tasks = [(self.task_type_embeddings, ids.get("task_type_ids", 0))] if self.use_task_id else []
        return super().further(ids) + tasks


class DistilBertKindEmbeddings(BertKindEmbeddings):
    """Words and positions."""

    def further(self, ids: dict[str, Tensor]) -> list[tuple[nn.Module, Tensor | int]]:
        return []


class BertKindLayer(PackedLayer):
    """The layer of BERT (Devlin et al., arXiv 1810.04805)."""

    container_classes: ClassVar[tuple[type[nn.Module], ...]]
    attention: Any
    intermediate: Any
    output: Any

    def parts(self, index: int) -> LayerParts:
        heads, joined, inner, output = self.attention.self, self.attention.output, self.intermediate, self.output
        # transformers drops probabilities where the attention is in training mode, whatever its dropout is in.
        dropout = heads.dropout if heads.training else None
        attention = AttentionParts(heads.query, heads.key, heads.value, heads.num_attention_heads, dropout, index)
        return LayerParts(
            attention, joined.dense, joined.dropout, joined.LayerNorm, inner.dense, inner.intermediate_act_fn, None,
            output.dense, output.dropout, output.LayerNorm, index,
        )  # fmt: skip

    def containers(self) -> Containers:
        outer, inner = self.attention, (getattr(self.attention, name, None) for name in ("self", "output"))
        modules: Any = (outer, *inner, self.intermediate, self.output)
        names = ("attention", "attention.self", "attention.output", "intermediate", "output")
        return Containers(tuple(zip(names, modules, self.container_classes, strict=True)))


class BertKind(PackedEncoder):
    """BERT: word, position and token type; the pooler reads the first token."""

    container_classes: ClassVar[dict[str, type[nn.Module]]]
    embeddings: Any
    encoder: Any

    @property
    def first_position(self) -> int:
        """Row of the position table that a sequence's first token reads."""
        return 0

    @property
    def default_positions(self) -> Callable[[Tensor], Tensor] | None:
        """(batch, seq_len) ids to positions; None: the columns."""
        return None

    @property
    def limits(self) -> Limits:
        config, first = self.config, self.first_position
        return Limits(
            config.vocab_size, self.position_table.weight.shape[1], self.num_heads,
            config.max_position_embeddings - first, "max_position_embeddings" + (f" - {first}" if first else ""),
            first_position=first, default_positions=self.default_positions, token_ids=self.token_rows,
        )  # fmt: skip

    @property
    def token_rows(self) -> dict[str, int]:
        """Rows of the tables of further ids."""
        return {"token_type_ids": self.config.type_vocab_size}

    @property
    def layer_stack(self) -> Sequence[nn.Module]:
        return self.encoder.layer  # type: ignore[no-any-return]

    @property
    def position_table(self) -> nn.Embedding:
        return self.embeddings.position_embeddings  # type: ignore[no-any-return]

    @property
    def num_heads(self) -> int:
        return self.config.num_attention_heads  # type: ignore[no-any-return]

    def containers(self) -> Containers:
        found = ((name, getattr(self, name), cls) for name, cls in self.container_classes.items())
        return Containers([item for item in found if item[1] is not None])

    def embed(self, context: PackedContext) -> Tensor:
        return self.embeddings(context)  # type: ignore[no-any-return]

    def pool(self, first: Tensor) -> Tensor | None:
        pooler: Any = getattr(self, "pooler", None)
        return None if pooler is None else pooler(first[:, None])


class ErnieKind(BertKind):
    """ERNIE 1.0 to 3.0: a task type besides."""

    token_id_names = ("token_type_ids", "task_type_ids")

    @property
    def token_rows(self) -> dict[str, int]:
        rows = {"token_type_ids": self.config.type_vocab_size}  # torch.compile reads no property of super()
        return rows | ({"task_type_ids": self.config.task_type_vocab_size} if self.embeddings.use_task_id else {})


class RobertaKind(BertKind):
    """RoBERTa: positions count the ids that are not the pad id, from pad + 1 on, whatever the mask says."""

    @property
    def first_position(self) -> int:
        return self.embeddings.padding_idx + 1  # type: ignore[no-any-return]

    @property
    def default_positions(self) -> Callable[[Tensor], Tensor]:
        pad = self.embeddings.padding_idx

        def count(input_ids: Tensor) -> Tensor:
            counted = (input_ids != pad).long()
            return counted.cumsum(1) * counted + pad

        return count


class ElectraKind(BertKind):
    """ELECTRA: embeddings of their own width, projected; no pooler."""

    def embed(self, context: PackedContext) -> Tensor:
        rows = super().embed(context)
        projection: Any = getattr(self, "embeddings_project", None)
        return rows if projection is None else projection(rows)

    def result(self, found: dict[str, Any]) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(**found)


class DistilBertKindLayer(PackedLayer):
    """The layer of DistilBERT (Sanh et al., arXiv 1910.01108): no dropout behind the attention."""

    container_classes: ClassVar[tuple[type[nn.Module], ...]]
    attention: Any
    ffn: Any
    sa_layer_norm: nn.Module
    output_layer_norm: nn.Module

    def parts(self, index: int) -> LayerParts:
        heads, inner = self.attention, self.ffn
        dropout = heads.dropout if heads.training else None
        attention = AttentionParts(heads.q_lin, heads.k_lin, heads.v_lin, heads.n_heads, dropout, index)
        return LayerParts(
            attention, heads.out_lin, None, self.sa_layer_norm, inner.lin1, inner.activation, None, inner.lin2,
            inner.dropout, self.output_layer_norm, index,
        )  # fmt: skip

    def containers(self) -> Containers:
        modules = (self.attention, self.ffn)
        return Containers(tuple(zip(("attention", "ffn"), modules, self.container_classes, strict=True)))


class DistilBertKind(BertKind):
    """DistilBERT: neither token types nor pooler."""

    token_id_names = ()
    transformer: Any

    @property
    def token_rows(self) -> dict[str, int]:
        return {}

    @property
    def layer_stack(self) -> Sequence[nn.Module]:
        return self.transformer.layer  # type: ignore[no-any-return]

    def result(self, found: dict[str, Any]) -> Any:
        return BaseModelOutput(**found)


class Cls(PackedMaskedLM):
    decoder_name = "cls.predictions.decoder"
    around_names: ClassVar = {"cls": "OnlyMLMHead", "cls.predictions": "LMPredictionHead"}

    def score(self, rows: Tensor) -> Tensor:
        return self.cls(rows)  # type: ignore[operator, no-any-return]

    def transform(self, rows: Tensor) -> Tensor:
        return self.cls.predictions.transform(rows)  # type: ignore[operator, union-attr, no-any-return]


class LmHead(PackedMaskedLM):
    decoder_name = "lm_head.decoder"
    around_names: ClassVar = {"lm_head": "LMHead"}

    def score(self, rows: Tensor) -> Tensor:
        return self.lm_head(rows)  # type: ignore[operator, no-any-return]

    def transform(self, rows: Tensor) -> Tensor:
        head: Any = self.lm_head
        return head.layer_norm(F.gelu(head.dense(rows)))  # type: ignore[no-any-return]


class Generator(PackedMaskedLM):
    decoder_name = "generator_lm_head"

    def score(self, rows: Tensor) -> Tensor:
        return self.generator_lm_head(self.transform(rows))  # type: ignore[operator, no-any-return]

    def transform(self, rows: Tensor) -> Tensor:
        return self.generator_predictions(rows)  # type: ignore[operator, no-any-return]


class Vocab(PackedMaskedLM):
    decoder_name = "vocab_projector"

    def score(self, rows: Tensor) -> Tensor:
        return self.vocab_projector(self.transform(rows))  # type: ignore[operator, no-any-return]

    def transform(self, rows: Tensor) -> Tensor:
        return self.vocab_layer_norm(self.activation(self.vocab_transform(rows)))  # type: ignore[operator, no-any-return]


HEADS: dict[str, tuple[type[PackedHead], dict[str, str]]] = {
    "ForSequenceClassification": (ScoresSequences, {"classifier": "ClassificationHead"}),
    "ForNextSentencePrediction": (ScoresSequences, {}),
    "ForMultipleChoice": (ScoresChoices, {"sequence_summary": "SequenceSummary"}),
    "ForQuestionAnswering": (FindsSpans, {}),
}
"""Heads but masked LM, by the ends of their names; with the modules that pick a sequence's first token, where the
family has such classes."""


def define(base: type[Swapped], original: type[nn.Module], **attributes: Any) -> Any:
    """Make the class that takes the place of one of transformers', under its name in this module."""
    name = original.__name__
    made: Any = type(name, (base, original), {"__module__": __name__, **attributes}, original=original)
    inner = issubclass(base, PackedLayer | PackedEmbeddings)
    globals()[name] = made if inner else by_name(made)
    return globals()[name]


def add_family(
    home: ModuleType,
    prefix: str,
    masked_lm: type[PackedMaskedLM],
    encoder: type[BertKind] = BertKind,
    embeddings: type[BertKindEmbeddings] = BertKindEmbeddings,
    layer: type[PackedLayer] = BertKindLayer,
    layer_name: str = "Layer",
    parts_of_layer: Sequence[str] = ("Attention", "SelfAttention", "SelfOutput", "Intermediate", "Output"),
    parts_of_encoder: dict[str, str] | None = None,
) -> None:
    """Define the classes of a family.

    Args:
        home: transformers' module of the family.
        prefix: of the names of its classes.
        masked_lm: its masked-LM head.
        encoder, embeddings, layer: what it does.
        layer_name: name of its layer, without the prefix where that names a class.
        parts_of_layer: names of the layer's containers, without the prefix, in the order of `layer.containers()`.
        parts_of_encoder: names of the encoder's containers without the prefix, by attribute.
    """

    def find(name: str) -> Any:
        return getattr(home, prefix + name, None) or getattr(home, name, None)

    parts = {"embeddings": "Embeddings", "encoder": "Encoder", "pooler": "Pooler"}
    parts = parts if parts_of_encoder is None else parts_of_encoder
    made = define(layer, find(layer_name), container_classes=tuple(find(name) for name in parts_of_layer))
    classes = {name: find(cls) for name, cls in parts.items() if find(cls) is not None}
    classes["embeddings"] = define(embeddings, classes["embeddings"])
    define(encoder, find("Model"), container_classes=classes, layer_class=made)
    around = {name: find(cls) for name, cls in masked_lm.around_names.items()}
    define(masked_lm, find("ForMaskedLM"), around_decoder=around)
    for name, (base, readers) in HEADS.items():
        if find(name) is not None:
            found = {attribute: find(cls) for attribute, cls in readers.items() if find(cls) is not None}
            define(base, find(name), **({"readers": found} if found else {}))


add_family(modeling_bert, "Bert", Cls)
add_family(modeling_ernie, "Ernie", Cls, ErnieKind, ErnieKindEmbeddings)
add_family(modeling_roberta, "Roberta", LmHead, RobertaKind)
add_family(modeling_xlm_roberta, "XLMRoberta", LmHead, RobertaKind)
add_family(modeling_camembert, "Camembert", LmHead, RobertaKind)
add_family(modeling_data2vec_text, "Data2VecText", LmHead, RobertaKind)
add_family(modeling_electra, "Electra", Generator, ElectraKind)
add_family(
    modeling_distilbert, "DistilBert", Vocab, DistilBertKind, DistilBertKindEmbeddings, DistilBertKindLayer,
    "TransformerBlock", ("SelfAttention", "FFN"), {"embeddings": "Embeddings", "transformer": "Transformer"},
)  # fmt: skip

define(
    PackedPreTraining, modeling_bert.BertForPreTraining, output_class=modeling_bert.BertForPreTrainingOutput,
    around_decoder={"cls": modeling_bert.BertPreTrainingHeads, "cls.predictions": modeling_bert.BertLMPredictionHead},
)  # fmt: skip
define(
    PackedPreTraining, modeling_ernie.ErnieForPreTraining, output_class=modeling_ernie.ErnieForPreTrainingOutput,
    around_decoder={
        "cls": modeling_ernie.ErniePreTrainingHeads, "cls.predictions": modeling_ernie.ErnieLMPredictionHead,
    },
)  # fmt: skip
