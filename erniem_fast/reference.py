"""The plain padded model, in eager PyTorch: the oracle that the padding-free model is held against.

Outputs, losses and gradients are those of transformers 4.40.2, at padding positions too. Where 4.40.2 crashes or
corrupts its arguments, this model gives what was meant.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from . import heads, modules, token_heads
from .configuration import POSITION_OFFSET, ErnieMConfig
from .outputs import Encoded, OutputOptions, base_tuple, called_as
from .pretrained import ErnieMPreTrainedModel
from .validation import (
    Limits,
    PaddedInputs,
    ValueCheck,
    check_encoder_only,
    check_padded,
    refuse_tracing,
    split_head_mask,
    warn_token_types,
)

__all__ = [
    "ErnieMConfig",
    "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM",
    "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering",
    "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification",
    "ErnieMModel",
    "ErnieMPreTrainedModel",
]


class ErnieMEmbeddings(modules.ErnieMEmbeddings):
    """dropout(layer_norm(word + position)); position p reads row p + 2."""

    def forward(self, inputs: PaddedInputs) -> Tensor:
        """(batch, seq_len) tokens to (batch, seq_len, hidden_size)."""
        words = self.word_embeddings(inputs.input_ids) if inputs.inputs_embeds is None else inputs.inputs_embeds
        positions = self.position_embeddings(inputs.position_ids + POSITION_OFFSET)
        return self.dropout(self.layer_norm(words + positions))


class ErnieMSelfAttention(modules.ErnieMSelfAttention):
    def forward(self, hidden_states: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend densely.

        Args:
            hidden_states: (batch, seq_len, hidden_size).
            mask: bool that broadcasts to (batch, all heads, queries, keys), True is seen; None: all is seen. A query
                that sees nothing attends uniformly.
            head_mask: (all heads,) factors of the probabilities, or None.

        Returns:
            (batch, seq_len, num_heads * head_dim) and the probabilities (batch, num_heads, seq_len, seq_len).
        """
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = query @ key.transpose(-1, -2)
        if self.position_embedding_type != "absolute":
            scores = scores + self._relative_scores(query, key)
        scores = scores / math.sqrt(self.head_dim)
        if mask is not None:
            # Indexing with a list copies it to the device: only where heads are missing.
            mask = mask[:, self.kept_heads] if mask.shape[1] > len(self.kept_heads) else mask
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2)
        probabilities = self.dropout(F.softmax(scores, -1))
        if head_mask is not None:
            kept = head_mask if len(head_mask) == len(self.kept_heads) else head_mask[self.kept_heads]
            probabilities = probabilities * kept.view(-1, 1, 1).to(probabilities.dtype)
        return (probabilities @ value).transpose(1, 2).flatten(2), probabilities

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

    def forward(self, hidden_states: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        context, probabilities = self.self_attn(hidden_states, mask, head_mask)
        return self.out_proj(context), probabilities


class ErnieMEncoderLayer(modules.ErnieMEncoderLayer):
    attention_class = ErnieMAttention

    def forward(self, hidden_states: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        attention, probabilities = self.self_attn(hidden_states, mask, head_mask)
        hidden_states = self.norm1(hidden_states + self.dropout1(attention))
        inner = self.dropout(self.activation(self.linear1(hidden_states)))
        return self.norm2(hidden_states + self.dropout2(self.linear2(inner))), probabilities


class ErnieMEncoder(modules.ErnieMEncoder):
    layer_class = ErnieMEncoderLayer

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, head_masks: list[Tensor | None], options: OutputOptions
    ) -> Encoded:
        """Run the layers on (batch, seq_len, hidden_size)."""
        states, attentions = [hidden_states], []
        for layer, head_mask in zip(self.layers, head_masks, strict=True):
            hidden_states, probabilities = layer(hidden_states, mask, head_mask)
            if options.hidden_states:
                states.append(hidden_states)
            if options.attentions:
                attentions.append(probabilities)
        return Encoded.of(hidden_states, states, attentions, options)


class ErnieMPooler(modules.ErnieMPooler):
    def forward(self, first: Tensor) -> Tensor:
        """tanh(dense(first token))."""
        return self.activation(self.dense(first))


class ErnieMModel(modules.ErnieMModules):
    """The encoder, padded: every position is computed, as in transformers 4.40.2.

    Args:
        config: the configuration.
        add_pooling_layer: build the pooler.
    """

    embeddings_class = ErnieMEmbeddings
    encoder_class = ErnieMEncoder
    pooler_class = ErnieMPooler

    def forward(
        self,
        input_ids: Tensor | None = None,
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
        value_checks: tuple[ValueCheck, ...] = (),
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encode a padded batch.

        Args:
            input_ids: (batch, seq_len) integers in [0, vocab_size).
            position_ids: (batch, seq_len) integers; None: the column. Not changed.
            attention_mask: 0/1 of shape (batch, seq_len), (batch, seq_len, seq_len) or (batch, 1 or num_heads,
                seq_len, seq_len); None: [PAD] is padding.
            head_mask: (num_heads,) or (num_layers, num_heads) factors of the attention probabilities.
            inputs_embeds: (batch, seq_len, hidden_size), instead of `input_ids`.
            past_key_values: must be None.
            use_cache: accepted and ignored.
            output_hidden_states: return the embeddings and every layer's output.
            output_attentions: return every layer's probabilities (batch, num_heads, seq_len, seq_len).
            return_dict: False: a tuple, which the annotation leaves out for the sake of completion; None: as the
                configuration says.
            token_type_ids: ignored with a warning.
            value_checks: further values to check along with the input.

        Raises:
            TypeError, ValueError: for an argument that can't be right.
        """
        refuse_tracing()
        check_encoder_only(past_key_values)
        warn_token_types(token_type_ids)
        positions = self.embeddings.position_embeddings.weight
        inputs = check_padded(
            Limits.of(self.config), positions, input_ids, inputs_embeds, attention_mask, position_ids, value_checks
        )
        mask = inputs.real[:, None, None, :] if inputs.dense_mask is None else inputs.dense_mask
        head_masks = split_head_mask(
            head_mask, self.config.num_hidden_layers, self.config.num_attention_heads, inputs.real.device
        )
        options = OutputOptions.of(self.config, output_hidden_states, output_attentions, return_dict)
        encoded = self.encoder(self.embeddings(inputs), mask, head_masks, options)
        hidden_states = encoded.last_hidden_state
        output: Any = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states[:, 0]),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else base_tuple(output)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class PaddedLayout(NamedTuple):
    """Layout of the rows that the heads compute on: the caller's batch itself, padding included."""

    token_shape: tuple[int, int]

    @property
    def num_sequences(self) -> int:
        return self.token_shape[0]

    def rows(self, values: Tensor) -> Tensor:
        return values

    def output(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        return rows

    def to_grid(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        return rows


class _OnRows:
    base_model_class = ErnieMModel
    ernie_m: ErnieMModel

    def encode(
        self,
        pooled_only: bool = False,
        cu_seq_lens_q: None = None,
        cu_seq_lens_k: None = None,
        max_length_q: None = None,
        max_length_k: None = None,
        padded_shape: None = None,
        prefix_lens: None = None,
        validate: bool = False,
        **inputs: Any,
    ) -> tuple[Any, PaddedLayout]:
        """Refuse packed input; `validate` changes nothing, since values are always checked, nor does `pooled_only`."""
        for name, value in (
            ("cu_seq_lens_q", cu_seq_lens_q), ("cu_seq_lens_k", cu_seq_lens_k), ("max_length_q", max_length_q),
            ("max_length_k", max_length_k), ("padded_shape", padded_shape), ("prefix_lens", prefix_lens),
        ):  # fmt: skip
            if value is not None:
                raise ValueError(f"{name} must be None: the reference takes padded batches only")
        outputs = self.ernie_m(return_dict=True, **inputs)
        batch, seq_len = outputs.last_hidden_state.shape[:2]
        return outputs, PaddedLayout((batch, seq_len))


class ErnieMForSequenceClassification(_OnRows, heads.SequenceClassification): ...


class ErnieMForMultipleChoice(_OnRows, heads.MultipleChoice): ...


class ErnieMForTokenClassification(_OnRows, token_heads.TokenClassification): ...


class ErnieMForQuestionAnswering(_OnRows, token_heads.QuestionAnswering): ...


class ErnieMForInformationExtraction(_OnRows, token_heads.InformationExtraction): ...


class ErnieMForMaskedLM(_OnRows, token_heads.MaskedLM): ...
