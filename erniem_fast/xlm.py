"""XLM (Conneau and Lample, arXiv 1901.07291) on packed rows: classes by transformers' names.

transformers' XLM has neither sdpa nor gradient checkpointing, and fills a cache of keys and values that nobody reads.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.xlm import modeling_xlm

from . import encoder, fusion
from .fusion import PackedContext
from .layer_parts import AttentionParts, LayerParts
from .losses import NumItems, average, labelled_rows
from .packed import PACKED_ARGUMENTS, Containers, PackedEncoder, by_name, is_packed
from .packed_heads import (
    FindsSpans,
    PackedHead,
    PackedMaskedLM,
    ScoresChoices,
    ScoresSequences,
)
from .packing import PackedBatch
from .validation import Limits, check_integers, check_shape

RELU = nn.ReLU()


class Orders(NamedTuple):
    """Arguments for the encoder that travel as `cache`: XLM's heads hand that on, and no further keyword.

    Attributes:
        arguments: by name.
        cache: that was given.
    """

    arguments: dict[str, Any]
    cache: Any


@by_name
class XLMModel(PackedEncoder, modeling_xlm.XLMModel, original=modeling_xlm.XLMModel):  # type: ignore[misc]
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    token_id_names = ("langs", "token_type_ids")

    @property
    def limits(self) -> Limits:
        config = self.config
        langs = {"langs": config.n_langs} if self._has_langs else {}
        return Limits(
            config.n_words, config.emb_dim, config.n_heads, config.max_position_embeddings,
            "max_position_embeddings", default_mask=self._leading_columns,
            token_ids={"token_type_ids": config.n_words, **langs},
        )  # fmt: skip

    @property
    def _has_langs(self) -> bool:
        return self.n_langs > 1 and self.use_lang_emb  # type: ignore[operator, return-value]

    def _leading_columns(self, input_ids: Tensor) -> Tensor:
        """As many columns as a row has ids that are not the pad id, wherever those stand."""
        real = torch.ne(input_ids, self.pad_index)  # type: ignore[arg-type]
        return _columns_before(real.sum(1), input_ids.shape[1])

    @property
    def layer_stack(self) -> Sequence[nn.Module]:
        """What each layer is made of, as a list."""
        parts: Any = (self.attentions, self.layer_norm1, self.ffns, self.layer_norm2)
        return [nn.ModuleList(part[index] for part in parts) for index in range(self.n_layers)]  # type: ignore[arg-type]

    @property
    def position_table(self) -> nn.Embedding:
        return self.position_embeddings  # type: ignore[return-value]

    @property
    def num_heads(self) -> int:
        return self.config.n_heads  # type: ignore[no-any-return]

    def containers(self) -> Containers:
        attentions: Any = enumerate(self.attentions)  # type: ignore[arg-type]
        ffns: Any = enumerate(self.ffns)  # type: ignore[arg-type]
        return Containers(
            [(f"attentions.{index}", module, modeling_xlm.MultiHeadAttention) for index, module in attentions]
            + [(f"ffns.{index}", module, modeling_xlm.TransformerFFN) for index, module in ffns]
        )

    def reason_for_grid(self, layer: nn.Module) -> str | None:
        return None  # containers are the whole encoder's

    def parts(self, index: int) -> LayerParts:
        of: Any = self
        heads, inner = of.attentions[index], of.ffns[index]
        attention = AttentionParts(
            heads.q_lin, heads.k_lin, heads.v_lin, heads.n_heads, _probability(heads), index, causal=of.causal
        )
        activation = RELU if inner.act is F.relu else inner.act
        return LayerParts(
            attention, heads.out_lin, _probability(of), of.layer_norm1[index], inner.lin1, activation, None, inner.lin2,
            _probability(inner), of.layer_norm2[index], index,
        )  # fmt: skip

    @property
    def may_drop(self) -> bool:
        parts: Any = (self, *self.attentions, *self.ffns)  # type: ignore[misc]
        return any(part.training for part in parts)

    def steps(self) -> list[encoder.Layer]:
        return [self._step_of(index) for index in range(self.n_layers)]  # type: ignore[arg-type]

    def _step_of(self, index: int) -> encoder.Layer:
        def run(x: Tensor, context: PackedContext) -> Tensor:
            return encoder.run_layer(self.parts(index), x, context)[0]

        if self.gradient_checkpointing and self.training:
            return lambda x, context: (self._gradient_checkpointing_func(run, x, context), None)  # type: ignore[operator]
        return lambda x, context: (run(x, context), None)

    def embed(self, context: PackedContext) -> Tensor:
        of: Any = self
        ids = context.batch.token_ids
        tables = {"langs": getattr(self, "lang_embeddings", None), "token_type_ids": of.embeddings}
        further = [(table, ids[name]) for name, table in tables.items() if name in ids]
        return fusion.embed(
            of.embeddings, self.position_table, of.layer_norm_emb, _probability(of), context.batch.position_ids,
            context, further,
        )  # fmt: skip

    def result(self, found: dict[str, Any]) -> Any:
        return BaseModelOutput(**found)

    def reason_not_packed(self, given: dict[str, Any]) -> str | None:
        reason = super().reason_not_packed(given)
        if reason is None and self.causal and not _is_prefix(given.get("attention_mask")):
            return "causal attention sees padding that attention_mask puts before real tokens"
        return reason

    def forward_on_rows(self, cache: Any = None, **given: Any) -> Any:
        if isinstance(cache, Orders):
            given, cache = given | cache.arguments, cache.cache
        if given.get("lengths") is not None and given.get("attention_mask") is None:
            given["attention_mask"] = self._mask_of(given.pop("lengths"), given)
        return super().forward_on_rows(cache=cache, **given)

    @staticmethod
    def _mask_of(lengths: Tensor, given: dict[str, Any]) -> Tensor:
        """(batch, seq_len) bool of the tokens before each row's length."""
        if is_packed(given):
            raise ValueError("lengths must be None with packed input, which holds them")
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        batch, seq_len = (embeds if ids is None else ids).shape[:2]  # type: ignore[union-attr]
        check_integers("lengths", lengths)
        check_shape("lengths", lengths, (batch,), "batch")
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and int(lengths.max()) > seq_len:
            raise ValueError(f"lengths must be at most {seq_len} (columns of the batch), got {int(lengths.max())}")
        return _columns_before(lengths, seq_len)


def _probability(module: Any) -> float | None:
    """Dropout of a module that has it as a number, which holds where the module itself is in training mode."""
    return module.dropout if module.training else None


def _columns_before(lengths: Tensor, seq_len: int) -> Tensor:
    return torch.arange(seq_len, device=lengths.device) < lengths[:, None]


def _is_prefix(mask: object) -> bool:
    """True if a row's real tokens all stand before its padding."""
    return not isinstance(mask, Tensor) or not bool((mask[:, 1:] > mask[:, :-1]).any())


class XLMHead(PackedHead):
    """A head of XLM."""

    supports_gradient_checkpointing = True

    def forward_on_rows(self, **given: Any) -> Any:
        packed = {name: given.pop(name) for name in PACKED_ARGUMENTS if given.get(name) is not None}
        orders = packed | self.all_orders(packed | given)
        if orders and isinstance(self.base_model, PackedEncoder):
            given["cache"] = Orders(orders, given.get("cache"))
        return self.original.forward(self, **given)


@by_name
class XLMForSequenceClassification(  # type: ignore[misc]
    XLMHead,
    ScoresSequences,
    modeling_xlm.XLMForSequenceClassification,
    original=modeling_xlm.XLMForSequenceClassification,
):
    readers = {"sequence_summary": modeling_xlm.XLMSequenceSummary}


@by_name
class XLMForMultipleChoice(  # type: ignore[misc]
    XLMHead, ScoresChoices, modeling_xlm.XLMForMultipleChoice, original=modeling_xlm.XLMForMultipleChoice
):
    readers = {"sequence_summary": modeling_xlm.XLMSequenceSummary}


@by_name
class XLMForTokenClassification(  # type: ignore[misc]
    XLMHead, modeling_xlm.XLMForTokenClassification, original=modeling_xlm.XLMForTokenClassification
): ...


@by_name
class XLMForQuestionAnsweringSimple(  # type: ignore[misc]
    FindsSpans,
    XLMHead,
    modeling_xlm.XLMForQuestionAnsweringSimple,
    original=modeling_xlm.XLMForQuestionAnsweringSimple,
): ...


@by_name
class XLMForQuestionAnswering(  # type: ignore[misc]
    XLMHead, modeling_xlm.XLMForQuestionAnswering, original=modeling_xlm.XLMForQuestionAnswering
):
    def reason_to_refuse_packed(self, given: dict[str, Any]) -> str | None:
        if given.get("padded_shape") is None:
            return "its beam search is over a row, which without padded_shape would hold all sequences"
        return None


@by_name
class XLMWithLMHeadModel(  # type: ignore[misc]
    PackedMaskedLM, modeling_xlm.XLMWithLMHeadModel, original=modeling_xlm.XLMWithLMHeadModel
):
    supports_gradient_checkpointing = True
    decoder_name = "pred_layer.proj"
    around_decoder: ClassVar = {"pred_layer": modeling_xlm.XLMPredLayer}

    def score(self, rows: Tensor) -> Tensor:
        return self.pred_layer(rows)[0]  # type: ignore[operator, no-any-return]

    def transform(self, rows: Tensor) -> Tensor:
        return rows

    def loss_and_logits(
        self, rows: Tensor, labels: Tensor | None, batch: PackedBatch, num_items: NumItems
    ) -> tuple[Any, Any]:
        layer: Any = self.pred_layer
        if labels is None or not layer.asm:
            return super().loss_and_logits(rows, labels, batch, num_items)
        # Adaptive softmax (Grave et al., arXiv 1609.04309) knows no ignored label.
        labelled, targets = labelled_rows(rows, labels, batch)
        loss = average(-layer.proj(labelled, targets.long()).output, None, num_items)
        return loss, None if self.loss_only else self.score(rows)

    def forward_on_rows(self, logits_to_keep: Any = 0, **given: Any) -> Any:
        if isinstance(logits_to_keep, int) and logits_to_keep == 0:
            return super().forward_on_rows(**given)
        return self.original.forward(self, logits_to_keep=logits_to_keep, **given)
