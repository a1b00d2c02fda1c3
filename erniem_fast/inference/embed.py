"""From texts to vectors: tokens, batches of at most so many tokens, the padding-free encoder, pooling.

sequences, truncated = tokenize(texts, tokenizer, model.limits.max_tokens)
for indices, vectors in embed(model, sequences, pooling="mean", batch_tokens=8192):
    out[indices] = vectors
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..packing import PackedBatch
from .arguments import check_encoder, check_eval
from .batching import as_completed
from .pooling import POOLINGS, pool
from .tokens import tokenize_in_chunks


class Tokenized(NamedTuple):
    """Token ids of texts.

    Attributes:
        sequences: (length,) int32 for each text, special tokens included; length 0 for an empty text.
        truncated: number of texts that were cut.
    """

    sequences: list[np.ndarray]
    truncated: int


def tokenize(texts: Sequence[str], tokenizer: Any, max_tokens: int, progress: bool = False) -> Tokenized:
    """Tokenize texts, each alone; those of more than `max_tokens` tokens are cut and keep the special token at the end.

    Args:
        texts: any number of texts. A text of nothing but white space has no tokens at all.
        tokenizer: the model's tokenizer, ours or one of transformers.
        max_tokens: most tokens of a sequence, special tokens included.
        progress: show a progress bar on stderr.
    """
    sequences: list[np.ndarray] = []
    truncated, special = 0, set(tokenizer.all_special_ids)
    for chunk, found in tokenize_in_chunks(texts, tokenizer, progress):
        for text, ids in zip(chunk, found["input_ids"], strict=True):
            if not text.strip():
                ids = []
            elif len(ids) > max_tokens:
                truncated += 1
                closing = ids[-1:] if ids[-1] in special else []
                ids = [*ids[: max_tokens - len(closing)], *closing]
            sequences.append(np.array(ids, dtype=np.int32))
    return Tokenized(sequences, truncated)


def embed(
    model: Any,
    sequences: Sequence[np.ndarray],
    pooling: str = "mean",
    batch_tokens: int = 8192,
    progress: bool = False,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """One vector a sequence, a batch at a time; only a batch's hidden states are ever held.

    Args:
        model: an ErnieMModel, or an encoder that `padding_free` made so; in eval mode, on any device.
        sequences: (length,) integers each, special tokens included; empty ones are left out.
        pooling: a name in `pooling.POOLINGS`, such as "mean" or "cls".
        batch_tokens: most tokens of a batch; a longer sequence makes a batch alone.
        progress: show a progress bar on stderr.

    Yields:
        Indices of the batch's sequences, and their vectors (len(indices), hidden_size) float32. Empty sequences
        never come; zeros are their vectors.

    Raises:
        TypeError: `model` is anything else.
        ValueError: `pooling` is unknown, `batch_tokens` is below 1, or the model is in training mode.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    check_encoder(model)
    check_eval(model)

    def compute(batch: PackedBatch) -> np.ndarray:
        output = model(batch, return_packed=True)
        vectors: np.ndarray = pool(batch, output.last_hidden_state, output.pooler_output, (pooling,)).cpu().numpy()
        return vectors

    description, first = "Encoding" if progress else None, model.limits.first_position
    return as_completed(sequences, compute, batch_tokens, model.device, description, first_position=first)
