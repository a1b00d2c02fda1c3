"""Checks that functions of this folder share."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling import ErnieMModel
from ..packed import PackedEncoder
from ..packed_heads import PackedHead
from ..tokenization import ErnieMTokenizer
from .tokens import PairTemplate


def check_parts(model: Any, model_class: type, tokenizer: object, batch_tokens: object) -> None:
    """Check what a callable is made of: `check_head`, and a whole number of at least 1 tokens a batch.

    Raises:
        TypeError: another class.
        ValueError: a head that takes no packed batches, or another number.
    """
    check_head(model, model_class, tokenizer)
    check_whole("batch_tokens", batch_tokens, 1)


def check_head(model: Any, model_class: type, tokenizer: object) -> None:
    """Check that a model has a head, and the tokenizer of its kind.

    Args:
        model: must be a `model_class`, or the head of another family of that name (BertForTokenClassification) whose
            encoder `padding_free` has changed; peft's wrapper of one passes, too, unless it puts tokens before the
            text.
        model_class: a head in `modeling`.
        tokenizer: an `ErnieMTokenizer` for ErnieM, one of transformers for another family.

    Raises:
        TypeError: another class.
        ValueError: a head that takes no packed batches.
    """
    wrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
    expected: type = ErnieMTokenizer
    if not isinstance(wrapped, model_class):
        if not (_has_name(wrapped, model_class) and isinstance(wrapped.base_model, PackedEncoder)):
            others = hasattr(transformers, f"Bert{_ending(model_class)}")
            hint = "; heads of other families are taken once padding_free has changed them" if others else ""
            raise TypeError(f"model must be an erniem_fast.{model_class.__name__}, got {_class_name(wrapped)}{hint}")
        expected = PreTrainedTokenizerBase
        reason = wrapped.reason_to_refuse_packed({}) if isinstance(wrapped, PackedHead) else None
        if reason is not None:
            name = type(wrapped).__name__
            simple = f"; expected {name}Simple" if name == "XLMForQuestionAnswering" else ""
            raise ValueError(f"model must take packed batches, got a {name}: {reason}{simple}")
    if not isinstance(tokenizer, expected):
        home = "a transformers" if expected is PreTrainedTokenizerBase else "an erniem_fast"
        raise TypeError(f"tokenizer must be {home}.{expected.__name__}, got {_class_name(tokenizer)}")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise TypeError("model must take packed batches, got a peft model that puts tokens of its own before each text")


def check_offsets(tokenizer: Any) -> None:
    """Raise a ValueError where a tokenizer can't tell the characters of its tokens."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer must give the characters of its tokens, as fast tokenizers do, got the slow "
            f"{_class_name(tokenizer)}"
        )


def _ending(model_class: type) -> str:
    """Name of a head without that of its family."""
    return model_class.__name__.removeprefix("ErnieM")


def _has_name(model: object, model_class: type) -> bool:
    """True for a head of transformers, or a subclass, that does what ErnieM's `model_class` does."""
    ending = _ending(model_class)
    return isinstance(model, PreTrainedModel) and any(
        cls.__module__.startswith("transformers.models.") and cls.__name__.removesuffix("Simple").endswith(ending)
        for cls in type(model).__mro__
    )


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


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
    check_texts(name, listed)
    return listed


def check_texts(name: str, texts: Sequence[object], first: int = 0) -> list[str]:
    """Check each of some texts, of which `first` is the first one's number.

    Returns:
        Their names in messages: "texts[3]".

    Raises:
        TypeError, ValueError: as `check_text`.
    """
    names = [f"{name}[{place}]" for place in range(first, first + len(texts))]
    for named, text in zip(names, texts, strict=True):
        check_text(named, text)
    return names


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


def encoder_of(model: Any) -> Any:
    """The encoder of a head, or of peft's wrapper of one."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model


def max_tokens(model: Any, tokenizer: Any, asked: int | None = None) -> int:
    """Most tokens of a row, special ones included: what model and tokenizer take, or `asked` where that is less."""
    most: int = min(encoder_of(model).limits.max_tokens, tokenizer.model_max_length)
    return most if asked is None else min(most, asked)


def template_of(model: Any, tokenizer: Any) -> PairTemplate:
    """How the tokenizer puts texts together for the model."""
    return PairTemplate.of(tokenizer, encoder_of(model).limits.token_ids.get("token_type_ids", 0) > 1)
