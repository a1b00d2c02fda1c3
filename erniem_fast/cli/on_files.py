"""Commands on files: the options that they share, and the job that runs."""

import inspect
from collections.abc import Callable
from typing import Any

from .job import Job, Work
from .options import (
    BatchTokensOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    IdColumnOption,
    InputArgument,
    ModelOption,
    RecordsOutOption,
    RestartOption,
)


def _first(source: InputArgument, model: ModelOption) -> None: ...


def _last(
    *,
    out: RecordsOutOption = "-",
    id_column: IdColumnOption = "id",
    input_format: FormatOption = None,
    batch_tokens: BatchTokensOption = "auto",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    restart: RestartOption = False,
) -> None: ...


def on_files(name: str) -> Callable[[Callable[..., Work]], Callable[..., None]]:
    """Decorator: the command of a function that makes `Work` of the options that are its own.

    The command takes the shared options besides, and runs the job. A shared one that the function takes, too, is as it
    says there.

    Args:
        name: of the command.
    """

    def decorate(make: Callable[..., Work]) -> Callable[..., None]:
        first, own, last = (inspect.signature(one).parameters for one in (_first, make, _last))
        parameters = {**first, **own, **{key: one for key, one in last.items() if key not in own}}

        def command(**values: Any) -> None:
            work = make(**{key: values[key] for key in own})
            Job.of(name, **{key: values[key] for key in (*first, *last)}).run(work)

        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters.values()]
        command.__doc__ = make.__doc__
        command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]  # typer reads it
        command.__annotations__ = {one.name: one.annotation for one in keywords}
        return command

    return decorate
