"""The plain padded model, in eager PyTorch: the oracle that the padding-free model is held against.

Outputs, losses and gradients are those of transformers 4.40.2, at padding positions too. Where 4.40.2 crashes or
corrupts its arguments, this model gives what was meant.
"""

import logging
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from . import heads
from .configuration import POSITION_OFFSET, ErnieMConfig
from .pretrained import ErnieMPreTrainedModel
from .validation import PaddedInputs, ValueCheck, check_encoder_only, check_padded

logger = logging.getLogger(__name__)

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


class ErnieMEmbeddings(nn.Module):
    """dropout(layer_norm(word + position)); position p reads row p + 2."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        size, pad = config.hidden_size, config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=pad)
        # 4.40.2 gives the position table the padding id of the words.
        position_pad = pad if pad is not None and pad < config.max_position_embeddings else None
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size, padding_idx=position_pad)
        self.layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs: PaddedInputs) -> Tensor:
        """(batch, seq_len) tokens to (batch, seq_len, hidden_size)."""
        words = self.word_embeddings(inputs.input_ids) if inputs.inputs_embeds is None else inputs.inputs_embeds
        positions = self.position_embeddings(inputs.position_ids + POSITION_OFFSET)
        return self.dropout(self.layer_norm(words + positions))


class ErnieMSelfAttention(nn.Module):
    """The projections and the attention proper."""

    def __init__(self, config: ErnieMConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        pruned = config.pruned_heads.get(layer_index, [])
        self.kept_heads = [head for head in range(config.num_attention_heads) if head not in pruned]
        self.num_attention_heads = len(self.kept_heads)
        self.head_dim = config.hidden_size // config.num_attention_heads
        size = self.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, size)
        self.k_proj = nn.Linear(config.hidden_size, size)
        self.v_proj = nn.Linear(config.hidden_size, size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.position_embedding_type = config.position_embedding_type
        if self.position_embedding_type != "absolute":
            self.max_position_embeddings = config.max_position_embeddings
            self.distance_embedding = nn.Embedding(2 * config.max_position_embeddings - 1, self.head_dim)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        head_mask: Tensor | None,
        real: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Dense attention.

        Args:
            query, key, value: (batch, num_heads, seq_len, head_dim).
            mask: bool that broadcasts to (batch, all heads, queries, keys), True is seen; None: all is seen. A query
                that sees nothing attends uniformly.
            head_mask: (all heads,) factors of the probabilities, or None.
            real: bool that broadcasts likewise, False at keys that even a query that sees nothing must not attend to.

        Returns:
            (batch, seq_len, num_heads * head_dim) and the probabilities (batch, num_heads, seq_len, seq_len).
        """
        scores = query @ key.transpose(-1, -2)
        if self.position_embedding_type != "absolute":
            scores = scores + self._relative_scores(query, key)
        scores = scores / math.sqrt(self.head_dim)
        if mask is not None:
            # Indexing with a list copies it to the device: only where heads are missing.
            mask = mask[:, self.kept_heads] if mask.shape[1] > len(self.kept_heads) else mask
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2)
        if real is not None:
            scores = scores.masked_fill(~real, torch.finfo(scores.dtype).min)
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

    def forward(self, hidden_states: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.attend(query, key, value, mask, head_mask)


class ErnieMAttention(nn.Module):
    self_attention_class: type[ErnieMSelfAttention] = ErnieMSelfAttention

    def __init__(self, config: ErnieMConfig, layer_index: int) -> None:
        super().__init__()
        self.self_attn = self.self_attention_class(config, layer_index)
        self.out_proj = nn.Linear(self.self_attn.q_proj.out_features, config.hidden_size)

    def forward(self, hidden_states: Tensor, *args: Any) -> tuple[Tensor, Tensor | None]:
        context, probabilities = self.self_attn(hidden_states, *args)
        return self.out_proj(context), probabilities


class ErnieMEncoderLayer(GradientCheckpointingLayer):
    attention_class: type[ErnieMAttention] = ErnieMAttention

    def __init__(self, config: ErnieMConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        act_dropout = config.hidden_dropout_prob if config.act_dropout is None else config.act_dropout
        self.self_attn = self.attention_class(config, layer_index)
        self.linear1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(act_dropout)
        self.linear2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout1 = nn.Dropout(config.hidden_dropout_prob)
        self.dropout2 = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        attention, probabilities = self.self_attn(hidden_states, mask, head_mask)
        hidden_states = self.norm1(hidden_states + self.dropout1(attention))
        inner = self.dropout(self.activation(self.linear1(hidden_states)))
        return self.norm2(hidden_states + self.dropout2(self.linear2(inner))), probabilities


class Encoded(NamedTuple):
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class ErnieMEncoder(nn.Module):
    layer_class: type[ErnieMEncoderLayer] = ErnieMEncoderLayer

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.layer_class(config, i) for i in range(config.num_hidden_layers))

    def forward(
        self,
        rows: Tensor,
        context: Any,
        head_masks: list[Tensor | None],
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> Encoded:
        """`context` is what the layers know of the batch: here the mask, in the padding-free model the packing."""
        hidden_states, attentions = [rows], []
        for layer, head_mask in zip(self.layers, head_masks, strict=True):
            rows, probabilities = layer(rows, context, head_mask)
            if output_hidden_states:
                hidden_states.append(rows)
            if output_attentions:
                attentions.append(probabilities)
        return Encoded(
            rows,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )


class ErnieMPooler(nn.Module):
    """tanh(dense(first token))."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, first: Tensor) -> Tensor:
        return self.activation(self.dense(first))


class ErnieMModel(ErnieMPreTrainedModel):
    """The encoder, padded: every position is computed, as in transformers 4.40.2.

    Args:
        config: the configuration.
        add_pooling_layer: whether there is a pooler.
    """

    embeddings_class: type[ErnieMEmbeddings] = ErnieMEmbeddings
    encoder_class: type[ErnieMEncoder] = ErnieMEncoder

    def __init__(self, config: ErnieMConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        self.encoder = self.encoder_class(config)
        self.pooler = ErnieMPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

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
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
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
            return_dict: a ModelOutput or a tuple; None: as the configuration says.
            token_type_ids: ignored with a warning.
            value_checks: further values to check along with the input.

        Raises:
            TypeError, ValueError: for an argument that can't be right.
        """
        check_encoder_only(past_key_values)
        warn_token_types(token_type_ids)
        positions = self.embeddings.position_embeddings.weight
        inputs = check_padded(
            self.config, positions, input_ids, inputs_embeds, attention_mask, position_ids, value_checks
        )
        mask = inputs.real[:, None, None, :] if inputs.dense_mask is None else inputs.dense_mask
        options = OutputOptions.of(self.config, output_hidden_states, output_attentions, return_dict)
        encoded = self.encoder(
            self.embeddings(inputs),
            mask,
            split_head_mask(head_mask, self.config),
            options.hidden_states,
            options.attentions,
        )
        rows = encoded.last_hidden_state
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=rows,
            pooler_output=None if self.pooler is None else self.pooler(rows[:, 0]),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else base_tuple(output)


class OutputOptions(NamedTuple):
    """What a forward is to return, arguments before configuration."""

    hidden_states: bool
    attentions: bool
    return_dict: bool

    @classmethod
    def of(
        cls, config: ErnieMConfig, hidden_states: bool | None, attentions: bool | None, return_dict: bool | None
    ) -> "OutputOptions":
        return cls(
            bool(config.output_hidden_states if hidden_states is None else hidden_states),
            bool(config.output_attentions if attentions is None else attentions),
            bool(config.return_dict if return_dict is None else return_dict),
        )


def base_tuple(output: BaseModelOutputWithPoolingAndCrossAttentions) -> tuple[Any, ...]:
    """4.40.2's tuple: the pooler's place is kept where there is none."""
    optional = (value for value in (output.hidden_states, output.attentions) if value is not None)
    return (output.last_hidden_state, output.pooler_output, *optional)


def split_head_mask(head_mask: Tensor | None, config: ErnieMConfig) -> list[Tensor | None]:
    """(num_heads,) or (num_layers, num_heads) to one (num_heads,) a layer."""
    layers, heads_ = config.num_hidden_layers, config.num_attention_heads
    if head_mask is None:
        return [None] * layers
    if not isinstance(head_mask, Tensor):
        raise TypeError(f"head_mask must be a tensor, got {type(head_mask).__name__}")
    if tuple(head_mask.shape) not in ((heads_,), (layers, heads_)):
        raise ValueError(
            f"head_mask must have shape {(heads_,)} (num_heads) or {(layers, heads_)} (num_layers, num_heads), "
            f"got {tuple(head_mask.shape)}"
        )
    return list(head_mask.expand(layers, heads_).unbind(0))


_warned: set[str] = set()


def warn_once(message: str) -> None:
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        logger.warning(message)


def warn_token_types(token_type_ids: Tensor | None) -> None:
    if token_type_ids is not None:
        warn_once("token_type_ids are ignored: ErnieM has no token type embedding.")


class PaddedLayout(NamedTuple):
    """How the heads see this model's rows: as the caller's batch itself, padding included."""

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

    def encode(self, **inputs: Any) -> tuple[Any, PaddedLayout]:
        outputs = self.ernie_m(return_dict=True, **inputs)
        batch, seq_len = outputs.last_hidden_state.shape[:2]
        return outputs, PaddedLayout((batch, seq_len))


class ErnieMForSequenceClassification(_OnRows, heads.SequenceClassification): ...


class ErnieMForMultipleChoice(_OnRows, heads.MultipleChoice): ...


class ErnieMForTokenClassification(_OnRows, heads.TokenClassification): ...


class ErnieMForQuestionAnswering(_OnRows, heads.QuestionAnswering): ...


class ErnieMForInformationExtraction(_OnRows, heads.InformationExtraction): ...


class ErnieMForMaskedLM(_OnRows, heads.MaskedLM): ...
