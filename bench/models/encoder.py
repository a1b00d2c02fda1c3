"""Benchmarks of the whole encoder and their providers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.registry import Benchmark, Prepared
from bench.engine.shapes import BASE, BOTH, LARGE, TINY, Batch, K, Shape, batch_of, batched, mixed
from bench.engine.torch_compile import compile_layers, needs_compiler
from bench.ops.attention import torch_varlen
from bench.ops.inputs import DROPOUT_P, needs_forward, needs_triton_and_forward
from erniem_fast import GraphedEncoder, batch_invariant, modeling, reference
from erniem_fast.inference.graphs import SEQUENCES, TOKENS

from .inputs import ModelInputs, packed_forward, padded_forward
from .peers import UnpaddedModel, linear_products, use_sdpa, xlm_roberta
from .work import products_work

PADDING_FREE = "padding-free"
VARLEN_NOTE = "packed; torch.compile layer by layer; attention has no dropout"
TINY_SHAPE = Shape("tiny", ((9, 3, 1, 4), (2, 5)), TINY, "tiny")

# bfloat16, float16, float32: places in the order of measuring.
INFERENCE_SHAPES = (
    mixed("pairs", 64 * K, BASE, bfloat16=0, float16=12),
    mixed("xquad", 64 * K, BASE, bfloat16=1, float16=12),
    batched("pairs", "arrival", 64, BASE, bfloat16=2),
    batched("xquad", "arrival", 64, BASE, bfloat16=3),
    mixed("pairs", 64 * K, LARGE, bfloat16=6, float16=13),
    mixed("xquad", 64 * K, LARGE, bfloat16=7),
    batched("xquad", "sorted", 64, BASE, bfloat16=9),
    mixed("pairs", 4 * K, BASE, bfloat16=9),
    batched("pairs", "arrival", 64, LARGE, bfloat16=16),
    batched("xquad", "arrival", 64, LARGE, bfloat16=16),
    batched("xquad", "sorted", 64, LARGE, bfloat16=16),
    mixed("pairs", 4 * K, LARGE, bfloat16=16),
    batched("xquad", "arrival", 16, float32=0),
    batched("xquad", "sorted", 16, float32=0),
)
LATENCY_SHAPES = tuple(
    batch_of(length, name=f"1x{length}", sizes=sizes, histogram=f"all {length}", bfloat16=place)
    for sizes, place in ((BASE, 8), (LARGE, 15))
    for length in (128, 32, 64)
)
TRAINING_SHAPES = (
    mixed("pairs", 64 * K, BASE, bfloat16=4),  # smaller batches measure the host; XQuAD's, padded, exceed the memory
    batched("pairs", "arrival", 64, BASE, count=2, bfloat16=4),
    batched("xquad", "arrival", 64, BASE, count=2, bfloat16=5, float16=14),
    batched("xquad", "arrival", 64, LARGE, count=2, bfloat16=10, float16=18),
    batched("pairs", "arrival", 64, LARGE, count=2, bfloat16=19),
    batch_of(500, *(20,) * 15, name="1x500+15x20", float32=1),
    batched("xquad", "arrival", 16, count=2, float32=1),
    batched("xquad", "sorted", 16, float32=1),
)
ADAMW_SHAPES = (
    batched("xquad", "arrival", 64, BASE, count=2, bfloat16=11),
    batched("xquad", "arrival", 64, LARGE, count=2, bfloat16=17),
)
STEP = ((BOTH, DROPOUT_P),)
INFERENCE = Benchmark("inference", ModelInputs, INFERENCE_SHAPES, (TINY_SHAPE,), baseline=PADDING_FREE)
LATENCY = Benchmark("latency", ModelInputs, LATENCY_SHAPES, (TINY_SHAPE,), baseline=PADDING_FREE)
TRAINING = Benchmark("training", ModelInputs, TRAINING_SHAPES, (TINY_SHAPE,), STEP, PADDING_FREE)
ADAMW = Benchmark(
    "training+AdamW", partial(ModelInputs, optimizer=True), ADAMW_SHAPES, (TINY_SHAPE,), STEP, PADDING_FREE
)
BENCHMARKS = (INFERENCE, TRAINING, LATENCY, ADAMW)


def provider(name: str, **options: Any) -> Callable[[Callable[[ModelInputs], Prepared]], None]:
    """Decorator that registers a provider with every benchmark."""

    def register(build: Callable[[ModelInputs], Prepared]) -> None:
        for benchmark in BENCHMARKS:
            benchmark.provider(name, **options)(build)

    return register


@provider(PADDING_FREE, note="from padded input to padded output")
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


@provider(f"{PADDING_FREE}, packed input")
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    return inputs.prepare(model, partial(packed_forward, model), padded=False)


@provider(
    f"{PADDING_FREE}, graphs",
    devices=("cuda",),
    note="GraphedEncoder: CUDA graphs of buckets, packed input",
    needs=needs_forward,
)
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    # Batches beyond the usual buckets get some of their own: every figure is one of graphs, none of eager launches.
    tokens = {batch.packed.total_tokens for batch in inputs.batches} - set(range(TOKENS[-1] + 1))
    sequences = {batch.packed.num_sequences for batch in inputs.batches} - set(range(SEQUENCES[-1] + 1))
    encoder = GraphedEncoder(model, (*TOKENS, *sorted(tokens)), (*SEQUENCES, *sorted(sequences)))
    for batch in inputs.batches:  # captured now: a replay is compared, after those of other batches
        encoder(batch.packed)
    return inputs.prepare(
        model,
        lambda batch: encoder(batch.packed).last_hidden_state,
        padded=False,
        held=lambda: {"graphs": encoder.reserved_bytes},
    )


@provider(f"{PADDING_FREE}, batch-invariant", note="batch_invariant(), packed input", needs=needs_triton_and_forward)
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)

    def forward(batch: Batch) -> Tensor:
        with batch_invariant():
            return packed_forward(model, batch)

    return inputs.prepare(model, forward, padded=False)


@provider("padded", note="the reference, eager")
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(reference.ErnieMModel)
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


def _with_sdpa(inputs: ModelInputs) -> Any:
    model = inputs.model(reference.ErnieMModel)
    use_sdpa(model, unmasked=all(len(set(lengths)) == 1 for lengths in inputs.shape.batches))
    return model


@provider("padded, sdpa")
def _(inputs: ModelInputs) -> Prepared:
    model = _with_sdpa(inputs)
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


@provider("padded, sdpa, compiled", note="torch.compile layer by layer", needs=needs_compiler)
def _(inputs: ModelInputs) -> Prepared:
    model = _with_sdpa(inputs)
    compile_layers(model.encoder.layers, inputs.setting.device)
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


@provider("varlen_attn, compiled", devices=("cuda",), note=VARLEN_NOTE)
def _(inputs: ModelInputs) -> Prepared:
    base = inputs.model(reference.ErnieMModel)
    model = UnpaddedModel(base, torch_varlen)
    compile_layers(model.layers, inputs.setting.device)
    return inputs.prepare(model, lambda batch: model(batch.packed), padded=False, base=base)


XLM_NOTE = "transformers' model of the same size with weights of its own: output not compared"


@provider("XLM-R, sdpa", note=XLM_NOTE)
def _(inputs: ModelInputs) -> Prepared:
    dtype = torch.float32 if inputs.trains else inputs.setting.dtype
    model = inputs.frozen(xlm_roberta(inputs.shape.sizes.config(), inputs.setting.device, dtype))
    return inputs.prepare(model, partial(padded_forward, model), padded=True, compared=False)


@provider("matrix products", note="a bound: the linear layers alone, packed", needs=needs_forward)
def _(inputs: ModelInputs) -> Prepared:
    model = inputs.model(modeling.ErnieMModel)
    products = [
        (weight.detach(), bias.detach()) for layer in model.encoder.layers for weight, bias in linear_products(layer)
    ]
    totals = [batch.packed.total_tokens for batch in inputs.batches]
    # As in the model, each batch finds its rows where the one before has left its own.
    rows = {weight.shape[1]: weight.new_empty(max(totals), weight.shape[1]).normal_() for weight, _ in products}

    def run() -> None:
        with torch.inference_mode():
            for total in totals:
                for weight, bias in products:
                    F.linear(rows[weight.shape[1]][:total], weight, bias)

    return Prepared(run, None, work=products_work(sum(totals), inputs.shape.sizes, inputs.setting.itemsize))
