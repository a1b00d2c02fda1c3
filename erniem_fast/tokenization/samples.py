"""The texts that a caller gave: one or a batch, alone or in pairs, as strings, words or token ids. Needs no torch."""

from typing import Any, NamedTuple


class Words(NamedTuple):
    """A text as a list of its words."""

    words: list[str]


Source = str | Words | list[int]
"""A text: a string, its words, or its token ids."""


def read_samples(
    text: Any, text_pair: Any = None, is_split_into_words: bool = False
) -> tuple[list[Source], list[Source | None] | None, bool]:
    """First texts, the second text of each or None (None for all: there are no pairs), and whether it is a batch.

    Args:
        text: a text, or a list of texts, of pairs, or of lists of one text. Without `is_split_into_words` a text is
            a str or a list of token ids, with it also a list of words.
        text_pair: the second text, or a list of them; None without, or if `text` has pairs.
        is_split_into_words: texts are lists of words.

    Raises:
        ValueError: something else was given.
    """
    is_list = isinstance(text, (list, tuple))
    if is_split_into_words:
        is_batched = is_list and len(text) > 0 and isinstance(text[0], (list, tuple))
    else:
        is_batched = is_list and not (text and isinstance(text[0], int))
    if not is_batched:
        first = _source(text, "text", is_split_into_words)
        if text_pair is None:
            return [first], None, False
        return [first], [_source(text_pair, "text_pair", is_split_into_words)], False
    if text_pair is not None and not (isinstance(text_pair, (list, tuple)) and len(text_pair) == len(text)):
        given = f"{len(text_pair)} texts" if isinstance(text_pair, (list, tuple)) else type(text_pair).__name__
        raise ValueError(f"text_pair: expected a batch of {len(text)} texts, as many as text has, got {given}")
    if text_pair is None and not is_split_into_words and set(map(type, text)) == {str}:  # nothing to look at one by one
        return [*text], None, True
    firsts: list[Source] = []
    seconds: list[Source | None] = []
    for i, item in enumerate(text):
        name, pair = f"text[{i}]", None if text_pair is None else text_pair[i]
        if pair is None and _is_pair(item, is_split_into_words):
            item, pair = item
        elif not is_split_into_words and _is_of_strings(item):
            if len(item) != 1:
                raise ValueError(f"{name}={_short(item)}: expected a text or a pair of texts, got {len(item)} texts")
            item = item[0]
        firsts.append(_source(item, name, is_split_into_words))
        seconds.append(None if pair is None else _source(pair, f"text_pair[{i}]", is_split_into_words))
    return firsts, seconds if any(second is not None for second in seconds) else None, True


def _is_of_strings(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) > 0 and all(isinstance(part, str) for part in item)


def _is_pair(item: Any, is_split_into_words: bool) -> bool:
    accepted = (list, tuple) if is_split_into_words else (str, list, tuple)
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(part, accepted) for part in item)


def _source(value: Any, name: str, is_split_into_words: bool) -> Source:
    """`value` if it is a text.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str):
        return Words([value]) if is_split_into_words else value
    if isinstance(value, (list, tuple)):
        accepted = str if is_split_into_words and not (value and isinstance(value[0], int)) else int
        wrong = next((i for i, part in enumerate(value) if not isinstance(part, accepted)), None)
        if wrong is None and (value or is_split_into_words):
            return Words([*value]) if accepted is str else [*value]
        if wrong is not None and not isinstance(value[wrong], str):  # a str is right elsewhere, not in a list
            name, value = f"{name}[{wrong}]", value[wrong]
    accepted_kinds = "a str or a list of token ids" + (", or of words" if is_split_into_words else "")
    raise ValueError(f"{name}={_short(value)}: expected {accepted_kinds}, got {type(value).__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
