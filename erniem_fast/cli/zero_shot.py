"""`erniem-fast zero-shot`: texts to labels chosen on the command line."""

from typing import Annotated

import typer

from ..inference.arguments import list_texts
from ..inference.loading import load_config, load_head, load_tokenizer
from ..inference.runner import Runner
from ..inference.runs import compute_all, tokenize_all
from ..inference.zero_shot import HYPOTHESIS_TEMPLATE, ZeroShot, fill_template, split_labels
from ..modeling import ErnieMForSequenceClassification
from .errors import InputError, say_on_stderr
from .files import check_distinct, check_texts, read_texts, record_file
from .options import (
    BatchTokensOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    TextsArgument,
    parse_count,
    parse_device,
    parse_dtype,
)


def zero_shot_command(
    texts: TextsArgument,
    model: ModelOption,
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Labels between commas.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="One label, which may hold commas; can be repeated.", show_default=False),
    ] = None,
    hypothesis_template: Annotated[
        str, typer.Option(metavar="TEXT", help="The hypothesis, in any language, with {} in the place of the label.")
    ] = HYPOTHESIS_TEMPLATE,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Any number of labels may fit: each is scored by itself.")
    ] = False,
    out: Annotated[str, typer.Option(metavar="FILE", help="The .jsonl file to write, or - for stdout.")] = "-",
    batch_tokens: BatchTokensOption = "8192",
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Say which of the labels fits each line of TEXTS.

    Writes a line of JSON a text, in order: {"sequence": TEXT, "labels": [BEST, ...], "scores": [...]}.

    An empty line gets no labels. Texts of more tokens than the model takes are cut.

    FILE is written at once at the end, or not at all.
    """
    weights = parse_dtype(dtype)
    names = (split_labels(labels) if labels is not None else []) + (label or [])
    if not names:
        raise InputError("--labels: expected at least one label, with --labels A,B,... or --label LABEL")
    try:
        fill_template(hypothesis_template, list_texts("candidate_labels", names))
    except ValueError as error:
        raise _input_error(error) from error
    tokens_per_batch = parse_count("--batch-tokens", batch_tokens)
    place = parse_device(device)
    check_texts(texts)
    check_distinct(texts, out)
    with record_file(out) as file:
        lines = read_texts(texts)
        config = load_config(model)
        tokenizer = load_tokenizer(model, config)
        head = load_head(model, ErnieMForSequenceClassification, config, weights, place)
        try:
            task = ZeroShot(
                head, tokenizer, Runner(head, tokens_per_batch), candidate_labels=names,
                hypothesis_template=hypothesis_template, multi_label=multi_label,
            )  # fmt: skip
            results = list(compute_all(task, tokenize_all(task, lines, True), "Classifying", True))
        except ValueError as error:
            raise _input_error(error) from error
        for result in results:
            file.write(result)
    if task.truncated:
        say_on_stderr(f"{task.truncated} of {len(lines)} texts were cut to leave room for the hypotheses")


def _input_error(error: ValueError) -> InputError:
    """Name the option behind the argument that a message names."""
    options = {"hypothesis_template": "--hypothesis-template", "candidate_labels": "--labels"}
    option = next((option for name, option in options.items() if str(error).startswith(name)), "--model")
    return InputError(f"{option}: {error}")
