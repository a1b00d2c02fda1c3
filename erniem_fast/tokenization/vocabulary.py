"""Files of a tokenizer: the SentencePiece model, the vocabulary, and how long a text may be. Needs no torch."""

import json
import logging
import os
from typing import Any

import sentencepiece as spm
from transformers.tokenization_utils_base import LARGE_INTEGER

from ..configuration import POSITION_OFFSET

logger = logging.getLogger(__name__)

MAX_TOKENS = 512
"""Largest number of tokens, special ones included, that the published models take."""


def check_file(argument: str, path: str | os.PathLike, accepted: str) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"{argument}={path!r}: expected the path of {accepted}")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{argument}={os.fspath(path)!r}: no such file; expected {accepted}")


def load_vocab(path: str | os.PathLike) -> list[str]:
    """Tokens of a UTF-8 file with one token a line; a token's id is its line number, from 0."""
    check_file("vocab_file", path, "a vocab.txt, one token a line")
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise ValueError(f"vocab_file={os.fspath(path)!r}: expected UTF-8 text ({error})") from error


def load_sentencepiece(proto: bytes, source: str, kwargs: dict[str, Any]) -> spm.SentencePieceProcessor:
    """SentencePiece model from its serialized form; `source` names it in errors."""
    try:
        processor = spm.SentencePieceProcessor(**kwargs)
    except TypeError as error:
        accepted = f"keyword arguments of sentencepiece.SentencePieceProcessor ({error})"
        raise ValueError(f"sp_model_kwargs={kwargs!r}: expected {accepted}") from error
    try:
        processor.LoadFromSerializedProto(proto)
    except RuntimeError as error:
        raise ValueError(f"{source}: expected a SentencePiece model ({error})") from error
    return processor


def _read_json(path: str | None) -> dict[str, Any]:
    """A JSON file's object; empty if there is no such file."""
    if path is None or not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return dict(json.load(file))


def max_length_of_folder(files: dict[str, str | None]) -> int:
    """`model_max_length` of a folder's tokenizer_config.json, cut to what the folder's model takes."""
    given = _read_json(files.get("tokenizer_config_file")).get("model_max_length")
    model_file = files.get("sentencepiece_model_ckpt")
    config = _read_json(model_file and os.path.join(os.path.dirname(model_file), "config.json"))
    limit = config.get("max_position_embeddings", MAX_TOKENS + POSITION_OFFSET) - POSITION_OFFSET
    if given is not None and limit < given < LARGE_INTEGER:
        logger.warning(
            "model_max_length is %d, the most tokens that the model takes; tokenizer_config.json has %d. "
            "The argument model_max_length of from_pretrained overrides both.", limit, given,
        )  # fmt: skip
    return limit if given is None else min(given, limit)
