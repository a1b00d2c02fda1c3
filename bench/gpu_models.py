"""The whole encoder: inference, latency and training steps, by us and by the peers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erniem_fast import GraphedEncoder, batch_invariant, modeling, reference
from erniem_fast.inference.graphs import SEQUENCES, TOKENS

from . import work
from .compiling import compile_layers
from .gpu_shapes import BASE_MODEL, LARGE_MODEL, TINY_MODEL, K, batched, mixed, single
from .kernel_cases import needs_triton
from .model_cases import linear_products
from .model_inputs import ModelInputs, as_it_is, from_grid, packed_forward, padded_forward
from .peers import UnpaddedModel, use_sdpa, varlen_attention, xlm_roberta
from .registry import Operation, Prepared
from .shapes import Batch, Setting, Shape, Sizes

OURS, GRAPHS, INVARIANT = "padding-free", "padding-free, graphs", "padding-free, batch-invariant"
VARLEN_NOTE = "packed; torch.compile layer by layer; attention has no dropout"


def with_optimizer(shape: Shape, setting: Setting) -> ModelInputs:
    return ModelInputs.make(shape, setting, optimizer=True)


def _sized(sizes: Sizes) -> tuple[Shape, ...]:
    batches = (
        batched("pairs", "arrival", sizes),
        batched("xquad", "arrival", sizes),
        batched("xquad", "sorted", sizes),
    )
    return mixed("pairs", 64 * K, sizes), mixed("xquad", 64 * K, sizes), *batches, mixed("pairs", 4 * K, sizes)


def _first(shape: Shape, count: int = 2) -> Shape:
    return Shape(shape.name, shape.batches[:count], shape.sizes, shape.histogram, shape.order)


TINY = Shape("tiny", ((9, 3, 1, 4), (2, 5)), TINY_MODEL, "tiny")
_TRAINED = tuple(
    _first(batched(histogram, "arrival", sizes))
    for sizes in (BASE_MODEL, LARGE_MODEL)
    for histogram in ("pairs", "xquad")
)
_SINGLE = tuple(single(length, sizes) for sizes in (BASE_MODEL, LARGE_MODEL) for length in (128, 32, 64))
INFERENCE = Operation(
    "inference", ModelInputs.make, _sized(BASE_MODEL) + _sized(LARGE_MODEL), TINY, "padded", OURS, rounds=0
)
LATENCY = Operation("latency", ModelInputs.make, _SINGLE, TINY, "padded", OURS, rounds=0)
TRAINING = Operation("training", ModelInputs.make, _TRAINED, TINY, "padded", OURS, rounds=0, grad=True)
ADAMW = Operation("training+AdamW", with_optimizer, _TRAINED, TINY, "padded", OURS, rounds=0, grad=True)
OPERATIONS = (INFERENCE, TRAINING, LATENCY, ADAMW)


def provider(name: str, **options: Any) -> Callable[[Callable[[ModelInputs], Prepared]], None]:
    """Decorator that registers a provider with every operation."""

    def register(build: Callable[[ModelInputs], Prepared]) -> None:
        for operation in OPERATIONS:
            operation.provider(name, **options)(build)

    return register


def needs_inference(shape: Shape, setting: Setting) -> str | None:
    return None if setting.passes == work.FORWARD else "for the forward pass only"


def needs_inference_by_triton(shape: Shape, setting: Setting) -> str | None:
    return needs_inference(shape, setting) or needs_triton(shape, setting)


@provider(OURS, note="from padded input to padded output")
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    return inputs.prepare(model, partial(padded_forward, model), from_grid)


@provider("padding-free, packed input")
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    return inputs.prepare(model, partial(packed_forward, model), as_it_is)


@provider(GRAPHS, devices=("cuda",), note="GraphedEncoder: CUDA graphs of buckets, packed input", needs=needs_inference)
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    # Batches beyond the usual buckets get some of their own: no figure of graphs is one of eager launches.
    tokens = {batch.packed.total_tokens for batch in inputs.batches} - set(range(TOKENS[-1] + 1))
    sequences = {batch.packed.num_sequences for batch in inputs.batches} - set(range(SEQUENCES[-1] + 1))
    encoder = GraphedEncoder(model, (*TOKENS, *sorted(tokens)), (*SEQUENCES, *sorted(sequences)))
    for batch in inputs.batches:  # captured now: what is compared is a replay, after those of other batches
        encoder(batch.packed)
    return inputs.prepare(
        model,
        lambda batch: encoder(batch.packed).last_hidden_state,
        as_it_is,
        held=lambda: {"graphs": encoder.reserved_bytes},
    )


@provider(INVARIANT, note="batch_invariant(), packed input", needs=needs_inference_by_triton)
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)

    def forward(batch: Batch) -> Tensor:
        with batch_invariant():
            return packed_forward(model, batch)

    return inputs.prepare(model, forward, as_it_is)


@provider("padded", note="the reference, eager")
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(reference.ErnieMModel)
    return inputs.prepare(model, partial(padded_forward, model), from_grid)


def _with_sdpa(inputs: ModelInputs) -> Any:
    model = inputs.model(reference.ErnieMModel)
    use_sdpa(model, unmasked=all(len(set(lengths)) == 1 for lengths in inputs.shape.batches))
    return model


@provider("padded, sdpa")
def _(inputs: ModelInputs) -> Prepared:
    model = _with_sdpa(inputs)
    return inputs.prepare(model, partial(padded_forward, model), from_grid)


@provider("padded, sdpa, compiled", note="torch.compile layer by layer")
def _(inputs: ModelInputs) -> Prepared:
    model = _with_sdpa(inputs)
    compile_layers(model.encoder.layers, inputs.setting.device)
    return inputs.prepare(model, partial(padded_forward, model), from_grid)


@provider("varlen_attn, compiled", devices=("cuda",), note=VARLEN_NOTE)
def _(inputs: ModelInputs) -> Prepared:
    base = inputs.model(reference.ErnieMModel)
    model = UnpaddedModel(base, varlen_attention)
    compile_layers(model.layers, inputs.setting.device)
    return inputs.prepare(model, lambda batch: model(batch.packed), as_it_is, base)


@provider("XLM-R, sdpa", note="transformers' model of the same size with weights of its own: output not compared")
def _(inputs: ModelInputs) -> Prepared:
    dtype = inputs.setting.dtype if inputs.setting.passes == work.FORWARD else torch.float32
    model = xlm_roberta(inputs.shape.sizes.config(), inputs.setting.device, dtype)
    return inputs.prepare(model, partial(padded_forward, model), from_grid, compared=False)


@provider("matrix products", note="a bound: the linear layers alone, packed", needs=needs_inference)
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    products = [product for layer in model.encoder.layers for product in linear_products(layer)]
    totals = [batch.packed.total_tokens for batch in inputs.batches]
    rows = {weight.shape[1]: weight.new_empty(max(totals), weight.shape[1]).normal_() for weight, _ in products}

    def run() -> None:
        with torch.inference_mode():
            for total in totals:
                for weight, bias in products:
                    F.linear(rows[weight.shape[1]][:total], weight, bias)

    itemsize = rows[inputs.shape.sizes.hidden_size].element_size()
    return Prepared(run, None, work=work.matrix_products(sum(totals), inputs.shape.sizes, itemsize))
