"""The padding-free model: packed once before the embedding, unpacked once after the last layer.

Its modules are the reference's, with the same parameters under the same names; only what they compute on differs:
`(total_tokens, hidden_size)` rows, through the fused operations in `ops`. A submodule that is not exactly the plain
class that it was built as, or carries hooks, is called as it is, and only what stands around it is fused.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from . import heads, ops, reference
from .configuration import POSITION_OFFSET, ErnieMConfig
from .packing import PackedBatch
from .reference import OutputOptions, base_tuple, split_head_mask, warn_once, warn_token_types
from .validation import ValueCheck, check_encoder_only, check_one_source, check_padded

SITES_PER_LAYER = 4
"""Dropouts of a layer; the embedding's is site 0."""


@dataclass(frozen=True, eq=False)
class PackedContext:
    """What the layers know of the batch.

    Attributes:
        batch: the packing.
        seed: (1,) int64 for this forward's dropouts; None outside training.
        mask: bool mask for the dense attention, which it calls for if `dense` is set.
        dense: the attention must be computed densely: probabilities are asked for, or a mask of 3 or 4 dimensions.
        tiles: what the attention of all layers works out of the batch; None where it needs nothing.
        backend: of the operations.
    """

    batch: PackedBatch
    seed: Tensor | None
    mask: Tensor | None
    dense: bool
    tiles: Tensor | None
    backend: str

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedContext":
        """Where accelerate spreads the layers over devices, this is how it moves their arguments."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            batch=self.batch.to(device, non_blocking),
            seed=move(self.seed),
            mask=move(self.mask),
            tiles=move(self.tiles),
        )


GELU = type(ACT2FN["gelu"])
ROWS_PER_PIECE = 1024
"""Rows that a CPU takes through the feed-forward block at once: its wide activations should stay near the cache."""

M = TypeVar("M", bound=nn.Module)


def is_plain(module: nn.Module, cls: type[M]) -> TypeGuard[M]:
    """Whether reading a module's parameters does what calling it would do."""
    return (
        type(module) is cls
        and "forward" not in vars(module)  # accelerate's offloading replaces it
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
        and not (torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks)
        # Quantised and sharded weights are subclasses of Tensor; a bias, or a norm's weight, may be None.
        and all(type(p) in (nn.Parameter, Tensor) for p in vars(module)["_parameters"].values())
    )


def fusible_dropout(module: nn.Module, context: PackedContext) -> float | None:
    """Probability of a dropout that an operation can take over; None: the module must be called."""
    if not is_plain(module, nn.Dropout):
        return None
    if not module.training or module.p == 0:
        return 0.0
    # Without a seed the model is in eval mode and somebody has left this dropout on.
    return None if context.seed is None or module.p >= 1 else float(module.p)


class ErnieMEmbeddings(reference.ErnieMEmbeddings):
    def forward(self, context: PackedContext) -> Tensor:
        """(total_tokens,) tokens to (total_tokens, hidden_size)."""
        batch = context.batch
        input_ids, words = batch.input_ids, batch.inputs_embeds
        position_ids = batch.position_ids + POSITION_OFFSET
        if words is None and not _plain_embedding(self.word_embeddings):
            input_ids, words = None, self.word_embeddings(input_ids)
        if not _plain_embedding(self.position_embeddings) or not is_plain(self.layer_norm, nn.LayerNorm):
            words = self.word_embeddings(input_ids) if words is None else words
            return self.dropout(self.layer_norm(words + self.position_embeddings(position_ids)))
        p = fusible_dropout(self.dropout, context)
        rows = ops.embedding_layer_norm(
            input_ids,
            position_ids,
            self.word_embeddings.weight,
            self.position_embeddings.weight,
            self.layer_norm.weight,
            self.layer_norm.bias,
            self.layer_norm.eps,
            inputs_embeds=words,
            padding_idx=self.word_embeddings.padding_idx,
            position_padding_idx=self.position_embeddings.padding_idx,
            dropout_p=p or 0.0,
            seed=context.seed,
            site=0,
            backend=context.backend,
        )
        return self.dropout(rows) if p is None else rows


def _plain_embedding(module: nn.Module) -> bool:
    plain = is_plain(module, nn.Embedding)
    return plain and module.max_norm is None and not (module.scale_grad_by_freq or module.sparse)


class ErnieMSelfAttention(reference.ErnieMSelfAttention):
    def forward(self, rows: Tensor, context: PackedContext, head_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        qkv = self._project(rows).unflatten(-1, (3, self.num_attention_heads, self.head_dim))
        p = fusible_dropout(self.dropout, context)
        if context.dense or head_mask is not None or self.position_embedding_type != "absolute" or p is None:
            if p is None:
                warn_once("Attention is computed densely: its dropout was replaced, hooked or left on.")
            return self._attend_densely(qkv, context.batch, context.mask, head_mask)
        attention = ops.varlen_attention(
            qkv,
            context.batch.cu_seqlens,
            context.batch.max_seqlen,
            prefix_lens=context.batch.prefix_lens,
            dropout_p=p,
            seed=context.seed,
            site=1 + SITES_PER_LAYER * self.layer_index,
            tiles=context.tiles,
            backend=context.backend,
        )
        return attention.flatten(1), None

    def _attend_densely(
        self, qkv: Tensor, batch: PackedBatch, mask: Tensor | None, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        query, key, value = batch.to_grid(qkv).permute(2, 0, 3, 1, 4).unbind(0)
        real = batch.to_grid(torch.ones_like(batch.position_ids, dtype=torch.bool), False)
        if batch.prefix_lens is not None:
            place = torch.arange(real.shape[1], device=real.device)
            prefix = batch.prefix_lens.view(-1, 1, 1, 1)
            mask = (place[:, None] >= prefix) | (place < prefix)
        attention, probabilities = self.attend(query, key, value, mask, head_mask, real[:, None, None, :])
        return batch.from_grid(attention), probabilities * real[:, None, :, None]

    def _project(self, rows: Tensor) -> Tensor:
        """(total_tokens, hidden_size) to (total_tokens, 3 * num_heads * head_dim), in one product."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if not all(is_plain(projection, nn.Linear) for projection in projections):
            return torch.cat([projection(rows) for projection in projections], -1)
        # Concatenated every time: a write through `.data` (averaging, merged adapters) leaves no trace that would say
        # when a kept copy is stale.
        weight = torch.cat([projection.weight for projection in projections])
        return F.linear(rows, weight, torch.cat([projection.bias for projection in projections]))


class ErnieMAttention(reference.ErnieMAttention):
    self_attention_class = ErnieMSelfAttention


class ErnieMEncoderLayer(reference.ErnieMEncoderLayer):
    attention_class = ErnieMAttention

    def forward(self, rows: Tensor, context: PackedContext, head_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        site = 1 + SITES_PER_LAYER * self.layer_index
        attention, probabilities = self.self_attn(rows, context, head_mask)
        rows = _add_norm(attention, None, rows, self.dropout1, self.norm1, context, site + 1)
        product, bias = self._feed_forward(rows, context, site + 2)
        return _add_norm(product, bias, rows, self.dropout2, self.norm2, context, site + 3), probabilities

    def _feed_forward(self, rows: Tensor, context: PackedContext, site: int) -> tuple[Tensor, Tensor | None]:
        """linear2(dropout(activation(linear1(rows)))): the product, and the bias that is still to be added."""
        p = fusible_dropout(self.dropout, context)
        plain = (
            is_plain(self.linear1, nn.Linear) and is_plain(self.linear2, nn.Linear) and is_plain(self.activation, GELU)
        )
        if plain and p is not None and ops.fuses_bias(context.backend, rows):
            product = ops.mlp(
                rows,
                self.linear1.weight,
                self.linear1.bias,
                self.linear2.weight,
                dropout_p=p,
                seed=context.seed,
                site=site,
                backend=context.backend,
            )
            return product, self.linear2.bias
        in_pieces = rows.device.type == "cpu" and not (
            torch.is_grad_enabled() or torch.compiler.is_compiling() or self.training
        )
        if not (plain and p is not None and in_pieces):
            return _linear(self.linear2, self._activate(rows, context, site), context)
        products = []
        for piece in rows.split(ROWS_PER_PIECE):
            product, bias = _linear(self.linear2, self._activate(piece, context, site), context)
            products.append(product)
        return (products[0] if len(products) == 1 else torch.cat(products)), bias

    def _activate(self, rows: Tensor, context: PackedContext, site: int) -> Tensor:
        """dropout(activation(linear1(rows)))."""
        if not is_plain(self.activation, GELU):
            warn_once("The activation is not fused: it is not gelu, or it carries hooks.")
            return self.dropout(self.activation(self.linear1(rows)))
        p = fusible_dropout(self.dropout, context)
        product, bias = _linear(self.linear1, rows, context)
        inner = ops.bias_gelu_dropout(
            product, bias, dropout_p=p or 0.0, seed=context.seed, site=site, backend=context.backend
        )
        return self.dropout(inner) if p is None else inner


def _linear(linear: nn.Module, rows: Tensor, context: PackedContext) -> tuple[Tensor, Tensor | None]:
    """The product and the bias that is still to be added, if the backend wants it for the operation that follows."""
    if not ops.fuses_bias(context.backend, rows) or not is_plain(linear, nn.Linear):
        return linear(rows), None
    return F.linear(rows, linear.weight), linear.bias


def _add_norm(
    product: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout: nn.Module,
    norm: nn.Module,
    context: PackedContext,
    site: int,
) -> Tensor:
    """norm(residual + dropout(product + bias))."""
    p = fusible_dropout(dropout, context)
    if p is None or not is_plain(norm, nn.LayerNorm):
        return norm(residual + dropout(product if bias is None else product + bias))
    return ops.dropout_add_layer_norm(
        product,
        residual,
        norm.weight,
        norm.bias,
        norm.eps,
        linear_bias=bias,
        dropout_p=p,
        seed=context.seed,
        site=site,
        backend=context.backend,
    )


class ErnieMEncoder(reference.ErnieMEncoder):
    layer_class = ErnieMEncoderLayer


@dataclass
class PackedModelOutput(BaseModelOutputWithPoolingAndCrossAttentions):
    """The encoder's output on packed rows.

    Attributes:
        last_hidden_state: (total_tokens, hidden_size).
        pooler_output: (num_sequences, hidden_size).
        hidden_states: in the shape of the caller's batch.
        attentions: (num_sequences, num_heads, seq_len, seq_len) a layer.
        batch: the packing.
    """

    batch: PackedBatch | None = None


class ErnieMModel(reference.ErnieMModel):
    """The encoder, padding-free: what it gives for a sequence is what the reference gives for it alone.

    `backend` picks the implementation of the fused operations (see `ops`).

    Args:
        config: the configuration.
        add_pooling_layer: whether there is a pooler.
    """

    embeddings_class = ErnieMEmbeddings
    encoder_class = ErnieMEncoder
    backend = "auto"

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
    ) -> Any:
        """Encode a batch: padded, flattened (with `cu_seq_lens_q`) or a PackedBatch.

        Args:
            input_ids: (batch, seq_len) integers in [0, vocab_size); (1, total_tokens) where flattened; a PackedBatch.
            position_ids: of the same shape; None: the column, or the place in the sequence where flattened.
            attention_mask: 0/1 of shape (batch, seq_len), (batch, seq_len, seq_len) or (batch, 1 or num_heads,
                seq_len, seq_len); None: [PAD] is padding. The last two call for dense attention, and padding is
                then what neither attends to anything nor is attended to.
            head_mask: (num_heads,) or (num_layers, num_heads) factors of the probabilities. Calls for dense attention.
            inputs_embeds: (batch, seq_len, hidden_size) or (1, total_tokens, hidden_size), instead of `input_ids`.
            past_key_values: must be None.
            use_cache: accepted and ignored.
            output_hidden_states: return the embeddings and every layer's output.
            output_attentions: return every layer's probabilities, 0 at padding. Calls for dense attention.
            return_dict: a ModelOutput or a tuple; None: as the configuration says.
            token_type_ids: ignored with a warning.
            cu_seq_lens_q: (num_sequences + 1,) int32 offsets of flattened sequences, as transformers'
                DataCollatorWithFlattening makes them. Every token is real; sequences may be empty.
            cu_seq_lens_k: the same, if given.
            max_length_q: tokens in the longest sequence, or more.
            max_length_k: likewise; ignored.
            validate: check values of flattened input off the CPU too, at the price of a synchronisation.
            return_packed: return a PackedModelOutput, on packed rows.
            value_checks: further values to check along with the input.

        Returns:
            last_hidden_state (batch, seq_len, hidden_size), 0 at padding, or (1, total_tokens, hidden_size);
            pooler_output (num_sequences, hidden_size), from each sequence's first real token (of an empty one: from
            zeros).

        Raises:
            TypeError, ValueError: for an argument that can't be right.
        """
        check_encoder_only(past_key_values)
        warn_token_types(token_type_ids)
        table = self.embeddings.position_embeddings.weight
        mask = None
        if cu_seq_lens_q is None and not isinstance(input_ids, PackedBatch):
            for name, value in (("cu_seq_lens_k", cu_seq_lens_k), ("max_length_q", max_length_q)):
                if value is not None:
                    raise ValueError(f"{name} must be None without cu_seq_lens_q, which makes the input a packed one")
            inputs = check_padded(
                self.config, table, input_ids, inputs_embeds, attention_mask, position_ids, value_checks
            )
            batch, mask = PackedBatch.from_padded(inputs), inputs.dense_mask
        else:
            batch = _packed_input(
                self.config, input_ids, inputs_embeds, position_ids, attention_mask, cu_seq_lens_q, cu_seq_lens_k,
                max_length_q,
            )  # fmt: skip
            batch = batch.checked(self.config, table, validate, value_checks)
        options = OutputOptions.of(self.config, output_hidden_states, output_attentions, return_dict)
        dense = options.attentions or mask is not None
        if dense or head_mask is not None or self.config.position_embedding_type != "absolute":
            warn_once(
                "Attention is computed densely, padded to the longest sequence: output_attentions, head_mask, masks of "
                "3 or 4 dimensions and relative positions are not fused."
            )
        seed = ops.draw_seed(batch.position_ids.device) if self.training else None
        tiles = None
        if not dense:
            tiles = ops.attention_tiles(batch.cu_seqlens, batch.max_seqlen, batch.total_tokens, backend=self.backend)
        context = PackedContext(batch, seed, mask, dense, tiles, self.backend)
        encoded = self.encoder(
            self.embeddings(context),
            # The layers need no tokens, and activation checkpoints need not keep them.
            replace(context, batch=replace(batch, input_ids=None, inputs_embeds=None)),
            split_head_mask(head_mask, self.config),
            options.hidden_states,
            options.attentions,
        )
        # Where layers are spread over devices, the last rows are not where the batch is.
        device = batch.position_ids.device
        rows = encoded.last_hidden_state.to(device)
        hidden_states = encoded.hidden_states
        output = PackedModelOutput(
            last_hidden_state=rows if return_packed else batch.output(rows),
            pooler_output=None if self.pooler is None else self.pooler(batch.first(rows)),
            hidden_states=None
            if hidden_states is None
            else tuple(batch.output(state.to(device)) for state in hidden_states),
            attentions=encoded.attentions,
        )
        if return_packed:
            output.batch = batch
            return output
        return BaseModelOutputWithPoolingAndCrossAttentions(**output) if options.return_dict else base_tuple(output)


def _packed_input(
    config: ErnieMConfig,
    input_ids: Tensor | PackedBatch | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_k: Tensor | None,
    max_length_q: int | None,
) -> PackedBatch:
    if attention_mask is not None:
        raise ValueError("attention_mask must be None with packed input: every packed token is real")
    if isinstance(input_ids, PackedBatch):
        for name, value in (
            ("inputs_embeds", inputs_embeds), ("position_ids", position_ids), ("cu_seq_lens_q", cu_seq_lens_q),
            ("cu_seq_lens_k", cu_seq_lens_k), ("max_length_q", max_length_q),
        ):  # fmt: skip
            if value is not None:
                raise ValueError(f"{name} must be None where input_ids is a PackedBatch, which holds it")
        return input_ids
    assert cu_seq_lens_q is not None
    check_one_source(input_ids, inputs_embeds)
    if cu_seq_lens_k is not None and cu_seq_lens_k is not cu_seq_lens_q:
        on_cpu = cu_seq_lens_k.device.type == "cpu" and not torch.compiler.is_compiling()
        same = cu_seq_lens_k.shape == cu_seq_lens_q.shape
        if not same or (on_cpu and not bool((cu_seq_lens_k == cu_seq_lens_q).all())):
            raise ValueError("cu_seq_lens_k must equal cu_seq_lens_q: ErnieM attends to its own tokens")
    return PackedBatch.from_flattened(input_ids, inputs_embeds, position_ids, cu_seq_lens_q, max_length_q, config)


class _OnRows:
    base_model_class = ErnieMModel
    ernie_m: ErnieMModel

    def encode(self, **inputs: Any) -> tuple[Any, PackedBatch]:
        outputs = self.ernie_m(return_packed=True, **inputs)
        return outputs, outputs.batch


class ErnieMForSequenceClassification(_OnRows, heads.SequenceClassification): ...


class ErnieMForMultipleChoice(_OnRows, heads.MultipleChoice): ...


class ErnieMForTokenClassification(_OnRows, heads.TokenClassification): ...


class ErnieMForQuestionAnswering(_OnRows, heads.QuestionAnswering): ...


class ErnieMForInformationExtraction(_OnRows, heads.InformationExtraction): ...


class ErnieMForMaskedLM(_OnRows, heads.MaskedLM): ...
