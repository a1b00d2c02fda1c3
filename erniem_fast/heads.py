"""Task heads, written once for the reference and the padding-free model.

A head computes on rows: all positions of a padded batch (reference) or the real tokens only (padding-free). The model
mixed into it provides `encode`, which returns the encoder's output and the layout of its rows.
The arguments of `forward` and their order are those of transformers 4.40.2; further ones of the encoder follow.
With `return_dict=False` a head returns a tuple of the output's values that are not None, as in 4.40.2. The annotations
leave that out: a union of both would keep editors from completing `.logits`.
"""

from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput

from .configuration import ErnieMConfig
from .losses import (
    Layout,
    NumItems,
    average,
    check_labels,
    class_checks,
    cross_entropy,
)
from .outputs import called_as
from .packing import PackedBatch
from .pretrained import ErnieMPreTrainedModel
from .validation import check_device, check_shape

Output = TypeVar("Output", bound=ModelOutput)


class HeadBase(ErnieMPreTrainedModel):
    base_model_class: Any
    accepts_loss_kwargs = True
    """For transformers' Trainer: `forward` takes `num_items_in_batch`."""

    def encode(self, pooled_only: bool = False, **inputs: Any) -> tuple[Any, Layout]:
        """The encoder's output, with last_hidden_state as rows, and the layout of those rows.

        Args:
            pooled_only: the head reads pooler_output only; last_hidden_state may be None.
            inputs: arguments of the encoder.
        """
        raise NotImplementedError

    def _output(self, cls: type[Output], outputs: Any, return_dict: bool | None, **fields: Any) -> Output:
        """`fields` and the encoder's hidden states and attentions, as a `cls` or, unannotated, as its tuple."""
        if fields["loss"] is not None and torch.compiler.is_exporting():
            raise ValueError("labels must be None under torch.export: a loss counts real tokens only, got labels")
        output: Any = cls(**fields, hidden_states=outputs.hidden_states, attentions=outputs.attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def classifier_dropout(config: ErnieMConfig) -> nn.Dropout:
    p = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if p is None else p)


class SequenceClassification(HeadBase):
    """A linear layer on the pooled output: regression, single- or multi-label classification."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ernie_m = self.base_model_class(config)
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
        use_cache: bool | None = None,
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
    ) -> SequenceClassifierOutput:
        """Classify sequences; arguments not listed are those of `ErnieMModel`.

        Args:
            labels: by `config.problem_type`, or where it is None by `num_labels` and the labels' dtype:
                "regression" (num_labels 1), float (num_sequences,) or (num_sequences, num_labels);
                "single_label_classification" (integers), (num_sequences,) in [0, num_labels) or -100;
                "multi_label_classification" (float or bool), (num_sequences, num_labels).
            num_items_in_batch: number that the sum of the losses is divided by, instead of how many the batch has:
                that of all batches which an optimiser's step accumulates, as transformers' Trainer counts it.

        Returns:
            SequenceClassifierOutput; logits (num_sequences, num_labels).
        """
        problem = None if labels is None else self._problem_type(check_labels("labels", labels))
        classes = labels if problem == "single_label_classification" else None
        outputs, _ = self.encode(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, head_mask=head_mask,
            inputs_embeds=inputs_embeds, past_key_values=past_key_values, use_cache=use_cache,
            output_hidden_states=output_hidden_states, output_attentions=output_attentions,
            value_checks=class_checks("labels", classes, self.num_labels, "num_labels"),
            token_type_ids=token_type_ids, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q, max_length_k=max_length_k, validate=validate, padded_shape=padded_shape,
            pooled_only=True,
        )  # fmt: skip
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None or problem is None else self._loss(problem, logits, labels, num_items_in_batch)
        return self._output(SequenceClassifierOutput, outputs, return_dict, loss=loss, logits=logits)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def _problem_type(self, labels: Tensor) -> str:
        # Derived on every call: 4.40.2 writes its first guess into the configuration, where it sticks.
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.num_labels == 1:
            return "regression"
        integers = not labels.is_floating_point() and labels.dtype != torch.bool
        return "single_label_classification" if integers else "multi_label_classification"

    def _loss(self, problem: str, logits: Tensor, labels: Tensor, num_items: NumItems) -> Tensor:
        sequences = logits.shape[0]
        check_device("labels", labels, logits.device, "the model's output")
        if problem == "single_label_classification" or (problem == "regression" and self.num_labels == 1):
            if labels.shape not in ((sequences,), (sequences, 1)):
                check_shape("labels", labels, (sequences,), "num_sequences")
        else:
            check_shape("labels", labels, tuple(logits.shape), "num_sequences, num_labels")
        if problem == "single_label_classification":
            return cross_entropy(logits, labels, num_items)
        loss_of = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        losses = loss_of(logits, labels.reshape(logits.shape).to(logits.dtype), reduction="none")
        return average(losses, None, num_items)


class MultipleChoice(HeadBase):
    """A score for each choice from its pooled output."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__(config)
        self.ernie_m = self.base_model_class(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
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
        padded_shape: tuple[int, int, int] | None = None,
        num_items_in_batch: NumItems = None,
    ) -> MultipleChoiceModelOutput:
        """Score choices; arguments not listed are those of `ErnieMModel`, with a dimension for the choices.

        Args:
            input_ids: (batch, num_choices, seq_len), and `attention_mask`, `position_ids` alike; `inputs_embeds`
                (batch, num_choices, seq_len, hidden_size).
            labels: (batch,) integers in [0, num_choices) or -100.
            padded_shape: (batch, num_choices, seq_len), which flattened input needs; its sequences are the choices of
                the first sample, then those of the next.
            num_items_in_batch: as in `ErnieMForSequenceClassification`.

        Returns:
            MultipleChoiceModelOutput; logits (batch, num_choices).
        """
        name, source, dims = "input_ids", input_ids, 3
        if inputs_embeds is not None:
            name, source, dims = "inputs_embeds", inputs_embeds, 4
        batch, num_choices = 0, 1
        if cu_seq_lens_q is not None:
            if padded_shape is None or len(padded_shape) != 3:
                raise ValueError(
                    f"padded_shape must be (batch, num_choices, seq_len) with cu_seq_lens_q, got {padded_shape}"
                )
            batch, num_choices = padded_shape[:2]
        elif isinstance(source, Tensor) and source.dim() == dims:
            batch, num_choices = source.shape[:2]
        elif isinstance(source, Tensor | PackedBatch):
            got = "a PackedBatch" if isinstance(source, PackedBatch) else f"shape {tuple(source.shape)}"
            raise ValueError(f"{name} must be a padded tensor of shape (batch, num_choices, seq_len, ...), got {got}")
        # Anything else is refused by the encoder.

        def flat(name: str, tensor: Tensor | None) -> Tensor | None:
            if not isinstance(tensor, Tensor) or tensor.dim() <= 2 or cu_seq_lens_q is not None:
                return tensor
            if tensor.shape[:2] != (batch, num_choices):
                check_shape(name, tensor, (batch, num_choices, *tensor.shape[2:]), "batch, num_choices, ...")
            return tensor.flatten(0, 1)

        outputs, layout = self.encode(
            input_ids=flat("input_ids", input_ids), attention_mask=flat("attention_mask", attention_mask),
            position_ids=flat("position_ids", position_ids), head_mask=head_mask,
            inputs_embeds=flat("inputs_embeds", inputs_embeds), output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            value_checks=class_checks("labels", labels, num_choices, "num_choices"),
            token_type_ids=token_type_ids, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max_length_q, max_length_k=max_length_k, validate=validate,
            padded_shape=None if padded_shape is None else (batch * num_choices, *padded_shape[2:]), pooled_only=True,
        )  # fmt: skip
        if layout.num_sequences != batch * num_choices:
            raise ValueError(
                f"{name} must hold one sequence a choice, {batch * num_choices} in all (packed input needs "
                f"padded_shape), got {layout.num_sequences} sequences"
            )
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(batch, num_choices)
        loss = None
        if labels is not None:
            check_shape("labels", labels, (batch,), "batch")
            loss = cross_entropy(logits, labels, num_items_in_batch)
        return self._output(MultipleChoiceModelOutput, outputs, return_dict, loss=loss, logits=logits)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
