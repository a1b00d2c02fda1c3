"""`erniem-fast finetune TASK`: from files and a checkpoint to a folder with the best model.

A task's command is a function of the options that are its own, which gives the task; `finetunes` adds the others.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Annotated, Any

import typer

from ..training.presets import PRESETS, Settings, option
from ..training.tasks.base import Asked
from ..training.tasks.classify import PROBLEMS, Classification
from .distill_options import distilling, recipe_of
from .errors import InputError
from .options import DTYPES, ModelOption, parse_choice
from .training import PlaceOption, RestartOption, SkipBadLinesOption, exit_codes, leads, parse_place

app = typer.Typer(no_args_is_help=True, help="Fine-tune a checkpoint on files of examples.")
PACKAGES = ("accelerate", "sklearn", "seqeval", "torchmetrics")
"""What the extra `train` brings."""
DEFAULTS = Settings()


def _train(kinds: Iterable[str]) -> inspect.Parameter:
    """The argument of a task that reads files of some formats."""
    *others, last = (f".{kind}" for kind in kinds)
    text = f"UTF-8 {', '.join(others)} or {last} with the examples, each also with .gz."
    found = typer.Argument(metavar="TRAIN", help=text, show_default=False)
    return inspect.Parameter("train", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str, found])


def _first(
    *,
    model: ModelOption,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder to write: a new or an empty one.", show_default=False)
    ],
    dev: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Examples to evaluate on; the best model is kept.", show_default=False),
    ] = None,
) -> None: ...


NUMBERS: Mapping[str, tuple[type, str, str]] = {
    "epochs": (float, "N", "Passes over TRAIN."),
    "learning_rate": (float, "R", "Highest rate, that of the head."),
    "batch_tokens": (int, "N", "Most tokens of a batch; a longer text makes a batch alone."),
    "accumulate": (int, "N", "Batches of a step."),
    "max_length": (int, "N", "Most tokens of a text; otherwise what the model takes."),
    "warmup": (float, "SHARE", "Share of the steps over which the rate rises."),
    "layer_decay": (float, "F", "Factor of the rate from each layer to the one below."),
    "weight_decay": (float, "W", "Of all parameters but biases and norms."),
    "patience": (int, "N", "Evaluations without a better figure that end training."),
    "eval_steps": (int, "N", "Steps between evaluations; otherwise one an epoch."),
    "seed": (int, "N", "Of new parameters, the order of TRAIN, and dropout."),
}
"""Options for the hyper-parameters of `Settings`: type, name of the value, and help."""


def _number(name: str) -> inspect.Parameter:
    """An option that a preset may give, and whose default is that of `Settings`."""
    kind, metavar, text = NUMBERS[name]
    default = getattr(DEFAULTS, name)
    otherwise = "" if default is None else f" Otherwise the preset's, or {default:g}."
    found = typer.Option(option(name), metavar=metavar, help=text + otherwise, show_default=False)
    annotation: Any = Annotated[kind | None, found]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _last(
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRESETS),
            help="Hyper-parameters of ERNIE-M's authors for a data set; other options go first.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar=f"auto|{'|'.join(DTYPES)}",
            help="What to compute in, with weights in float32; auto: bfloat16 where that is fast, else float32.",
        ),
    ] = "auto",
    device: PlaceOption = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations again in backward: less memory.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model by torch.compile.")] = False,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Train a new head even where the checkpoint has one.")
    ] = False,
    skip_bad_lines: SkipBadLinesOption = False,
    restart: RestartOption = False,
) -> None: ...


def finetunes(name: str, has_scores: bool = True) -> Callable[[Callable[..., Asked]], Callable[..., None]]:
    """Decorator: the command of a function that gives a task from the options that are its own.

    Args:
        name: of the command.
        has_scores: the task's head has scores, which can be learned of a teacher.
    """

    def decorate(make: Callable[..., Asked]) -> Callable[..., None]:
        first, own, last, taught = (inspect.signature(one).parameters for one in (_first, make, _last, distilling))
        if not has_scores:
            taught = MappingProxyType({})
        usual = make(**{key: one.default for key, one in own.items()})
        first = MappingProxyType({"train": _train(usual.task.kinds), **first})
        numbers = {name: _number(name) for name in NUMBERS}
        parameters = {**first, **own, **numbers, **last, **taught}

        def command(**values: Any) -> None:
            asked = make(**{key: values[key] for key in own})
            _run(asked, {key: values[key] for key in (*first, *numbers, *last)}, {key: values[key] for key in taught})

        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters.values()]
        command.__doc__ = make.__doc__
        command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # typer reads it
        command.__annotations__ = {one.name: one.annotation for one in keywords}
        app.command(name)(command)
        return command

    return decorate


def _run(asked: Asked, values: dict[str, Any], taught: dict[str, Any]) -> None:
    """Fine-tune; the figures go to stdout as JSON, everything else to stderr."""
    lacking = [package for package in PACKAGES if find_spec(package) is None]
    if lacking:
        raise InputError(
            f"finetune needs the package {lacking[0]}, which is not installed; "
            f"expected `pip install 'erniem_fast[train]'`"
        )
    parse_choice("--dtype", values["dtype"], ("auto", *DTYPES))
    parse_place(values["device"])
    if values["preset"] is not None:
        parse_choice("--preset", values["preset"], PRESETS)
    from ..training.finetune import fine_tune

    recipe = recipe_of(taught, DEFAULTS.seed if values["seed"] is None else values["seed"])
    settings = {name: values.pop(name) for name in NUMBERS}
    with exit_codes() as say:
        figures = fine_tune(asked, settings=settings, recipe=recipe, say=say, **values)
    if leads():
        typer.echo(json.dumps(figures))


@finetunes("classify")
def classify_command(
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column with the texts.")] = "text",
    text_pair_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column with the second texts of pairs.", show_default=False),
    ] = None,
    label_column: Annotated[
        str, typer.Option(metavar="NAME", help="Column with the labels, lists of labels, or numbers.")
    ] = "label",
    problem: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PROBLEMS),
            help="single: one label a text; multi: a list of labels; regression: a number. Otherwise multi where "
            "labels are lists, else single; numbers that are not whole need it.",
            show_default=False,
        ),
    ] = None,
    pos_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column with the parts of speech of the words between a text's spaces, for --augment pos.",
            show_default=False,
        ),
    ] = None,
) -> Asked:
    """Learn labels of texts, or of pairs of texts; evaluated by accuracy and macro-F1.

    With --problem multi also by micro-F1, with --problem regression by Pearson's and Spearman's correlations.

    Texts of more tokens than --max-length are cut, and counted.

    DIR is put in place as a whole at the end. A run that was stopped is gone on with by the same command.
    """
    if problem is not None:
        parse_choice("--problem", problem, PROBLEMS)
    return Asked(
        Classification,
        {
            "text_column": text_column, "text_pair_column": text_pair_column, "label_column": label_column,
            "problem": problem, "pos_column": pos_column,
        },
    )  # fmt: skip
