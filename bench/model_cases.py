"""The encoder, padding-free and padded, with the same weights on the same batches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erniem_fast import modeling, reference

from .memory import training_memory
from .model_inputs import packed_forward, padded_forward
from .peers import use_sdpa
from .registry import Operation, Prepared
from .shapes import ARRIVAL, SKEWED, SORTED, TINY_SHAPE, Batch, Setting, Shape, Sizes


@dataclass(frozen=True, eq=False)
class EncoderInputs:
    """Two models that share their parameters, and batches.

    Attributes:
        padded: the reference.
        padded_sdpa: the reference with PyTorch's fused attention.
        packed: the padding-free model.
        batches: that they are run on.
    """

    padded: reference.ErnieMModel
    padded_sdpa: reference.ErnieMModel
    packed: modeling.ErnieMModel
    batches: list[Batch]

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "EncoderInputs":
        batches = [Batch.random(lengths, shape.sizes.vocab_size, setting.device) for lengths in shape.batches]
        models = _models(shape.sizes, setting)
        for model in models:
            model.eval()
        return cls(*models, batches)


@lru_cache(maxsize=1)
def _models(
    sizes: Sizes, setting: Setting
) -> tuple[reference.ErnieMModel, reference.ErnieMModel, modeling.ErnieMModel]:
    config = sizes.config()
    padded = reference.ErnieMModel(config).to(setting.device, setting.dtype)
    # The word table's gradient, as large as the table, would be most of a training step, for every provider alike.
    padded.embeddings.word_embeddings.requires_grad_(False)
    with torch.device("meta"):
        others = reference.ErnieMModel(config), modeling.ErnieMModel(config)
    for model in others:
        model.load_state_dict(padded.state_dict(), assign=True)
        model.embeddings.word_embeddings.requires_grad_(False)
    padded_sdpa, packed = others
    use_sdpa(padded_sdpa, unmasked=False)
    return padded, padded_sdpa, packed


ENCODER = Operation(
    "encoder", EncoderInputs.make, (ARRIVAL, SORTED), TINY_SHAPE, oracle="padded", baseline="padding-free", rounds=5
)
TRAINING = Operation(
    "training-step", EncoderInputs.make, (SKEWED,), TINY_SHAPE, "padded", "padding-free", rounds=5, grad=True
)
OPERATIONS = (ENCODER, TRAINING)


def _rows(model: nn.Module, batches: list[Batch]) -> Tensor:
    """The real rows of all batches, without dropout, from padded input and output."""
    model.eval()
    with torch.no_grad():
        return torch.cat([batch.packed.from_grid(padded_forward(model, batch)) for batch in batches])


def _inference(model: nn.Module, batches: list[Batch]) -> Prepared:
    def run() -> None:
        for batch in batches:
            padded_forward(model, batch)

    return Prepared(run, lambda: _rows(model, batches))


@ENCODER.provider("padding-free")
def _(inputs: EncoderInputs) -> Prepared:
    return _inference(inputs.packed, inputs.batches)


@ENCODER.provider("padding-free, packed input")
def _(inputs: EncoderInputs) -> Prepared:
    def run() -> None:
        for batch in inputs.batches:
            packed_forward(inputs.packed, batch)

    return Prepared(run, lambda: torch.cat([packed_forward(inputs.packed, batch) for batch in inputs.batches]))


@ENCODER.provider("padded")
def _(inputs: EncoderInputs) -> Prepared:
    return _inference(inputs.padded, inputs.batches)


@ENCODER.provider("padded, sdpa")
def _(inputs: EncoderInputs) -> Prepared:
    return _inference(inputs.padded_sdpa, inputs.batches)


@ENCODER.provider("matrix products")
def _(inputs: EncoderInputs) -> Prepared:
    """The layers' linear products alone, q, k and v in one, on packed rows: a bound, with nothing to check."""
    products = [product for layer in inputs.packed.encoder.layers for product in linear_products(layer)]
    totals = [batch.packed.total_tokens for batch in inputs.batches]
    # As in the model, each batch finds its rows where the one before has left its own.
    rows = {size: products[0][0].new_empty(max(totals), size).normal_() for size in {w.shape[1] for w, _ in products}}

    def run() -> None:
        for total in totals:
            for weight, bias in products:
                F.linear(rows[weight.shape[1]][:total], weight, bias)

    return Prepared(run, None)


def linear_products(layer: Any) -> list[tuple[Tensor, Tensor]]:
    attention = layer.self_attn.self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    fused = torch.cat([part.weight for part in parts]).detach(), torch.cat([part.bias for part in parts]).detach()
    linears = (layer.self_attn.out_proj, layer.linear1, layer.linear2)
    return [fused, *((linear.weight.detach(), linear.bias.detach()) for linear in linears)]


def _training(model: nn.Module, batches: list[Batch]) -> Prepared:
    """Forward, with dropout, and backward, batch by batch."""

    def forward(batch: Batch) -> Tensor:
        return padded_forward(model, batch)

    def step(batch: Batch) -> None:
        forward(batch).square().mean().backward()
        model.zero_grad()

    def training(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            model.train()
            return function()

        return run

    @training
    def run() -> None:
        for batch in batches:
            step(batch)

    @training
    def memory() -> dict[str, int]:
        return training_memory(model, batches, forward, step)

    return Prepared(run, lambda: _rows(model, batches), memory)


@TRAINING.provider("padding-free")
def _(inputs: EncoderInputs) -> Prepared:
    return _training(inputs.packed, inputs.batches)


@TRAINING.provider("padded")
def _(inputs: EncoderInputs) -> Prepared:
    return _training(inputs.padded, inputs.batches)
