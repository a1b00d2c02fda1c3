"""Shapes hold what their names say."""

import torch
from helpers.benchmarks import SHAPE

from bench.engine import shapes
from bench.engine.shapes import BASE, Batch, Setting, batched
from bench.models import encoder
from bench.ops import attention
from bench.ops.inputs import GPU_SHAPES
from bench.tools import make_lengths


def test_shapes_hold_the_tokens_that_their_names_say() -> None:
    for shape in (*attention.SHAPES, *GPU_SHAPES):
        if torch.bfloat16 in shape.priority:
            assert shape.real_tokens == int(shape.name.rsplit("-", 1)[1].removesuffix("k")) * 1024
        assert max(shape.batches[0]) <= 512
        assert min(shape.batches[0]) > 0
    pairs = shapes.lengths_of("pairs")
    assert 42 < sum(pairs) / len(pairs) < 48
    arrival, by_length = (batched("xquad", order, 64, BASE) for order in ("arrival", "sorted"))
    assert [len(batch) for batch in arrival.batches] == [64] * 8
    assert by_length.padded_tokens < 1.3 * by_length.real_tokens < arrival.padded_tokens


def test_the_cpu_s_shapes_are_batches_of_sixteen_of_the_committed_lengths() -> None:
    lengths = shapes.lengths_of("xquad")
    assert len(lengths) == len(make_lengths.LANGUAGES) * make_lengths.CONTEXTS_PER_LANGUAGE * 4
    assert max(lengths) <= make_lengths.MAX_TOKENS
    (skewed, *trained) = (shape for shape in encoder.TRAINING_SHAPES if torch.float32 in shape.priority)
    assert (skewed.real_tokens, skewed.padded_tokens) == (800, 8000)
    inferred = [shape for shape in encoder.INFERENCE_SHAPES if torch.float32 in shape.priority]
    for (arrival, by_length), batches in ((inferred, 8), (trained, 2)):
        assert [len(batch) for batch in arrival.batches] == [16] * batches
        assert [len(batch) for batch in by_length.batches] == [16] * 8
        assert arrival.padded_tokens > 3 * arrival.real_tokens
        assert by_length.padded_tokens < 1.1 * by_length.real_tokens


def test_a_batch_holds_the_same_tokens_padded_and_packed() -> None:
    batch = Batch.random((3, 1, 4), 50, "cpu")
    assert batch.attention_mask.sum(1).tolist() == [3, 1, 4]
    assert batch.packed.input_ids is not None
    assert torch.equal(batch.packed.input_ids, batch.input_ids[batch.attention_mask.bool()])
    assert batch.packed.total_tokens == 8
    assert (SHAPE.real_tokens, SHAPE.padded_tokens) == (16, 36)
    assert Setting().randn(2, 3).shape == (2, 3)
