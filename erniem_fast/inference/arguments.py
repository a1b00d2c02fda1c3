"""Checks that functions of this folder share."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from ..modeling import ErnieMModel
from ..packed import PackedEncoder
from ..tokenization import ErnieMTokenizer


def check_parts(model: Any, model_class: type, tokenizer: object, batch_tokens: object) -> None:
    """Check what a callable is made of.

    Args:
        model: must be a `model_class`; peft's wrapper of one passes, too, unless it puts tokens before the text.
        model_class: a head in `modeling`.
        tokenizer: must be an `ErnieMTokenizer`.
        batch_tokens: must be a whole number of at least 1.

    Raises:
        TypeError: another class.
        ValueError: another number.
    """
    wrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, value, cls in (("model", wrapped, model_class), ("tokenizer", tokenizer, ErnieMTokenizer)):
        if not isinstance(value, cls):
            got = f"{type(value).__module__}.{type(value).__name__}"
            raise TypeError(f"{name} must be an erniem_fast.{cls.__name__}, got {got}")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise TypeError("model must take packed batches, got a peft model that puts tokens of its own before each text")
    check_whole("batch_tokens", batch_tokens, 1)


def check_encoder(model: object) -> None:
    """Raise a TypeError where the model is no padding-free encoder by itself."""
    if not isinstance(model, ErnieMModel | PackedEncoder):
        raise TypeError(
            f"model must be an ErnieMModel, or an encoder of transformers that erniem_fast.padding_free has changed, "
            f"got {type(model).__module__}.{type(model).__name__}"
        )


def check_eval(model: Any) -> None:
    """Raise a ValueError where the model is in training mode."""
    if model.training:
        raise ValueError("model must be in eval mode, or dropout makes the results random; got training mode")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise a ValueError where a number is not whole, or not in [least, most]."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        accepted = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be a whole number {accepted}, got {value!r}")


def list_texts(name: str, texts: object) -> list[str]:
    """Texts as a list, each of them checked.

    Args:
        name: the argument's name in messages.
        texts: a str, or any number of them.

    Raises:
        TypeError: anything else.
        ValueError: a text with a lone surrogate.
    """
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping):
        raise TypeError(f"{name} must be a str, or any number of them, got {type(texts).__name__}")
    listed = [texts] if isinstance(texts, str) else list(texts)
    for place, text in enumerate(listed):
        check_text(f"{name}[{place}]", text)
    return listed


def check_text(name: str, text: object) -> None:
    """Refuse what is no str, and text with lone surrogates, before any work is done.

    Raises:
        TypeError: it is no str.
        ValueError: it holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {type(text).__name__}")
    check_encodable(name, text)


def check_encodable(name: str, text: str) -> None:
    """Raise a ValueError that names the first lone surrogate of a text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"{text[error.start]!r} at {error.start}"
        raise ValueError(f"{name} holds a lone surrogate, {found}; expected text that UTF-8 can encode") from error


def max_tokens(model: Any, tokenizer: ErnieMTokenizer) -> int:
    """Most tokens of a row, special ones included."""
    most: int = min(model.config.max_tokens, tokenizer.model_max_length)
    return most
