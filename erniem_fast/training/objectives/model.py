"""The model of all pre-training objectives: masked LM, and the generation step of BTMLM."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from ...modeling import ErnieMForMaskedLM
from ...outputs import called_as

SCORED_BYTES = 64 * 1024 * 1024
"""Most bytes of scores over the vocabulary held at once in generation."""


class ErnieMForPreTraining(ErnieMForMaskedLM):
    """`ErnieMForMaskedLM` that fills the placeholders of `BTMLM` itself, before it computes the loss.

    Its checkpoints are those of `ErnieMForMaskedLM`, which config.json names. Projects labelled tokens only and gives
    no logits with labels, unless `loss_only` is False.
    """

    loss_only = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        generation: dict[str, Any] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> MaskedLMOutput:
        """Predict tokens.

        Args:
            input_ids, labels, num_items_in_batch, inputs: as in `ErnieMForMaskedLM`.
            generation: what `BTMLM` puts into a batch: `inputs`, arguments of the encoder; `rows` and `places`,
                (num_placeholders,) rows of the placeholders there and in `input_ids`; `excluded`, ids that are not
                generated; `temperature`.
        """
        if generation is not None:
            if input_ids is None:
                raise ValueError("input_ids must be given with generation, whose tokens are put there")
            input_ids = input_ids.index_copy(1, generation["places"], self.generate_tokens(**generation)[None])
        return super().forward(input_ids, labels=labels, num_items_in_batch=num_items_in_batch, **inputs)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    @torch.no_grad()
    def generate_tokens(
        self, inputs: dict[str, Any], rows: Tensor, excluded: Tensor, temperature: float, places: Tensor | None = None
    ) -> Tensor:
        """Predict tokens at some rows of a packed batch, without dropout or gradient.

        Args:
            inputs: arguments of the encoder.
            rows: (num_placeholders,) rows to predict.
            excluded: (num_excluded,) ids that are not predicted.
            temperature: of the softmax that tokens are drawn from, by torch's generator; 0: the likeliest token.
            places: not read.

        Returns:
            (num_placeholders,) int64.
        """
        with _eval_mode(self):
            states = self.ernie_m(**inputs, return_packed=True).last_hidden_state[rows]
            bytes_a_row = self.config.vocab_size * max(states.element_size(), torch.float32.itemsize)
            num_rows = max(1, SCORED_BYTES // bytes_a_row)
            chunks = [self._draw(self.lm_head(chunk), excluded, temperature) for chunk in states.split(num_rows)]
        return torch.cat(chunks)

    @staticmethod
    def _draw(scores: Tensor, excluded: Tensor, temperature: float) -> Tensor:
        """Draw (num_rows,) ids by the softmax of (num_rows, vocab_size) scores, or take the greatest."""
        scores = scores.float()
        if temperature:  # Gumbel noise makes the greatest a draw
            scores = scores / temperature - torch.empty_like(scores).exponential_().log()
        return scores.index_fill(1, excluded, -torch.inf).argmax(1)


# Saved folders name the class that loads them.
ErnieMForPreTraining.__name__ = ErnieMForMaskedLM.__name__


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch all modules to eval mode, and those back that were in training mode."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
