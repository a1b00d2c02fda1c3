"""Base classes of transformers' heads over a padding-free encoder."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from .losses import class_checks, masked_lm
from .packed import PackedEncoder, Swapped, is_packed, is_unwatched
from .packing import PackedBatch

NOT_PADDING_FREE = "its encoder is not padding-free"


class PackedHead(Swapped):
    """A head that is transformers' own, but for what it asks of its encoder."""

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
    """Extractive question answering, whose loss is over the tokens of a row."""

    def reason_to_refuse_packed(self, given: dict[str, Any]) -> str | None:
        labelled = given.get("start_positions") is not None or given.get("end_positions") is not None
        return "its loss is over a row, which would hold all sequences" if labelled else None


class PackedMaskedLM(Swapped):
    """A masked-LM head that projects real tokens only.

    Attributes:
        loss_only: with labels, project the labelled tokens only and give no logits. Off the CPU this waits for the
            device once more, to count them.
    """

    loss_only = False
    base_model: Any
    config: Any

    def score(self, rows: Tensor) -> Tensor:
        """(num_rows, hidden_size) to (num_rows, vocab_size)."""
        raise NotImplementedError

    def loss_and_logits(self, rows: Tensor, labels: Tensor | None, batch: PackedBatch) -> tuple[Any, Any]:
        """Mean loss of the labelled tokens and logits of the rows, either of them None."""
        return masked_lm(self.score, rows, labels, batch, self.loss_only)

    def forward_on_rows(self, labels: Tensor | None = None, return_dict: bool | None = None, **given: Any) -> Any:
        """Compute on rows, or leave the call to transformers."""
        base = self.base_model
        on_rows = isinstance(base, PackedEncoder) and is_unwatched(base) and base.reason_not_packed(given) is None
        if is_packed(given) and not isinstance(base, PackedEncoder):
            raise ValueError(f"input_ids must be a padded batch for {type(self).__name__}: {NOT_PADDING_FREE}")
        if not (on_rows or is_packed(given)):
            return self.original.forward(self, **given, labels=labels, return_dict=return_dict)
        checks = class_checks("labels", labels, self.config.vocab_size, "vocab_size")
        outputs = base(**given, return_packed=True, value_checks=checks)
        loss, logits = self.loss_and_logits(outputs.last_hidden_state, labels, outputs.batch)
        output = MaskedLMOutput(
            loss=loss, logits=None if logits is None else outputs.batch.output(logits),
            hidden_states=outputs.hidden_states,
        )  # fmt: skip
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()
