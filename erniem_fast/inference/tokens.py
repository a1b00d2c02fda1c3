"""Texts to tokens, so many at a time, with a progress bar; pairs of texts from their tokens."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tokenization import ErnieMTokenizer
from .progress import progress_bar

TEXTS_PER_CALL = 256
SPECIAL_TOKENS = 4
"""Of a pair: [CLS] first [SEP] [SEP] second [SEP]."""


class Row(NamedTuple):
    """Tokens of a sequence on their way to the model.

    Attributes:
        ids: (length,) int32 token ids, special tokens included.
        types: (length,) int32 token types; None where all are 0.
    """

    ids: np.ndarray
    types: np.ndarray | None = None


def tokenize_in_chunks(
    texts: Sequence[str], tokenizer: ErnieMTokenizer, progress: bool, **options: Any
) -> Iterator[tuple[list[str], Any]]:
    """Tokenize texts, each alone and uncut.

    Args:
        texts: any number of texts.
        tokenizer: the model's tokenizer.
        progress: show a progress bar on stderr.
        options: further arguments of the tokenizer.

    Yields:
        Some of the texts, in order, and what the tokenizer gives for them.
    """
    with progress_bar(len(texts), "Tokenizing", " texts", progress) as bar:
        for start in range(0, len(texts), TEXTS_PER_CALL):
            chunk = list(texts[start : start + TEXTS_PER_CALL])
            # verbose: the tokenizer would warn of long texts, which are cut or read in windows later.
            yield chunk, tokenizer(chunk, return_attention_mask=False, verbose=False, **options)
            bar.update(len(chunk))


def join_pair(tokenizer: ErnieMTokenizer, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Put a pair together: (len(first) + len(second) + SPECIAL_TOKENS,) int32.

    Args:
        tokenizer: whose special tokens count.
        first: (length,) token ids of the first text, without special tokens.
        second: likewise of the second text.
    """
    cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    return np.concatenate((cls, first, sep, sep, second, sep), dtype=np.int32)
