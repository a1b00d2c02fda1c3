"""Schemas of information extraction, and the prompts that put them to a UIE model.

prompt_of(parse_schema({"人物": ["出生地"]})[0].children[0], "李白", "zh").text  # 李白的出生地

Prompts are those of PaddleNLP's UIE: Lu et al., arXiv 2203.12277, as spans of prompt and text.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

from .arguments import check_encodable

LANGUAGES = ("zh", "en")
"""Languages of prompts. Texts may be in any language."""

MAX_NESTING = 100
MAX_NAMES = 10_000
ACCEPTED = "expected a name, a list of names and dicts, or a dict from names to schemas"

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_WITH_BRACKET = re.compile(r"([^\[]*)(\[.*\])", re.DOTALL)

Option = tuple[int, int]


class Node(NamedTuple):
    """A name of a schema, and what to ask about each span found for it.

    Attributes:
        name: the name as it was given; key of the results.
        stem: the name without its bracket.
        bracket: "[a,b]" at the end of the name, or "".
        options: places of the options in the bracket; none, or at least two.
        children: names asked about each span.
    """

    name: str
    stem: str
    bracket: str
    options: tuple[Option, ...]
    children: tuple["Node", ...]


class Prompt(NamedTuple):
    """What a model is asked about a text.

    Attributes:
        text: the prompt, with the letters and punctuation of ASCII in the place of their full-width forms.
        options: places of the options in `text`, if the prompt asks to choose among them.
        names: the options as the schema writes them.
    """

    text: str
    options: tuple[Option, ...]
    names: tuple[str, ...]


def prompt_of(node: Node, parent: str | None, language: str) -> Prompt:
    """Ask for a name in a text, or for a name of a span: "X的Y" in Chinese, "Y of X" in English.

    Args:
        node: the name to ask for.
        parent: text of the span, X; None at the first level.
        language: one of `LANGUAGES`.
    """
    if parent is None:
        text = node.stem + node.bracket
    elif language == "zh":
        text = f"{parent}的{node.stem}{node.bracket}"
    else:
        text = f"{node.stem.rstrip()} of {parent}" + (f" {node.bracket}" if node.bracket else "")
    start = len(text) - len(node.bracket)
    options = tuple((start + first, start + end) for first, end in node.options)
    return Prompt(half_width(text), options, tuple(text[first:end] for first, end in options))


def half_width(text: str) -> str:
    """A text with the letters and punctuation of ASCII in the place of their full-width forms, as long as before."""
    return text.translate(_HALF_WIDTH)


def parse_schema(schema: object) -> tuple[Node, ...]:
    """Read a schema: a name, a list of names and dicts, or a dict whose values are schemas, None where they end.

    Raises:
        TypeError: anything else in the place of a name or a schema.
        ValueError: nothing at all, an empty name, a name twice on one level, an empty option or one twice, a schema
            that holds itself, more than `MAX_NESTING` lists and dicts inside each other, more than `MAX_NAMES` names.
    """
    if schema is None:
        raise TypeError(f"schema is None; {ACCEPTED}")
    nodes = _parse(schema, "schema", (), count(1))
    if not nodes:
        raise ValueError(f"schema is empty; {ACCEPTED}")
    return nodes


def _parse(schema: object, path: str, above: tuple[int, ...], numbers: Iterator[int]) -> tuple[Node, ...]:
    """Read what lies at `path`; `above` holds the ids of the lists and dicts around it, `numbers` counts the names."""
    if len(above) > MAX_NESTING:
        raise ValueError(f"schema nests more than {MAX_NESTING} lists and dicts; expected fewer")
    nodes: dict[str, Node] = {}
    for name, value, place, inside in _entries(schema, path, above):
        if next(numbers) > MAX_NAMES:  # one dict in several places counts as often, and doubles on every level
            raise ValueError(f"schema holds more than {MAX_NAMES} names; expected fewer")
        if name in nodes:
            raise ValueError(f"{path} holds the name {name!r} twice; expected each name once on a level")
        stem, bracket, options = _split(name, place)
        nodes[name] = Node(name, stem, bracket, options, _parse(value, place, inside, numbers))
    return tuple(nodes.values())


def _entries(schema: object, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any, str, tuple[int, ...]]]:
    """Names, what lies below them, where they lie, and what is around that."""
    if schema is None:
        return
    if isinstance(schema, str):
        yield schema, None, path, above
        return
    if not isinstance(schema, list | tuple | Mapping):
        raise TypeError(f"{path} is of type {type(schema).__name__}; {ACCEPTED}")
    if id(schema) in above:
        raise ValueError(f"{path} is a schema that holds itself; expected one that ends")
    inside = (*above, id(schema))
    if isinstance(schema, Mapping):
        for name, value in schema.items():
            if not isinstance(name, str):
                raise TypeError(f"{path} has a key of type {type(name).__name__}; expected names")
            yield name, value, f"{path}[{name!r:.40}]", inside
    else:
        for index, item in enumerate(schema):
            if not isinstance(item, str | Mapping):
                kind = type(item).__name__
                raise TypeError(f"{path}[{index}] is of type {kind}; expected a name, or a dict from names to schemas")
            yield from _entries(item, f"{path}[{index}]", inside)


def _split(name: str, path: str) -> tuple[str, str, tuple[Option, ...]]:
    """Stem, bracket and options of a name."""
    text = name.strip()
    if not text:
        raise ValueError(f"{path} has the name {name!r}; expected one that is not empty")
    check_encodable(f"{path} has a name that", text)
    match = _WITH_BRACKET.fullmatch(half_width(text))
    if match is None:
        return text, "", ()
    stem, bracket = text[: match.end(1)], text[match.end(1) :]
    places, start = {}, 1
    parts = match[2][1:-1].split(",")
    for part in parts:
        option = part.strip()
        first = start + part.index(option)
        places[option] = first, first + len(option)
        start += len(part) + 1
    if len(parts) == 1:  # a remark, such as "price [EUR]"
        return stem, bracket, ()
    if not stem.strip() or "" in places or len(places) < len(parts):
        raise ValueError(f"{path} has the name {name!r}; expected name[option,option] with no option empty or twice")
    return stem, bracket, tuple(places.values())
