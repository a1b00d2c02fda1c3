"""`erniem-fast pretrain`: masked language modelling on texts and translated pairs."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..auto_map import MODEL_TYPE
from ..configuration import ErnieMConfig
from ..inference.loading import load_config, load_tokenizer, load_trainable, model_files
from ..tokenization import ErnieMTokenizer
from .errors import InputError
from .options import DTYPES as ALL_DTYPES
from .options import parse_choice, parse_count
from .training import PlaceOption, RestartOption, SkipBadLinesOption, exit_codes, leads, parse_place

DTYPES = ("auto", *ALL_DTYPES)
OBJECTIVES = ("mmlm", "tlm", "camlm", "btmlm", "mlm-nsp", "mlm", "clm")
SIZES: Mapping[str, Mapping[str, Any]] = {
    "mini": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "small": {"num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""Sizes of new models, by name; base and large are ERNIE-M's."""
FILES = "each also with .gz, or the folder of a dataset"


def pretrain_command(
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder to write: the model, checkpoints, metrics.jsonl.",
                          show_default=False)
    ],
    steps: Annotated[str, typer.Option(metavar="N", help="Updates of the weights.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR|ID", help="Checkpoint to begin with, with its tokenizer.",
                     show_default=False),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar=f"{'|'.join(SIZES)}|FILE", help="A new ErnieM instead: a size, or a config.json.",
                     show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder with the new model's tokenizer.", show_default=False)
    ] = None,
    parallel: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help=f"Translated pairs: .tsv or .jsonl, {FILES}. May be given again.",
                     show_default=False),
    ] = None,
    monolingual: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help=f"Texts: .txt, .tsv or .jsonl, {FILES}. May be given again.",
                     show_default=False),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(metavar="NAME=WEIGHT,...", help=f"Shares of the batches, of {', '.join(OBJECTIVES)}. Otherwise "
                     "mmlm for texts, tlm and camlm for pairs, in equal shares; of XLM mlm or clm, and tlm.",
                     show_default=False),
    ] = None,
    parallel_columns: Annotated[
        str, typer.Option(metavar="A,B", help="Columns of pairs in .jsonl and datasets.")
    ] = "source,target",
    text_column: Annotated[str, typer.Option(metavar="NAME", help="Column of texts there.")] = "text",
    evaluation: Annotated[
        list[str] | None,
        typer.Option("--eval", metavar="FILE", help="Held-out texts or pairs, whose loss is logged. May be given "
                     "again.", show_default=False),
    ] = None,
    batch_tokens: Annotated[str, typer.Option(metavar="N", help="Most tokens of a batch, on each process.")] = "8192",
    accumulation: Annotated[str, typer.Option(metavar="N", help="Batches of a step.")] = "1",
    learning_rate: Annotated[
        float, typer.Option(metavar="RATE", help="The greatest; after the warm-up it falls to 0.")
    ] = 1e-4,
    warmup: Annotated[
        float, typer.Option(metavar="N", help="Steps of the warm-up; below 1 their share.")
    ] = 0.1,
    weight_decay: Annotated[float, typer.Option(metavar="RATE", help="Of all weights but biases and norms.")] = 0.01,
    mask_probability: Annotated[float, typer.Option(metavar="P", help="That a token is to be predicted.")] = 0.15,
    whole_word: Annotated[bool, typer.Option("--whole-word", help="Mask words rather than tokens.")] = False,
    max_length: Annotated[
        str | None,
        typer.Option(metavar="N", help="Most tokens of a sequence: longer texts are split, longer pairs cut. "
                     "Otherwise what the model takes.", show_default=False),
    ] = None,
    log_every: Annotated[str, typer.Option(metavar="N", help="Steps between two lines of metrics.jsonl.")] = "10",
    save_every: Annotated[str, typer.Option(metavar="N", help="Steps between two checkpoints.")] = "1000",
    eval_every: Annotated[str, typer.Option(metavar="N", help="Steps between two evaluations.")] = "1000",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order, the masks, dropout and new weights.")] = 0,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="|".join(DTYPES), help="What to compute in; auto: bfloat16 where that is fast, else float32."
        ),
    ] = "auto",
    device: PlaceOption = "auto",
    skip_bad_lines: SkipBadLinesOption = False,
    restart: RestartOption = False,
) -> None:  # fmt: skip
    """Pre-train ErnieM on texts and translated pairs by the objectives of ERNIE-M (arXiv 2012.15674).

    Other families learn mmlm, tlm and camlm, too; BERT and ERNIE 1.0 also masked words with next sentences (mlm-nsp,
    texts of a sentence a line, blank lines between documents); XLM its own mlm and tlm, or clm, with languages.

    DIR is put in place as a whole at the end. A run that was stopped is gone on with by the same command, with the
    losses that it would have had, bit for bit. Ctrl-C ends a run behind the step under way, with its state saved.

    On several devices: torchrun --standalone --nproc-per-node 2 --no-python erniem-fast pretrain ...
    """
    if find_spec("accelerate") is None:
        raise InputError("pretrain: needs the package accelerate; expected `pip install 'erniem_fast[train]'`")
    from ..training.family_objectives import check_objectives, language_ids, objectives_of
    from ..training.pretrain import pretrain
    from ..training.pretraining_settings import Corpora, PretrainingSettings, corpora_of
    from ..training.streams import MONOLINGUAL, PARALLEL, Columns

    parse_choice("--dtype", dtype, DTYPES)
    place = parse_place(device)
    columns = tuple(parallel_columns.split(","))
    if len(columns) != 2 or not all(columns):
        raise InputError(f"--parallel-columns {parallel_columns!r}: expected the names of two columns, A,B")
    settings = PretrainingSettings(
        steps=parse_count("--steps", steps),
        batch_tokens=parse_count("--batch-tokens", batch_tokens),
        accumulation=parse_count("--accumulation", accumulation),
        learning_rate=_positive("--learning-rate", learning_rate),
        warmup=_at_least_zero("--warmup", warmup),
        weight_decay=_at_least_zero("--weight-decay", weight_decay),
        seed=_seed("--seed", seed),
        mask_probability=_probability("--mask-probability", mask_probability),
        whole_word=whole_word,
        max_length=None if max_length is None else parse_count("--max-length", max_length),
        skip_bad_lines=skip_bad_lines,
        dtype=dtype,
        log_every=parse_count("--log-every", log_every),
        save_every=parse_count("--save-every", save_every),
        eval_every=parse_count("--eval-every", eval_every),
    )
    pairs, texts = Columns(columns, PARALLEL.languages), Columns((text_column,), MONOLINGUAL.languages)
    corpora = Corpora(parallel or (), monolingual or (), pairs, texts)
    torch.manual_seed(seed)
    with exit_codes() as say:
        found = _config_of(model, config, tokenizer)
        asked = _objectives(objectives, objectives_of(found), bool(parallel), bool(monolingual))
        names = [name for name, weight in asked.items() if weight]
        check_objectives(found, names)
        settings = replace(settings, objectives=asked)
        spoken = found.model_type == "xlm" and bool(language_ids(found))
        held_out = corpora_of(evaluation, pairs, texts, spoken) if evaluation else None
        made, words, about = _model(model, config, tokenizer, found, names, say)
        outcome = pretrain(
            made, words, out, settings, corpora, held_out, device=place.type, restart=restart, about=about, say=say
        )
    if outcome.cut:
        say(f"{outcome.cut:,} {'pair was' if outcome.cut == 1 else 'pairs were'} cut to the longest sequence")
    if outcome.bad_lines:
        say(f"{outcome.bad_lines:,} bad {'line was' if outcome.bad_lines == 1 else 'lines were'} left out")
    if leads():
        typer.echo(json.dumps({"steps": outcome.steps, "tokens": outcome.tokens, **outcome.figures}))


def _objectives(value: str | None, learned: Iterable[str], parallel: bool, monolingual: bool) -> dict[str, float]:
    """Weights of the objectives."""
    if value is None:
        usual = ("mmlm", "mlm", "clm") * monolingual + ("tlm", "camlm") * parallel
        if not usual:
            raise InputError("--parallel, --monolingual: neither is given; expected at least one FILE")
        names = [name for name in learned if name in usual]
        if not names:
            raise InputError("--parallel: the model learns from texts alone; expected --monolingual FILE")
        return dict.fromkeys(names, 1.0)
    weights: dict[str, float] = {}
    for item in value.split(","):
        name, _, weight = item.partition("=")
        if name in weights:
            raise InputError(f"--objectives {value!r}: has {name} twice; expected each name once")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = -1.0
        if name not in OBJECTIVES or not 0 <= weights[name] < float("inf"):
            raise InputError(
                f"--objectives {item!r}: expected NAME=WEIGHT with a name of {', '.join(OBJECTIVES)} and a weight of "
                f"at least 0"
            )
    if not any(weights.values()):
        raise InputError(f"--objectives {value!r}: all weights are 0; expected one above")
    return weights


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise InputError(f"{name} {value}: expected a number above 0")
    return value


def _at_least_zero(name: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} {value}: expected a number of at least 0")
    return value


def _seed(name: str, value: int) -> int:
    if not 0 <= value < 2**32:
        raise InputError(f"{name} {value}: expected a whole number from 0 to {2**32 - 1}")
    return value


def _probability(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise InputError(f"{name} {value}: expected a probability above 0, at most 1")
    return value


def _config_of(model: str | None, config: str | None, tokenizer: str | None) -> Any:
    """Configuration of the checkpoint to begin with; of a new model no more than the family."""
    if (model is None) == (config is None):
        raise InputError("--model, --config: expected one of them: a checkpoint, or the size of a new model")
    if model is not None and tokenizer is not None:
        raise InputError(f"--tokenizer {tokenizer!r}: is for a new model; --model brings its own")
    return ErnieMConfig() if model is None else load_config(model, any_family=True)


def _model(
    model: str | None, config: str | None, tokenizer: str | None, found: Any, objectives: Collection[str], say: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its tokenizer, and what both depend on."""
    from ..training.family_objectives import pretrained_class
    from ..training.objectives import ErnieMForPreTraining

    if model is not None:
        words = load_tokenizer(model, found)
        encoder, new = load_trainable(model, pretrained_class(found, objectives), found, False)
        encoder.loss_only = True
        if new:
            say(f"New parameters, which begin at random: {', '.join(new)}")
        return encoder, words, {"--model": model, "the model's files": model_files(model)}
    if tokenizer is None:
        raise InputError(f"--config {config!r}: expected --tokenizer DIR, too")
    try:
        words = ErnieMTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except Exception as error:  # whatever a reader of foreign files raises
        reason = " ".join(str(error).split())
        raise InputError(f"--tokenizer {tokenizer!r}: {reason}; expected a folder with ErnieM's tokenizer") from error
    made = _config(str(config), len(words))
    about = {"--config": config, "the sizes": made.to_diff_dict(), "--tokenizer": tokenizer}
    return ErnieMForPreTraining(made), words, about | {"the tokenizer's files": model_files(tokenizer)}


def _config(value: str, tokens: int) -> ErnieMConfig:
    """Configuration of a new model."""
    if value in SIZES:
        return ErnieMConfig(vocab_size=tokens, **SIZES[value])
    try:
        fields = json.loads(Path(value).read_text(encoding="utf-8"))
        if fields.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise ValueError(f"has model_type {fields['model_type']!r}")
        made = ErnieMConfig(**{"vocab_size": tokens} | {k: v for k, v in fields.items() if k != "model_type"})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(
            f"--config {value!r}: {reason}; expected {', '.join(SIZES)}, or a config.json of ErnieM"
        ) from error
    if made.vocab_size < tokens:
        raise InputError(f"--config {value!r}: has vocab_size {made.vocab_size}, the tokenizer {tokens} tokens; "
                         f"expected at least as many")  # fmt: skip
    return made
