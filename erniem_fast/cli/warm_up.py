"""Compile the kernels that a model will need, before it needs them: triton keeps them on disk."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from .. import ops
from ..inference.loading import model_class
from ..inference.progress import progress_bar
from ..packing import PackedBatch
from ..padding_free import padding_free

BATCHES = ((16, 16, 8), (32, 16), (64, 20), (100, 20, 1), (300,), (512,))
"""Lengths of sequences: one batch for each choice of attention tiles and of the loops over them."""


def warm_up(
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    training: bool,
    backend: str = "triton",
    progress: bool = False,
) -> None:
    """Run each kernel of a model once, on small batches of all kinds.

    Left out, since few ask for them: the kernels of `prefix_lens`, of `inputs_embeds` and XLM's `langs`, and of
    `batch_invariant()`, compiled when first used.

    Args:
        config: configuration of an ErnieM model, or of one that `padding_free` takes; its sizes and dropout
            probabilities count.
        device: a CUDA device.
        dtype: dtype of the weights; in training, of autocast, too.
        training: run forward with dropout and backward as well, in weights of `dtype` and, unless that is float32, in
            float32 weights under autocast.
        backend: backend of the operations.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: the backend can't run on this device, or in this dtype.
    """
    ops.resolve_backend(backend, device, dtype)
    runs = [(dtype, False, False)]
    if training:
        runs += [(dtype, True, False)] + ([(torch.float32, True, True)] if dtype != torch.float32 else [])
    # Kernels depend on neither the vocabulary nor the depth.
    small = copy.deepcopy(config)
    small.vocab_size, small.num_hidden_layers, small.pad_token_id = 128, 1, 1
    cls = model_class(small)
    limits = padding_free(cls(small)).limits
    batches = list(_batches(limits.max_tokens))
    with progress_bar(len(runs) * len(batches), "Compiling", " batches", progress) as bar:
        for weights, train, autocast in runs:
            model = padding_free(cls(small)).to(device, weights).train(train)
            model.backend = backend
            for lengths in batches:
                rows = [torch.randint(2, small.vocab_size, (length,)) for length in lengths]
                batch = PackedBatch.from_sequences(rows, device, limits.first_position)
                _run(model, batch, train, dtype if autocast else None)
                bar.update()


def _batches(longest: int) -> Iterator[tuple[int, ...]]:
    for lengths in BATCHES:
        yield tuple(min(length, longest) for length in lengths)


def _run(model: Any, batch: PackedBatch, train: bool, autocast: torch.dtype | None) -> None:
    device = batch.position_ids.device
    with torch.autocast(device.type, autocast) if autocast else nullcontext(), torch.set_grad_enabled(train):
        rows = model(batch).last_hidden_state
    if train:
        rows.sum().backward()
