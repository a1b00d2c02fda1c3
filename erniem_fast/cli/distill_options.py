"""Options of `erniem-fast finetune` for learning from a teacher."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from .errors import InputError

TEMPERATURE, WEIGHT, COPIES = 2.0, 0.5, 3


def distilling(
    *,
    distill: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID",
            help="A fine-tuned teacher, with the tokenizer of --model: learn its scores besides the labels.",
            show_default=False,
        ),
    ] = None,
    student_layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Layers of --model to keep, evenly spaced; otherwise all.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help=f"Of the teacher's and the student's scores. [default: {TEMPERATURE:g}]",
            show_default=False,
        ),
    ] = None,
    distill_weight: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            help=f"Share of the loss that is the teacher's; the rest is the labels'. [default: {WEIGHT:g}]",
            show_default=False,
        ),
    ] = None,
    layer_map: Annotated[
        str | None,
        typer.Option(
            metavar="S:T,...",
            help="Learn hidden states, too: 1:2,2:4 has the student's layer 1 learn the teacher's 2, and 2 learn 4.",
            show_default=False,
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="unk=P,pos=P,ngram=P",
            help="Add copies of the texts to classify that the teacher alone labels: shares of words that become "
            "unknown, or another word of the same part of speech, and of copies cut to a run of words.",
            show_default=False,
        ),
    ] = None,
    augment_copies: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Copies of each text. [default: {COPIES}]", show_default=False),
    ] = None,
) -> None:
    """Take the options, in order."""


def recipe_of(given: Mapping[str, Any], seed: int) -> Any:
    """The recipe that the options ask for, or None.

    Args:
        given: values of the options by parameter.
        seed: of the copies.

    Raises:
        InputError: a value that can't be used, or an option without the one that it is about.
    """
    teacher = given.get("distill")
    lonely = [name for name, value in given.items() if value is not None]
    if teacher is None:
        if lonely:
            raise InputError(f"--{lonely[0].replace('_', '-')}: expected --distill with a teacher besides")
        return None
    if given["augment"] is None and given["augment_copies"] is not None:
        raise InputError("--augment-copies: expected --augment besides")
    from ..training.augment import Augmentation
    from ..training.distilling import DistillationRecipe

    temperature, weight = given["temperature"], given["distill_weight"]
    augmentation = None
    if given["augment"] is not None:
        copies = COPIES if given["augment_copies"] is None else given["augment_copies"]
        if copies < 1:
            raise InputError(f"--augment-copies {copies}: expected a whole number of at least 1")
        try:
            augmentation = Augmentation.parse(given["augment"], copies, seed)
        except ValueError as error:
            raise InputError(f"--augment {given['augment']!r}: {error}") from error
    return DistillationRecipe(
        teacher,
        student_layers=given["student_layers"],
        temperature=TEMPERATURE if temperature is None else temperature,
        weight=WEIGHT if weight is None else weight,
        layer_map=given["layer_map"],
        augmentation=augmentation,
    )
