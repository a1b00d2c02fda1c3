"""Base classes of transformers' heads over a padding-free encoder."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import ModelOutput

from . import fusion
from .encoder import PackedModelOutput
from .losses import IGNORED, NumItems, average, class_checks, cross_entropy, masked_lm, row_cross_entropy
from .packed import PackedEncoder, Swapped, is_packed, is_unwatched
from .packing import PackedBatch
from .validation import check_integers, check_shape

NOT_PADDING_FREE = "its encoder is not padding-free"


class PackedHead(Swapped):
    """A head that is transformers' own, but for what it asks of its encoder."""

    # Its loss is the mean of its batch: Trainer, which takes **kwargs for a promise, would multiply it.
    accepts_loss_kwargs = False
    base_model: Any
    config: Any

    def forward_on_rows(self, **given: Any) -> Any:
        """Refuse what the head can't take, and call transformers' forward with the encoder's orders."""
        return self.original.forward(self, **given, **self.all_orders(given))

    def all_orders(self, given: dict[str, Any]) -> dict[str, Any]:
        """Further arguments of the encoder.

        Raises:
            ValueError: the input is packed, and the head can't take that.
        """
        on_rows = isinstance(self.base_model, PackedEncoder)
        reason = self.reason_to_refuse_packed(given) if on_rows else NOT_PADDING_FREE
        refusal = f"input_ids must be a padded batch for {type(self).__name__}, got packed input: {reason}"
        if reason is not None and is_packed(given):
            raise ValueError(refusal)
        if not on_rows:
            return {}
        orders = self.orders(given)
        # Only the encoder reads whether the positions of a lone row restart.
        if reason is not None and given.get("position_ids") is not None and given.get("attention_mask") is None:
            orders["refusal"] = refusal
        return orders

    def reason_to_refuse_packed(self, given: dict[str, Any]) -> str | None:
        """Reason why the head can't take packed input, or None."""
        return None

    def orders(self, given: dict[str, Any]) -> dict[str, Any]:
        """Further arguments of the encoder, whatever the input's form."""
        return {}


class ScoresSequences(PackedHead):
    """A head that reads the pooled output or each sequence's first token, and no other."""

    readers: ClassVar[dict[str, type[nn.Module]]] = {}
    """Modules that pick the first token out of a sequence's, by attribute: the class that each must be."""

    def reason_to_give_all(self) -> str | None:
        """Reason why the head may read other tokens than the first, or None."""
        for name, cls in self.readers.items():
            given = getattr(self, name)
            reader = getattr(given, "original_module", given)  # peft trains a copy of it
            if type(reader) is not cls:
                return f"{name} was replaced by a {type(reader).__name__}"
            if not all(is_unwatched(part) for part in given.modules() if part is given or type(part) is cls):
                return f"{name} has hooks"
            kind = getattr(reader, "summary_type", "first")
            if kind != "first":
                return f"summary_type is {kind!r}"
        return None

    def reason_to_refuse_packed(self, given: dict[str, Any]) -> str | None:
        return self.reason_to_give_all()

    def orders(self, given: dict[str, Any]) -> dict[str, Any]:
        first_only = is_packed(given) or (self.reason_to_give_all() is None and is_unwatched(self.base_model))
        return {"scores_sequences": True} if first_only else {}


class ScoresChoices(ScoresSequences):
    """Multiple choice: its input has a dimension for the choices."""

    def reason_to_refuse_packed(self, given: dict[str, Any]) -> str | None:
        return "it has a dimension for the choices"


class FindsSpans(PackedHead):
    """Extractive question answering, whose loss is over the tokens of a row.

    For flattened input with `padded_shape` scores of padding are the dtype's minimum, as ErnieM's are, and the loss,
    divided by `num_items_in_batch` where that is given, counts real tokens only.
    """

    accepts_loss_kwargs = True

    def forward_on_rows(self, **given: Any) -> Any:
        if given.get("cu_seq_lens_q") is None or given.get("padded_shape") is None:
            return super().forward_on_rows(**given)
        positions = [given.pop(name, None) for name in ("start_positions", "end_positions")]
        num_items, return_dict = given.pop("num_items_in_batch", None), given.pop("return_dict", None)
        outputs = super().forward_on_rows(**given, return_dict=True)
        lengths = given["cu_seq_lens_q"].diff()
        real = torch.arange(given["padded_shape"][1], device=lengths.device) < lengths[:, None]
        losses = []
        for name, places in zip(("start_logits", "end_logits"), positions, strict=True):
            outputs[name] = scores = outputs[name].masked_fill(~real, torch.finfo(outputs[name].dtype).min)
            if places is not None:
                losses.append(row_cross_entropy(scores, places, real, num_items))
        if len(losses) == len(positions):
            outputs = type(outputs)(**{**outputs, "loss": (losses[0] + losses[1]) / 2})
        return outputs if (self.config.return_dict if return_dict is None else return_dict) else outputs.to_tuple()

    def reason_to_refuse_packed(self, given: dict[str, Any]) -> str | None:
        labelled = given.get("start_positions") is not None or given.get("end_positions") is not None
        return "its loss is over a row, which without padded_shape would hold all sequences" if labelled else None


class PackedMaskedLM(Swapped):
    """A masked-LM head that projects real tokens only.

    Attributes:
        loss_only: with labels, project the labelled tokens only and give no logits. With a plain decoder the loss is
            float32 and its logits are never whole (`ops.linear_cross_entropy`). Off the CPU this waits for the device
            once more, to count the tokens.
        decoder_name: of the projection to the vocabulary.
        around_decoder: names of the modules around it, the outermost first, and their classes.
        around_names: the same with the names of the classes, without the family's prefix.
    """

    loss_only = False
    accepts_loss_kwargs = True
    decoder_name: str
    around_decoder: ClassVar[dict[str, type[nn.Module]]] = {}
    around_names: ClassVar[dict[str, str]] = {}
    base_model: Any
    config: Any

    def score(self, rows: Tensor) -> Tensor:
        """(num_rows, hidden_size) to (num_rows, vocab_size)."""
        raise NotImplementedError

    def transform(self, rows: Tensor) -> Tensor:
        """(num_rows, hidden_size) to what the decoder projects."""
        raise NotImplementedError

    def loss_and_logits(
        self, rows: Tensor, labels: Tensor | None, batch: PackedBatch, num_items: NumItems
    ) -> tuple[Any, Any]:
        """Mean loss of the labelled tokens and logits of the rows, either of them None."""
        around, backend = self.around_decoder, self.base_model.backend
        fused_loss = None
        if self.loss_only:
            fused_loss = fusion.decoder_loss(self, around, self.decoder_name, self.transform, backend)
        return masked_lm(self.score, rows, labels, batch, self.loss_only, num_items, fused_loss)

    def encode_rows(self, labels: Tensor | None, given: dict[str, Any]) -> PackedModelOutput | None:
        """The encoder's output on rows; None: transformers' own forward must compute the call."""
        base = self.base_model
        on_rows = isinstance(base, PackedEncoder) and is_unwatched(base) and base.reason_not_packed(given) is None
        if is_packed(given) and not isinstance(base, PackedEncoder):
            raise ValueError(f"input_ids must be a padded batch for {type(self).__name__}: {NOT_PADDING_FREE}")
        if not (on_rows or is_packed(given)):
            return None
        checks = class_checks("labels", labels, self.config.vocab_size, "vocab_size")
        return base(**given, return_packed=True, value_checks=checks)  # type: ignore[no-any-return]

    def forward_on_rows(
        self,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: NumItems = None,
        **given: Any,
    ) -> Any:
        """Compute on rows, or leave the call to transformers, which ignores `num_items_in_batch`."""
        outputs = self.encode_rows(labels, given)
        if outputs is None:
            return self.original.forward(self, **given, labels=labels, return_dict=return_dict)
        batch: Any = outputs.batch
        rows = outputs.last_hidden_state
        loss, logits = self.loss_and_logits(rows, labels, batch, num_items_in_batch)
        output = MaskedLMOutput(
            loss=loss, logits=None if logits is None else batch.output(logits), hidden_states=outputs.hidden_states
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class PackedPreTraining(PackedMaskedLM):
    """BERT's pre-training: masked LM, and from the first token whether the second sentence follows the first."""

    output_class: ClassVar[type[ModelOutput]]
    decoder_name = "cls.predictions.decoder"
    cls: Any

    def score(self, rows: Tensor) -> Tensor:
        return self.cls.predictions(rows)  # type: ignore[no-any-return]

    def transform(self, rows: Tensor) -> Tensor:
        """(num_rows, hidden_size) to what the decoder projects."""
        return self.cls.predictions.transform(rows)  # type: ignore[no-any-return]

    def forward_on_rows(
        self,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: NumItems = None,
        **given: Any,
    ) -> Any:
        """Compute on rows, or leave the call to transformers.

        Args:
            labels: integers of the input's shape, in [0, vocab_size) or -100.
            next_sentence_label: (num_sequences,) integers: 0, the second sentence follows the first; 1, it does not;
                -100, ignored. There is a loss where both are given, and it is the sum of both.
            num_items_in_batch: of the labels: the masked LM's losses are summed over it, and the mean loss of next
                sentences counts by the share of the labels that this batch has.
        """
        unwatched = is_unwatched(self.cls)
        if not unwatched and is_packed(given):
            raise ValueError(f"input_ids must be a padded batch for {type(self).__name__}: cls has hooks")
        trained = labels is not None and next_sentence_label is not None
        outputs = self.encode_rows(labels, given) if unwatched else None
        if outputs is None:
            labelled = {"labels": labels, "next_sentence_label": next_sentence_label}
            return self.original.forward(self, **given, **labelled, return_dict=return_dict)
        batch: Any = outputs.batch
        rows = outputs.last_hidden_state
        relation = self.cls.seq_relationship(outputs.pooler_output)
        loss, logits = self.loss_and_logits(rows, labels if trained else None, batch, num_items_in_batch)
        if labels is not None and next_sentence_label is not None:
            check_shape("next_sentence_label", next_sentence_label, (batch.num_sequences,), "num_sequences")
            followed = cross_entropy(relation, check_integers("next_sentence_label", next_sentence_label))
            if num_items_in_batch is not None:
                followed = average(followed * (labels != IGNORED).sum(), num_items=num_items_in_batch)
            loss = loss + followed
        output = self.output_class(
            loss=loss, prediction_logits=None if logits is None else batch.output(logits),
            seq_relationship_logits=relation, hidden_states=outputs.hidden_states,
        )  # fmt: skip
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
