"""What the GPU suite's providers of the whole encoder share: weights, batches, and what is right."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from erniem_fast import reference

from . import work
from .memory import peak_bytes
from .registry import Prepared
from .shapes import Batch, Setting, Shape, Sizes

CHECKED_SEQUENCES = 8
"""Of the first batch: the first ones are compared."""
COMPARED_PARAMETERS = (
    "embeddings.layer_norm.weight",
    "encoder.layers.0.self_attn.self_attn.q_proj.weight",
    "encoder.layers.0.linear1.bias",
)


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """Weights and batches that all providers share.

    Attributes:
        shape, setting: that they are made for. In a forward pass weights have the setting's dtype; else they are
            float32 and the dtype is autocast's.
        weights: the state dict.
        batches: that a round goes through.
        checked: the first sequences of the first batch, which are compared.
        optimizer: whether a step has one.
        work: what a round must do.
    """

    shape: Shape
    setting: Setting
    weights: dict[str, Tensor]
    batches: list[Batch]
    checked: Batch
    optimizer: bool
    work: work.Work
    known: list[tuple[list[Tensor], list[Tensor] | None]] = field(default_factory=list)

    @classmethod
    def make(cls, shape: Shape, setting: Setting, optimizer: bool = False) -> "ModelInputs":
        sizes = shape.sizes
        weights = _weights(sizes, setting.device)
        if setting.passes == work.FORWARD:
            weights = {name: weight.to(setting.dtype) for name, weight in weights.items()}
        batches = [Batch.random(lengths, sizes.vocab_size, setting.device) for lengths in shape.batches]
        few = list(shape.batches[0][:CHECKED_SEQUENCES])
        assert batches[0].packed.input_ids is not None
        ids = batches[0].packed.input_ids[: sum(few)].cpu().split(few)
        amounts = [
            work.encoder(lengths, sizes, torch.finfo(setting.dtype).bits // 8, setting.passes, setting.dropout_p > 0)
            for lengths in shape.batches
        ]
        checked = Batch.of(list(ids), setting.device)
        return cls(shape, setting, weights, batches, checked, optimizer, sum(amounts, work.Work(0, 0)))

    def model(self, cls: type[Any]) -> Any:
        """A model with these weights."""
        with torch.device("meta"):
            model = cls(self.shape.sizes.config(), add_pooling_layer=False)
        model.load_state_dict(self.weights, assign=True)
        return model.eval()

    def autocast(self) -> AbstractContextManager[Any]:
        if self.setting.passes == work.FORWARD:
            return nullcontext()
        return torch.autocast(self.setting.device, self.setting.dtype, enabled=self.setting.dtype != torch.float32)

    def results(self, base: nn.Module, rows: Callable[[Batch], Tensor]) -> list[Tensor]:
        """The first sequences' rows and, where the setting asks for them, gradients of a few parameters."""
        tokens = self.checked.packed.total_tokens
        if self.setting.passes == work.FORWARD:
            with torch.inference_mode():  # as what is timed: else it would be compiled twice
                return [rows(self.batches[0])[:tokens]]
        with self.autocast():
            found = rows(self.checked)
        return [found.detach(), *self._gradients(base, found)]

    def _gradients(self, base: nn.Module, rows: Tensor) -> list[Tensor]:
        parameters = [base.get_parameter(name) for name in COMPARED_PARAMETERS]
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(rows.shape, generator=generator).to(rows.device, rows.dtype)
        return list(torch.autograd.grad(rows, parameters, grad))

    def expected(self, dropout_p: float) -> tuple[list[Tensor], list[Tensor] | None]:
        """By the reference on those sequences: in float32, and by itself in the setting's dtype."""
        if not self.known:
            self.known.append((self._reference(torch.float32), self._plain()))
        return self.known[0]

    def _plain(self) -> list[Tensor] | None:
        if self.setting.dtype == torch.float32:
            return None
        with self.autocast():
            return self._reference(None)

    def _reference(self, dtype: torch.dtype | None) -> list[Tensor]:
        model = self.model(reference.ErnieMModel)
        if dtype is not None:
            model = model.to(dtype)
        rows = self.checked.packed.from_grid(padded_forward(model, self.checked))
        if self.setting.passes == work.FORWARD:
            return [rows.detach()]
        return [rows.detach(), *self._gradients(model, rows)]

    def prepare(
        self,
        model: nn.Module,
        forward: Callable[[Batch], Tensor],
        rows: Callable[[Tensor, Batch], Tensor],
        base: nn.Module | None = None,
        compared: bool = True,
        held: Callable[[], dict[str, int]] = dict,
    ) -> Prepared:
        """A provider of the encoder.

        Args:
            model: that is timed.
            forward: runs it on a batch.
            rows: from what that returns to (total_tokens, hidden_size).
            base: the model that holds the reference's parameters under their names; None: `model`.
            compared: whether it has the shared weights.
            held: bytes that it holds between rounds beside weights and optimizer, by what they are for.
        """
        training = self.setting.passes != work.FORWARD
        optimizers: list[torch.optim.Optimizer] = []

        def results() -> list[Tensor]:
            model.eval()
            return self.results(base or model, lambda batch: rows(forward(batch), batch))

        def loss(batch: Batch) -> Tensor:
            with self.autocast():
                return forward(batch).float().square().mean()

        def step(batch: Batch) -> None:
            loss(batch).backward()
            if self.optimizer:
                if not optimizers:
                    # The weights are shared: a step must take its time and leave them alone.
                    fused = self.setting.device == "cuda"
                    optimizers.append(torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused))
                optimizers[0].step()
            model.zero_grad()

        def run() -> None:
            if model.training != training:  # once: it walks through all modules
                model.train(training)
            if training:
                for batch in self.batches:
                    step(batch)
            else:
                with torch.inference_mode():
                    for batch in self.batches:
                        forward(batch)

        def memory() -> dict[str, int]:
            run()  # what stays, the optimizer's state among it, is there before the peak is taken
            weights = sum(parameter.nbytes for parameter in model.parameters())
            states = [state for optimizer in optimizers for state in optimizer.state.values()]
            kept = sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))
            found = {"peak": peak_bytes(run), "weights": weights, "optimizer": kept, **held()}
            if training and self.setting.device == "cuda":
                found["activations"] = max(_activation_bytes(partial(loss, batch)) for batch in self.batches)
            return found | {"total": found["peak"] + weights + kept + sum(held().values())}

        return Prepared(run, None, memory, results if compared else None)


def _activation_bytes(loss: Callable[[], Tensor]) -> int:
    """What a forward leaves allocated for its backward."""
    before = torch.cuda.memory_allocated()
    kept = loss()
    after = torch.cuda.memory_allocated()
    del kept
    return after - before


@lru_cache(maxsize=1)
def _weights(sizes: Sizes, device: str) -> dict[str, Tensor]:
    with torch.device(device):
        model = reference.ErnieMModel(sizes.config(), add_pooling_layer=False)
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def padded_forward(model: nn.Module, batch: Batch) -> Tensor:
    """(batch, seq_len, hidden_size)."""
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state  # type: ignore[no-any-return]


def packed_forward(model: nn.Module, batch: Batch) -> Tensor:
    """(total_tokens, hidden_size)."""
    return model(input_ids=batch.packed, return_packed=True).last_hidden_state  # type: ignore[no-any-return]


def from_grid(output: Tensor, batch: Batch) -> Tensor:
    return batch.packed.from_grid(output)


def as_it_is(output: Tensor, batch: Batch) -> Tensor:
    return output
