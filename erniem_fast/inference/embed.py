"""From texts to vectors: tokens, batches of at most so many tokens, the padding-free encoder, pooling.

sequences, truncated = tokenize(texts, tokenizer, model.config.max_tokens)
for indices, vectors in embed(model, sequences, pooling="mean", batch_tokens=8192):
    out[indices] = vectors
"""

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..modeling import ErnieMModel
from ..packing import PackedBatch
from ..tokenization import ErnieMTokenizer

POOLINGS = ("mean", "cls")
TEXTS_PER_CALL = 256


class InputError(ValueError):
    """Something given from outside can't be used. The message is one line: what, its value, what is accepted."""


class Tokenized(NamedTuple):
    """Token ids of texts.

    Attributes:
        sequences: (length,) int32 for each text, special tokens included; length 0 for an empty text.
        truncated: how many texts were cut.
    """

    sequences: list[np.ndarray]
    truncated: int


def tokenize(texts: Sequence[str], tokenizer: ErnieMTokenizer, max_tokens: int, progress: bool = False) -> Tokenized:
    """Tokenize texts, each alone; those of more than `max_tokens` tokens are cut and keep their last [SEP].

    Args:
        texts: of any number. Nothing but white space is an empty text: no tokens at all.
        tokenizer: of the model.
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


def plan(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Group sequences by length, the longest first, into batches of at most `batch_tokens` tokens.

    Args:
        lengths: tokens of each sequence; those of none are left out.
        batch_tokens: a sequence of more than that makes a batch alone.

    Yields:
        Indices into `lengths`.

    Raises:
        ValueError: `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and tokens + lengths[index] > batch_tokens:
            yield batch
            batch, tokens = [], 0
        if lengths[index]:
            batch.append(index)
            tokens += lengths[index]
    if batch:
        yield batch


def encode(
    model: ErnieMModel,
    sequences: Sequence[np.ndarray],
    batch_tokens: int,
    progress: bool = False,
    description: str = "Encoding",
) -> Iterator[tuple[list[int], PackedBatch, Tensor]]:
    """Last hidden states of token id sequences, a batch at a time and never padded.

    Args:
        model: in eval mode, on any device.
        sequences: (length,) integers each; empty ones are left out.
        batch_tokens: most tokens of a batch.
        progress: show a progress bar on stderr.
        description: of the progress bar.

    Yields:
        Indices of the batch's sequences, the batch, and its rows (total_tokens, hidden_size) in the model's dtype.

    Raises:
        ValueError: `batch_tokens` is below 1, or the model is in training mode.
    """
    if model.training:
        raise ValueError("model must be in eval mode, or dropout makes the vectors random; got training mode")
    lengths = [len(sequence) for sequence in sequences]
    with progress_bar(sum(lengths), description, " tokens", progress) as bar:
        for indices in plan(lengths, batch_tokens):
            batch = PackedBatch.from_sequences((torch.from_numpy(sequences[i]) for i in indices), model.device)
            with torch.inference_mode():
                rows = model(batch, return_dict=True).last_hidden_state[0]
            yield indices, batch, rows
            bar.update(batch.total_tokens)


def embed(
    model: ErnieMModel,
    sequences: Sequence[np.ndarray],
    pooling: str = "mean",
    batch_tokens: int = 8192,
    progress: bool = False,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """One vector a sequence, a batch at a time; only a batch's hidden states are ever held.

    Args:
        model, sequences, batch_tokens, progress: see `encode`.
        pooling: "mean" of all of a sequence's tokens, special tokens included, or "cls", its first token (the last
            hidden state, not the pooler's output).

    Yields:
        Indices of the batch's sequences, and their vectors (len(indices), hidden_size) float32. Empty sequences
        never come; their vectors are meant to be zeros.

    Raises:
        ValueError: an argument outside what is said above.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    for indices, batch, rows in encode(model, sequences, batch_tokens, progress):
        yield indices, pool(batch, rows, pooling)


def pool(batch: PackedBatch, rows: Tensor, pooling: str) -> np.ndarray:
    """(total_tokens, hidden_size) to (num_sequences, hidden_size) float32; see `embed`."""
    vectors = batch.mean(rows) if pooling == "mean" else batch.first(rows)
    return vectors.float().cpu().numpy()


def progress_bar(total: int, description: str, unit: str, shown: bool) -> Any:
    # Where nobody watches it move, a bar should not fill the log.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=description, unit=unit, unit_scale=True, mininterval=interval, disable=not shown)


def pad(sequences: list[Any], pad_id: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token id sequences as (batch, longest) input_ids and attention_mask, int64, padded on the right."""
    rows = [torch.as_tensor(sequence, dtype=torch.int64) for sequence in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id or 0)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), mask.long().to(device)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` that takes its place at the end, or vanishes if anything is raised, Ctrl-C included.

    Raises:
        InputError: no file can be written there. Known at once, before any work.
    """
    accepted = "expected the path of a file that can be written"
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".erniem-fast-{secrets.token_hex(8)}.tmp"
    try:
        _check_target(target)
        temporary.open("xb").close()
    except OSError as error:
        raise InputError(f"--out {str(path)!r}: {error.strerror}; {accepted}") from error
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _check_target(target: Path) -> None:
    """Raise an OSError where `os.replace` would fail or do harm."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):  # a folder; a device, which it would replace
        raise OSError(errno.EINVAL, "Not a regular file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "Write-protected")


def allocate(path: Path, shape: tuple[int, int], out: Path) -> np.memmap:
    """A new .npy file of zeros, (n, hidden_size) float32, mapped into memory.

    Raises:
        InputError: it doesn't fit; `out` is the name that the message gives.
    """
    try:
        vectors: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A full disk must be an error now, not a bus error at a later write.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    except OSError as error:
        size = shape[0] * shape[1] * 4
        raise InputError(f"--out {str(out)!r}: {error.strerror}; expected room for {size:,} bytes") from error
    return vectors
