"""The padding-free model: packed once before the embedding, unpacked once after the last layer.

It has the reference's parameters under the same names and computes on `(total_tokens, hidden_size)` rows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from . import encoder, fusion, heads, modules, token_heads
from .configuration import POSITION_OFFSET
from .encoder import PackedModelOutput
from .fusion import PackedContext
from .inputs import pack_input
from .layer_parts import AttentionParts, LayerParts
from .outputs import Encoded, OutputOptions, base_tuple, called_as
from .packing import PackedBatch
from .validation import (
    Limits,
    ValueCheck,
    check_encoder_only,
    refuse_tracing,
    split_head_mask,
    warn_token_types,
)

DENSE = (
    "Attention is computed densely, padded to the longest sequence: output_attentions, head_mask, masks of 3 or 4 "
    "dimensions and relative positions are not fused."
)


class ErnieMEmbeddings(modules.ErnieMEmbeddings):
    """dropout(layer_norm(word + position)); position p reads row p + 2."""

    def forward(self, context: PackedContext) -> Tensor:
        """(total_tokens,) tokens to (total_tokens, hidden_size)."""
        rows = context.batch.position_ids + POSITION_OFFSET
        return fusion.embed(
            self.word_embeddings, self.position_embeddings, self.layer_norm, self.dropout, rows, context
        )


class ErnieMSelfAttention(modules.ErnieMSelfAttention):
    def parts(self) -> AttentionParts:
        return AttentionParts(
            self.q_proj, self.k_proj, self.v_proj, self.num_attention_heads, self.dropout, self.layer_index,
            self.kept_heads, None if self.position_embedding_type == "absolute" else self._relative_scores,
        )  # fmt: skip

    def forward(self, x: Tensor, context: PackedContext, head_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return encoder.attend(self.parts(), x, context, head_mask)

    def _relative_scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Shaw et al. (arXiv 1803.02155); with keys too, Huang et al. (arXiv 2009.13658)."""
        place = torch.arange(query.shape[2], device=query.device)
        distance = place[:, None] - place + self.max_position_embeddings - 1
        embedded = self.distance_embedding(distance).to(query.dtype)
        scores = torch.einsum("bhld,lrd->bhlr", query, embedded)
        if self.position_embedding_type == "relative_key_query":
            scores = scores + torch.einsum("bhrd,lrd->bhlr", key, embedded)
        return scores


class ErnieMAttention(modules.ErnieMAttention):
    self_attention_class = ErnieMSelfAttention

    def forward(self, x: Tensor, context: PackedContext, head_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        heads, probabilities = self.self_attn(x, context, head_mask)
        return self.out_proj(context.kept(heads)), probabilities


class ErnieMEncoderLayer(modules.ErnieMEncoderLayer):
    attention_class = ErnieMAttention

    def parts(self) -> LayerParts:
        attention: Any = self.self_attn
        out = None
        if fusion.is_plain(attention, ErnieMAttention) and fusion.is_plain(attention.self_attn, ErnieMSelfAttention):
            attention, out = attention.self_attn.parts(), attention.out_proj
        return LayerParts(
            attention, out, self.dropout1, self.norm1, self.linear1, self.activation, self.dropout, self.linear2,
            self.dropout2, self.norm2, self.layer_index,
        )  # fmt: skip

    def forward(self, x: Tensor, context: PackedContext, head_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return encoder.run_layer(self.parts(), x, context, head_mask)


class ErnieMEncoder(modules.ErnieMEncoder):
    layer_class = ErnieMEncoderLayer

    def forward(
        self,
        x: Tensor,
        context: PackedContext,
        head_masks: list[Tensor | None],
        options: OutputOptions,
        rows_to_keep: Tensor | None = None,
    ) -> Encoded:
        """Run the layers, see `encoder.run_layers`."""

        def masked(layer: Any, mask: Tensor | None) -> encoder.Layer:
            return lambda x, context: layer(x, context, mask)

        layers = [masked(layer, mask) for layer, mask in zip(self.layers, head_masks, strict=True)]
        return encoder.run_layers(layers, x, context, options, rows_to_keep)


class ErnieMPooler(modules.ErnieMPooler):
    def forward(self, first: Tensor) -> Tensor:
        """tanh(dense(first token))."""
        return self.activation(self.dense(first))


class ErnieMModel(modules.ErnieMModules):
    """The encoder, padding-free: what it gives for a sequence is what the reference gives for it alone.

    `backend` picks the implementation of the fused operations: "auto", "triton" or "torch" (see `ops`).

    Args:
        config: the configuration.
        add_pooling_layer: build the pooler.
    """

    embeddings_class = ErnieMEmbeddings
    encoder_class = ErnieMEncoder
    pooler_class = ErnieMPooler
    backend = "auto"

    @property
    def limits(self) -> Limits:
        """Bounds of the input."""
        return Limits.of(self.config)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        validate: bool = False,
        return_packed: bool = False,
        value_checks: tuple[ValueCheck, ...] = (),
        pooled_only: bool = False,
        padded_shape: tuple[int, int] | None = None,
        prefix_lens: Tensor | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encode a batch: padded, flattened (with `cu_seq_lens_q`) or a PackedBatch.

        Args:
            input_ids: (batch, seq_len) integers in [0, vocab_size); (1, total_tokens) where flattened; a PackedBatch.
            position_ids: of the same shape; None: the column, or the place in the sequence where flattened. A lone row
                without an attention_mask whose positions count from 0 several times is read as so many packed
                sequences, as transformers' DataCollatorWithFlattening makes them.
            attention_mask: 0/1 of shape (batch, seq_len), (batch, seq_len, seq_len) or (batch, 1 or num_heads,
                seq_len, seq_len); None: [PAD] is padding. The last two call for dense attention, and padding is
                then what neither attends to anything nor is attended to.
            head_mask: (num_heads,) or (num_layers, num_heads) factors of the probabilities. Calls for dense attention.
            inputs_embeds: (batch, seq_len, hidden_size) or (1, total_tokens, hidden_size), instead of `input_ids`.
            past_key_values: must be None.
            use_cache: accepted and ignored.
            output_hidden_states: return the embeddings and every layer's output.
            output_attentions: return every layer's probabilities, 0 at padding. Calls for dense attention.
            return_dict: False: a tuple, which the annotation leaves out for the sake of completion; None: as the
                configuration says.
            token_type_ids: ignored with a warning.
            cu_seq_lens_q: (num_sequences + 1,) int32 offsets of flattened sequences, as transformers'
                DataCollatorWithFlattening makes them. Every token is real; sequences may be empty.
            cu_seq_lens_k: the same, if given.
            max_length_q: tokens in the longest sequence, or more.
            max_length_k: likewise; ignored.
            validate: check values of flattened input off the CPU too, at the price of a synchronisation.
            return_packed: return a PackedModelOutput, on packed rows.
            value_checks: further values to check along with the input.
            pooled_only: compute in the last layer, behind its attention, only the rows that the pooler reads. Then
                `last_hidden_state` is None. Where hidden states are asked for, or a hook or a replaced container of the
                last layer would see it, all rows are computed all the same.
            padded_shape: shape (num_sequences, seq_len) that the flattened sequences would have if they were padded on
                the right: outputs of tokens have it, one row a sequence, and labels are read in it.
            prefix_lens: (num_sequences,) integers of flattened sequences: tokens of a sequence before its prefix length
                see only those before it, the others see all. None, 0 and the sequence's length: all see all.

        Returns:
            last_hidden_state (batch, seq_len, hidden_size), 0 at padding, or (1, total_tokens, hidden_size) for
            flattened input without `padded_shape`;
            pooler_output (num_sequences, hidden_size), from each sequence's first real token (of an empty one: from
            zeros).

        Raises:
            TypeError, ValueError: for an argument that can't be right.
        """
        refuse_tracing()
        check_encoder_only(past_key_values)
        warn_token_types(token_type_ids)
        if pooled_only and self.pooler is None:
            raise ValueError("pooled_only must be False: the model was built without a pooler")
        limits, table = self.limits, self.embeddings.position_embeddings.weight
        batch, mask = pack_input(
            limits, table, input_ids, inputs_embeds, position_ids, attention_mask, cu_seq_lens_q, cu_seq_lens_k,
            max_length_q, validate, value_checks, padded_shape=padded_shape, prefix_lens=prefix_lens,
        )  # fmt: skip
        options = OutputOptions.of(self.config, output_hidden_states, output_attentions, return_dict)
        first = batch.first_rows() if pooled_only and self._rows_may_be_left_out(batch, options) else None
        context = self._context(batch, mask, dense=options.attentions or mask is not None or head_mask is not None)
        head_masks = split_head_mask(
            head_mask, self.config.num_hidden_layers, self.config.num_attention_heads, batch.position_ids.device
        )
        rows = self.embeddings(context)
        # The layers need no tokens, and activation checkpoints need not keep them.
        context = replace(context, batch=replace(batch, input_ids=None, inputs_embeds=None, token_ids={}))
        encoded = self.encoder(rows, context, head_masks, options, first)
        # Where layers are spread over devices, the last rows are not where the batch is.
        device = batch.position_ids.device
        rows, hidden_states = encoded.last_hidden_state.to(device), encoded.hidden_states
        if hidden_states is not None:
            hidden_states = tuple(state.to(device) for state in hidden_states)
        if first is None:
            last = rows if return_packed else hidden_states[-1] if hidden_states else batch.output(rows)
            pooled = batch.first(rows)
        else:
            last, pooled = None, batch.zero_empty(rows)
        output = PackedModelOutput(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(pooled),
            hidden_states=hidden_states,
            attentions=encoded.attentions,
        )
        if return_packed:
            output.batch = batch
            return output
        result: Any = BaseModelOutputWithPoolingAndCrossAttentions(**output)
        return result if options.return_dict else base_tuple(result)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def _rows_may_be_left_out(self, batch: PackedBatch, options: OutputOptions) -> bool:
        """True if the last layer may compute some rows only, because nobody sees that the others are missing."""
        if options.hidden_states or batch.total_tokens == 0 or not fusion.is_plain(self.encoder, ErnieMEncoder):
            return False
        last = self.encoder.layers[-1]
        own = fusion.is_plain(last, ErnieMEncoderLayer) and fusion.is_plain(last.self_attn, ErnieMAttention)
        return own and fusion.may_bypass(self) and all(fusion.may_bypass(module) for module in last.modules())

    def _context(self, batch: PackedBatch, mask: Tensor | None, dense: bool) -> PackedContext:
        config = self.config
        dense = dense or config.position_embedding_type != "absolute"
        return encoder.make_context(
            batch, mask, DENSE if dense else None, num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size, dtype=self.embeddings.position_embeddings.weight.dtype,
            training=self.training, backend=self.backend,
        )  # fmt: skip


class _OnRows:
    base_model_class = ErnieMModel
    ernie_m: ErnieMModel

    def encode(self, pooled_only: bool = False, **inputs: Any) -> tuple[Any, PackedBatch]:
        outputs = self.ernie_m(return_packed=True, pooled_only=pooled_only, **inputs)
        return outputs, outputs.batch


class ErnieMForSequenceClassification(_OnRows, heads.SequenceClassification): ...


class ErnieMForMultipleChoice(_OnRows, heads.MultipleChoice): ...


class ErnieMForTokenClassification(_OnRows, token_heads.TokenClassification): ...


class ErnieMForQuestionAnswering(_OnRows, token_heads.QuestionAnswering): ...


class ErnieMForInformationExtraction(_OnRows, token_heads.InformationExtraction): ...


class ErnieMForMaskedLM(_OnRows, token_heads.MaskedLM):
    def fused_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        around = {"lm_head": token_heads.ErnieMLMHead}
        return fusion.decoder_loss(
            self, around, "lm_head.decoder", lambda rows: self.lm_head.transform(rows), self.ernie_m.backend
        )
