"""Inputs of the whole encoder: weights, batches, the oracle's results."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.memory import activation_bytes, peak_bytes
from bench.engine.registry import Prepared
from bench.engine.shapes import FORWARD, Batch, Setting, Shape, Sizes
from bench.engine.work import Work
from erniem_fast import reference

from .work import encoder_work

CHECKED_SEQUENCES = 8
"""Number of sequences that are compared: the first ones of the first batch."""


class ModelInputs:
    """Weights and batches. In a forward pass weights have the setting's dtype; in training float32, under autocast.

    Attributes:
        batches: batches that a round goes through.
        checked: sequences that are compared.
        optimizer: True if a step is AdamW's, too; models then have weights of their own.
        compared: parameters whose gradients are compared.
        work: least work of a round.
        facts: dtype of the weights, autocast, optimizer.
    """

    compared: tuple[str, ...] = (
        "embeddings.layer_norm.weight",
        "encoder.layers.0.self_attn.self_attn.q_proj.weight",
        "encoder.layers.0.linear1.bias",
    )

    def __init__(self, shape: Shape, setting: Setting, optimizer: bool = False) -> None:
        self.shape, self.setting, self.optimizer, sizes = shape, setting, optimizer, shape.sizes
        self.trains = setting.passes != FORWARD
        self.batches = [Batch.random(lengths, sizes.vocab_size, setting.device) for lengths in shape.batches]
        few, first = list(shape.batches[0][:CHECKED_SEQUENCES]), self.batches[0].packed.input_ids
        assert first is not None
        self.checked = Batch.of(list(first[: sum(few)].cpu().split(few)), setting.device)
        amounts = [
            encoder_work(lengths, sizes, setting.itemsize, setting.passes, setting.dropout_p > 0)
            for lengths in shape.batches
        ]
        self.work = sum(amounts, Work(0, 0))
        dtype = setting.dtype_name
        self.facts: Mapping[str, Any] = {
            "weights_dtype": "float32" if self.trains else dtype,
            "autocast": dtype if self.trains and dtype != "float32" else None,
            "optimizer": optimizer if self.trains else None,
        }
        self._expected: tuple[list[Tensor], list[Tensor] | None] | None = None

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of ErnieM."""
        weights = _weights(self.shape.sizes, self.setting.device)
        return weights if self.trains else {name: weight.to(self.setting.dtype) for name, weight in weights.items()}

    def model(self, cls: type[Any]) -> Any:
        """A model with these weights, or with a copy of its own where a step may change them."""
        with torch.device("meta"):
            model = cls(self.shape.sizes.config(), add_pooling_layer=False)
        # A learning rate of 0 is not enough: a gradient that overflows turns AdamW's step into NaN.
        copied = {name: weight.clone() for name, weight in self.weights.items()} if self.optimizer else self.weights
        model.load_state_dict(copied, assign=True)
        return self.frozen(model).eval()

    def frozen(self, model: Any) -> Any:
        """The model; on a CPU without the word table's gradient, which would be most of a step for every provider."""
        if self.setting.device == "cpu":
            model.embeddings.word_embeddings.requires_grad_(False)
        return model

    def autocast(self) -> AbstractContextManager[Any]:
        if self.facts["autocast"] is None:
            return nullcontext()
        return torch.autocast(self.setting.device, self.setting.dtype)

    def _results(self, base: nn.Module, rows: Callable[[Batch], Tensor]) -> list[Tensor]:
        """The first sequences' rows and, where the setting asks for them, gradients of a few parameters."""
        if not self.trains:
            with torch.inference_mode():  # as when it is timed: else it would be compiled twice
                return [rows(self.batches[0])[: self.checked.packed.total_tokens]]
        with self.autocast():
            found = rows(self.checked)
        return [found.detach(), *self._gradients(base, found)]

    def expected(self, dropout_p: float) -> tuple[list[Tensor], list[Tensor] | None]:
        """The reference's results on those sequences, without dropout: in float32, and in the setting's 16 bits."""
        if self._expected is None:
            model = self.oracle()
            plain = None
            if self.setting.dtype != torch.float32:
                with self.autocast():
                    plain = self._by_reference(model)
            self._expected = self._by_reference(model.float()), plain
        return self._expected

    def oracle(self) -> Any:
        """A model whose results are right, which may be changed."""
        return self.model(reference.ErnieMModel)

    def reference_rows(self, model: nn.Module) -> Tensor:
        """Results of the oracle that providers' are compared with."""
        return self.checked.packed.from_grid(padded_forward(model, self.checked))

    def loss_of(self, output: Tensor) -> Tensor:
        """Loss of a step, of what `forward` gave."""
        return output.float().square().mean()

    def _by_reference(self, model: Any) -> list[Tensor]:
        rows = self.reference_rows(model)
        return [rows.detach(), *(self._gradients(model, rows) if self.trains else ())]

    def _gradients(self, model: nn.Module, rows: Tensor) -> list[Tensor]:
        parameters = [model.get_parameter(name) for name in self.compared]
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(rows.shape, generator=generator).to(rows.device, rows.dtype)
        return list(torch.autograd.grad(rows, parameters, grad))

    def prepare(
        self,
        model: nn.Module,
        forward: Callable[[Batch], Tensor],
        padded: bool,
        base: nn.Module | None = None,
        compared: bool = True,
        held: Callable[[], dict[str, int]] = dict,
    ) -> Prepared:
        """A provider of the encoder.

        Args:
            model: the model that is timed.
            forward: runs it on a batch.
            padded: True if that returns (batch, seq_len, hidden_size), else (total_tokens, hidden_size).
            base: the model that holds the reference's parameters under their names; None: `model`.
            compared: True if it has the shared weights.
            held: bytes that it holds between rounds beside weights and optimizer, by what they are for.
        """
        optimizers: list[torch.optim.Optimizer] = []

        def rows(batch: Batch) -> Tensor:
            out = forward(batch)
            return batch.packed.from_grid(out) if padded else out

        def results() -> list[Tensor]:
            model.eval()
            return self._results(base or model, rows)

        def loss(batch: Batch) -> Tensor:
            with self.autocast():
                return self.loss_of(forward(batch))

        def step(batch: Batch) -> None:
            loss(batch).backward()
            if self.optimizer:
                if not optimizers:
                    # A step takes its time and, with this learning rate, leaves the weights as they are.
                    fused = self.setting.device == "cuda"
                    optimizers.append(torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused))
                optimizers[0].step()
            model.zero_grad()

        def run() -> None:
            if model.training != self.trains:  # once: it walks through all modules
                model.train(self.trains)
            if self.trains:
                for batch in self.batches:
                    step(batch)
            else:
                with torch.inference_mode():
                    for batch in self.batches:
                        forward(batch)

        def memory() -> dict[str, int]:
            if self.optimizer or self.setting.device == "cuda":
                run()  # what stays, such as the optimizer's state, is there before the peak is taken
            weights = sum(parameter.nbytes for parameter in model.parameters())
            states = [state for optimizer in optimizers for state in optimizer.state.values()]
            kept = sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))
            found = {"peak": peak_bytes(run), "weights": weights, "optimizer": kept, **held()}
            found["total"] = sum(found.values())
            if self.trains:
                found["activations"] = max(activation_bytes(model, partial(loss, batch)) for batch in self.batches)
            return found

        # Inference on a CPU keeps nothing worth measuring, and takes long.
        measured = memory if self.trains or self.setting.device == "cuda" or self.setting.tiny else None
        return Prepared(run, results if compared else None, memory=measured)


@lru_cache(maxsize=1)
def _weights(sizes: Sizes, device: str) -> dict[str, Tensor]:
    with torch.device(device):
        model = reference.ErnieMModel(sizes.config(), add_pooling_layer=False)
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def padded_forward(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden state (batch, seq_len, hidden_size) from padded input."""
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state  # type: ignore[no-any-return]


def packed_forward(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden state (total_tokens, hidden_size) from packed input."""
    return model(input_ids=batch.packed, return_packed=True).last_hidden_state  # type: ignore[no-any-return]
