"""Names of classes: what the data says, and what the head of a checkpoint has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...files.errors import InputError
from ...files.records import listing
from .base import HeadMismatchError


class Labels(NamedTuple):
    """Classes.

    Attributes:
        names: by their numbers.
        numbers: by the names that the data has for them.
    """

    names: tuple[str, ...]
    numbers: Mapping[str, int]

    def config_changes(self) -> dict[str, Any]:
        """Fields of the model's configuration."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }


def settle_labels(found: Iterable[str], held: Sequence[str] | None, least: int = 2) -> Labels:
    """The classes of data, in the order of the head where there is one.

    Whole numbers as names are taken for places in a head that has other names; `places` says so.

    Args:
        found: names in the data.
        held: names of the head's labels; None: a new head, with the names in order.
        least: number of classes that something can be learned of.

    Raises:
        HeadMismatchError: the head lacks some.
        InputError: there are fewer than `least` classes.
    """
    distinct = set(found)
    whole = all(name.isascii() and name.isdigit() for name in distinct)
    if held is None:
        names = tuple(sorted(distinct, key=lambda name: (int(name), name) if whole else name))
        if len(names) < least:
            raise InputError(f"TRAIN: all samples have the label {names[0]!r}; expected at least {least} labels")
        return Labels(names, {name: number for number, name in enumerate(names)})
    if distinct <= set(held):
        return Labels(tuple(held), {name: number for number, name in enumerate(held)})
    if whole and all(int(name) < len(held) for name in distinct):
        return Labels(tuple(held), {name: int(name) for name in distinct})
    raise HeadMismatchError(f"the data has the labels {listing(sorted(distinct))}, the head {listing(list(held))}")


def places(labels: Labels) -> list[str]:
    """What is to be said of numbers in the data that are taken for places in a head; empty where there are none."""
    taken = sorted((number, name) for name, number in labels.numbers.items() if labels.names[number] != name)
    if not taken:
        return []
    shown = ", ".join(name for _, name in taken[:8]) + (f" and {len(taken) - 8} more" if len(taken) > 8 else "")
    return [f"labels {shown} are taken for places: {listing([labels.names[number] for number, _ in taken])}"]


def unlearned(train: Iterable[str], dev: Iterable[str]) -> list[str]:
    """What is to be said of labels that are evaluated and never learned; empty where all are in TRAIN."""
    lacking = sorted(set(dev) - set(train))
    return [f"--dev has labels that TRAIN lacks: {listing(lacking)}"] if lacking else []
