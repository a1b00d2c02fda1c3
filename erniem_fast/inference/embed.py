"""From texts to vectors: tokens, batches of at most so many tokens, the padding-free encoder, pooling.

sequences, truncated = tokenize(texts, tokenizer, model.config.max_tokens)
for indices, vectors in embed(model, sequences, pooling="mean", batch_tokens=8192):
    out[indices] = vectors
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..modeling import ErnieMModel
from ..packing import PackedBatch
from ..tokenization import ErnieMTokenizer
from .batching import as_completed
from .pooling import POOLINGS
from .progress import progress_bar

TEXTS_PER_CALL = 256


class Tokenized(NamedTuple):
    """Token ids of texts.

    Attributes:
        sequences: (length,) int32 for each text, special tokens included; length 0 for an empty text.
        truncated: number of texts that were cut.
    """

    sequences: list[np.ndarray]
    truncated: int


def tokenize(texts: Sequence[str], tokenizer: ErnieMTokenizer, max_tokens: int, progress: bool = False) -> Tokenized:
    """Tokenize texts, each alone; those of more than `max_tokens` tokens are cut and keep their last [SEP].

    Args:
        texts: any number of texts. A text of nothing but white space has no tokens at all.
        tokenizer: the model's tokenizer.
        max_tokens: most tokens of a sequence, special tokens included.
        progress: show a progress bar on stderr.
    """
    sequences: list[np.ndarray] = []
    truncated = 0
    with progress_bar(len(texts), "Tokenizing", " texts", progress) as bar:
        for start in range(0, len(texts), TEXTS_PER_CALL):
            chunk = texts[start : start + TEXTS_PER_CALL]
            for text, ids in zip(chunk, _token_ids(chunk, tokenizer), strict=True):
                if not text.strip():
                    ids = []
                elif len(ids) > max_tokens:
                    truncated += 1
                    ids = [*ids[: max_tokens - 1], ids[-1]]
                sequences.append(np.array(ids, dtype=np.int32))
            bar.update(len(chunk))
    return Tokenized(sequences, truncated)


def _token_ids(texts: Sequence[str], tokenizer: ErnieMTokenizer) -> list[list[int]]:
    # verbose: the tokenizer would warn of the longest texts, which are cut here.
    return tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]


def embed(
    model: ErnieMModel,
    sequences: Sequence[np.ndarray],
    pooling: str = "mean",
    batch_tokens: int = 8192,
    progress: bool = False,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """One vector a sequence, a batch at a time; only a batch's hidden states are ever held.

    Args:
        model: in eval mode, on any device.
        sequences: (length,) integers each, special tokens included; empty ones are left out.
        pooling: a name in `pooling.POOLINGS`: "mean" or "cls".
        batch_tokens: most tokens of a batch; a longer sequence makes a batch alone.
        progress: show a progress bar on stderr.

    Yields:
        Indices of the batch's sequences, and their vectors (len(indices), hidden_size) float32. Empty sequences
        never come; zeros are their vectors.

    Raises:
        ValueError: `pooling` is unknown, `batch_tokens` is below 1, or the model is in training mode.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if model.training:
        raise ValueError("model must be in eval mode, or dropout makes the vectors random; got training mode")

    def compute(batch: PackedBatch) -> np.ndarray:
        output = model(batch, return_packed=True)
        vectors = POOLINGS[pooling].function(batch, output.last_hidden_state, output.pooler_output)
        return vectors.float().cpu().numpy()

    return as_completed(sequences, compute, batch_tokens, model.device, "Encoding" if progress else None)
