"""Task heads that score each token; see `heads` for what all heads share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput, QuestionAnsweringModelOutput, TokenClassifierOutput

from .configuration import ErnieMConfig
from .heads import HeadBase, classifier_dropout
from .losses import Layout, NumItems, boundary_checks, boundary_loss, class_checks, masked_lm, span_loss, token_loss
from .outputs import called_as
from .packing import PackedBatch
from .validation import check_integers


class TokenClassification(HeadBase):
    """A linear layer on each token."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ernie_m = self.base_model_class(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        validate: bool = False,
        padded_shape: tuple[int, int] | None = None,
        num_items_in_batch: NumItems = None,
    ) -> TokenClassifierOutput:
        """Classify tokens; arguments not listed are those of `ErnieMModel`.

        Args:
            labels: integers of the input's shape, in [0, num_labels) or -100.
            num_items_in_batch: as in `ErnieMForSequenceClassification`.

        Returns:
            TokenClassifierOutput; logits of the input's shape plus (num_labels,), 0 at padding if padding-free.
        """
        outputs, layout = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, head_mask=head_mask,
            inputs_embeds=inputs_embeds, past_key_values=past_key_values, output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            value_checks=class_checks("labels", labels, self.num_labels, "num_labels"),
            token_type_ids=token_type_ids, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q, max_length_k=max_length_k, validate=validate, padded_shape=padded_shape,
        )  # fmt: skip
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else token_loss(logits, labels, layout, num_items_in_batch)
        return self._output(TokenClassifierOutput, outputs, return_dict, loss=loss, logits=layout.output(logits))

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class _SpanHead(HeadBase):
    """A score of starts and one of ends, for each token."""

    def _span_output(
        self,
        outputs: Any,
        return_dict: bool | None,
        layout: Layout,
        start: Tensor,
        end: Tensor,
        loss_of: Callable[[str, Tensor, Tensor, Layout, NumItems], Tensor],
        start_positions: Tensor | None,
        end_positions: Tensor | None,
        num_items: NumItems,
    ) -> QuestionAnsweringModelOutput:
        """Scores of starts and ends with the mean of their losses, if both labels are given."""
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = loss_of("start_positions", start, start_positions, layout, num_items)
            end_loss = loss_of("end_positions", end, end_positions, layout, num_items)
            loss = (start_loss + end_loss) / 2
        lowest = torch.finfo(start.dtype).min
        return self._output(
            QuestionAnsweringModelOutput, outputs, return_dict,
            loss=loss, start_logits=layout.output(start, lowest), end_logits=layout.output(end, lowest),
        )  # fmt: skip


class QuestionAnswering(_SpanHead):
    """Start and end scores of an answer, for each token."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ernie_m = self.base_model_class(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        validate: bool = False,
        padded_shape: tuple[int, int] | None = None,
        num_items_in_batch: NumItems = None,
    ) -> QuestionAnsweringModelOutput:
        """Score answer spans; arguments not listed are those of `ErnieMModel`. `num_labels` must be 2.

        Args:
            start_positions: (num_sequences,) integers, columns of the padded batch or positions in the packed sequence.
                Those outside the row are ignored, and those at padding if padding-free.
            end_positions: likewise.
            num_items_in_batch: as in `ErnieMForSequenceClassification`; counts the answers.

        Returns:
            QuestionAnsweringModelOutput; start_logits and end_logits of the input's shape, at padding the dtype's
            minimum if padding-free.
        """
        if self.num_labels != 2:
            raise ValueError(f"num_labels must be 2 (start and end) to answer questions, got {self.num_labels}")
        for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
            if positions is not None:
                check_integers(name, positions)
        outputs, layout = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, head_mask=head_mask,
            inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            token_type_ids=token_type_ids, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q, max_length_k=max_length_k, validate=validate, padded_shape=padded_shape,
        )  # fmt: skip
        logits = self.qa_outputs(outputs.last_hidden_state)
        start, end = logits[..., 0].contiguous(), logits[..., 1].contiguous()
        return self._span_output(
            outputs, return_dict, layout, start, end, span_loss, start_positions, end_positions, num_items_in_batch
        )

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class InformationExtraction(_SpanHead):
    """UIE: the probability that a span starts, and that it ends, at each token."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.ernie_m = self.base_model_class(config)
        # 4.40.2 saves a pooler that no score reads, and plain DDP waits for every gradient.
        self.ernie_m.pooler.requires_grad_(False)
        self.linear_start = nn.Linear(config.hidden_size, 1)
        self.linear_end = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        validate: bool = False,
        padded_shape: tuple[int, int] | None = None,
        num_items_in_batch: NumItems = None,
    ) -> QuestionAnsweringModelOutput:
        """Score span boundaries; arguments not listed are those of `ErnieMModel`.

        Args:
            start_positions: floats, integers or bools of the input's shape: 1 where a span starts, 0 elsewhere, values
                between as soft labels; -100 is ignored.
            end_positions: likewise for ends.
            num_items_in_batch: as in `ErnieMForSequenceClassification`; counts the sequences that have labels.

        Returns:
            QuestionAnsweringModelOutput; start_logits and end_logits of the input's shape, whose sigmoids are
            probabilities; at padding the dtype's minimum if padding-free.
        """
        outputs, layout = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, head_mask=head_mask,
            inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            value_checks=boundary_checks(start_positions=start_positions, end_positions=end_positions),
            token_type_ids=token_type_ids, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q, max_length_k=max_length_k, validate=validate, padded_shape=padded_shape,
        )  # fmt: skip
        start = self.linear_start(outputs.last_hidden_state).squeeze(-1)
        end = self.linear_end(outputs.last_hidden_state).squeeze(-1)
        return self._span_output(
            outputs, return_dict, layout, start, end, boundary_loss, start_positions, end_positions, num_items_in_batch
        )

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class ErnieMLMHead(nn.Module):
    """XLM-R's head, in XLM-R's names: decoder(layer_norm(gelu(dense(x)))), the decoder tied to the word embeddings."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        # Tied to the decoder's bias. Untied it is saved but not read, and plain DDP waits for every gradient.
        self.bias = nn.Parameter(torch.zeros(config.vocab_size), requires_grad=config.tie_word_embeddings)

    def forward(self, rows: Tensor) -> Tensor:
        return self.decoder(self.transform(rows))

    def transform(self, rows: Tensor) -> Tensor:
        """(num_rows, hidden_size) to what the decoder projects."""
        return self.layer_norm(F.gelu(self.dense(rows)))  # type: ignore[no-any-return]


class MaskedLM(HeadBase):
    """Masked language modelling with XLM-R's head: ErnieM was initialised from XLM-R, and no release has its own.

    Attributes:
        loss_only: with labels, project the labelled tokens only and give no logits. Padding-free, and with a plain
            decoder, the loss is float32 and its logits are never whole (`ops.linear_cross_entropy`). Off the CPU this
            waits for the device once more, to count the tokens.
    """

    loss_only = False
    _tied_weights_keys = {
        "lm_head.decoder.weight": "ernie_m.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.ernie_m = self.base_model_class(config, add_pooling_layer=False)
        self.lm_head = ErnieMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head.decoder

    def fused_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The head and the sum of its losses as one function, see `losses.masked_lm`; None: the head is called."""
        return None

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        bias = new_embeddings.bias
        if bias is None:
            raise ValueError("new_embeddings must have a bias, as XLM-R's head has, got None")
        self.lm_head.decoder = new_embeddings
        tied = self.config.tie_word_embeddings
        self.lm_head.bias = bias if tied else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        validate: bool = False,
        padded_shape: tuple[int, int] | None = None,
        num_items_in_batch: NumItems = None,
        prefix_lens: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Predict tokens; arguments not listed are those of `ErnieMModel`.

        Args:
            labels: integers of the input's shape, in [0, vocab_size) or -100.
            num_items_in_batch: as in `ErnieMForSequenceClassification`.

        Returns:
            MaskedLMOutput; logits of the input's shape plus (vocab_size,), 0 at padding if padding-free; None with
            `loss_only` and labels.
        """
        outputs, layout = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, head_mask=head_mask,
            inputs_embeds=inputs_embeds, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            value_checks=class_checks("labels", labels, self.config.vocab_size, "vocab_size"),
            token_type_ids=token_type_ids, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q, max_length_k=max_length_k, validate=validate, padded_shape=padded_shape,
            prefix_lens=prefix_lens,
        )  # fmt: skip
        fused_loss = self.fused_loss() if self.loss_only else None
        loss, logits = masked_lm(
            self.lm_head, outputs.last_hidden_state, labels, layout, self.loss_only, num_items_in_batch, fused_loss
        )
        logits = None if logits is None else layout.output(logits)
        return self._output(MaskedLMOutput, outputs, return_dict, loss=loss, logits=logits)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
