"""What a pre-training run is told, and the objectives that it makes of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files.errors import InputError
from ..files.rows import BadLines
from .family_objectives import NAMES, check_objectives, language_ids, objectives_of
from .mixing import Part
from .objectives import BTMLM, XLMCLM, XLMTLM, MLMWithNSP, Objective
from .readers import Following, Spoken
from .streams import BUFFER, MONOLINGUAL, PARALLEL, Columns, Reader, Stream, open_readers


@dataclass(frozen=True)
class PretrainingSettings:
    """What a pre-training run is told, besides its model and its files.

    Attributes:
        objectives: weight of each objective by its name, one of `NAMES`: its share of the batches.
        steps: updates of the weights.
        batch_tokens: most tokens of a batch on each rank, special ones included.
        accumulation: batches of an update.
        learning_rate: the greatest, after the warm-up; from then on it falls linearly to 0.
        warmup: steps of the warm-up, or their share of all steps if below 1.
        weight_decay: of all weights but biases and layer-norms.
        seed: of the order, the masks, the objectives' order and dropout.
        mask_probability: of a token.
        whole_word: mask words rather than tokens. mlm-nsp always does.
        max_length: most tokens of a sequence, special ones included; None: what the model takes.
        buffer_size: samples among which the next one is drawn.
        skip_bad_lines: leave malformed lines out, and count them.
        dtype: "float32", or "bfloat16" or "float16" by autocast; weights and optimizer are in float32. "auto": bfloat16
            where that is fast, else float32.
        log_every, save_every, eval_every: steps between two lines of the figures, checkpoints and evaluations; the last
            step has all three.
    """

    objectives: Mapping[str, float] = field(default_factory=lambda: {"mmlm": 1.0, "tlm": 1.0, "camlm": 1.0})
    steps: int = 10_000
    batch_tokens: int = 8192
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    mask_probability: float = 0.15
    whole_word: bool = False
    max_length: int | None = None
    buffer_size: int = BUFFER
    skip_bad_lines: bool = False
    dtype: str = "auto"
    log_every: int = 10
    save_every: int = 1000
    eval_every: int = 1000

    def __post_init__(self) -> None:
        unknown = sorted(set(self.objectives) - set(NAMES))
        if unknown:
            raise ValueError(f"objectives: got {unknown[0]!r}, expected some of {', '.join(NAMES)}")
        if not all(weight >= 0 for weight in self.objectives.values()) or not any(self.objectives.values()):
            raise ValueError(f"objectives: got {dict(self.objectives)}, expected weights of at least 0, and one above")
        for name in ("steps", "batch_tokens", "accumulation", "log_every", "save_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class Corpora:
    """Files, folders or datasets of each kind.

    Attributes:
        parallel: pairs of sentences.
        monolingual: texts.
        parallel_columns, monolingual_columns: names of their columns.
    """

    parallel: Sequence[Any] = ()
    monolingual: Sequence[Any] = ()
    parallel_columns: Columns = PARALLEL
    monolingual_columns: Columns = MONOLINGUAL

    def of(self, objective: type[Objective]) -> tuple[Sequence[Any], Columns, str]:
        """Inputs that an objective reads, their columns, and what they are called."""
        if objective.reads == "pairs" and objective is not MLMWithNSP:
            return self.parallel, self.parallel_columns, "parallel"
        return self.monolingual, self.monolingual_columns, "monolingual"


def make_parts(
    tokenizer: Any, settings: PretrainingSettings, corpora: Corpora, config: Any, *, first_position: int = 0,
    rank: int = 0, world_size: int = 1, shuffled: bool = True,
) -> list[Part]:  # fmt: skip
    """The objectives of a mixture, each with a stream of its own.

    Args:
        tokenizer: of the model.
        settings: weights and options.
        corpora: what the objectives read. An objective without input is an error if shuffled, else left out.
        config: of the model, whose family has objectives of its own.
        first_position: position of a row's first token in the model.
        rank, world_size: of this process.
        shuffled: False: in the files' order, for evaluation.

    Raises:
        InputError: an objective is not for the model, or has nothing to read, or a file can't be read, or has a bad
            line.
    """
    check_objectives(config, [name for name, weight in settings.objectives.items() if weight])
    parts, read = [], set()
    for place, (name, cls) in enumerate(objectives_of(config).items()):
        weight = settings.objectives.get(name, 0.0)
        inputs, columns, kind = corpora.of(cls)
        if not weight or (not inputs and not shuffled):
            continue
        if not inputs:
            raise InputError(f"--objectives {name!r}: reads {_read(cls)}, but there are none; expected --{kind} FILE")
        read.add(kind)
        languages = language_ids(config) if cls.with_languages else None
        stream = Stream(
            [_around(reader, cls, languages) for reader in open_readers(inputs, columns)],
            seed=settings.seed + place,
            buffer_size=settings.buffer_size if shuffled else 1,
            rank=rank,
            world_size=world_size,
            skip_bad_lines=settings.skip_bad_lines,
        )
        objective = cls(tokenizer, max_length=settings.max_length, **_options(cls, settings, first_position))
        parts.append(_part(name, objective, stream, weight, languages))
    if not parts:
        raise InputError(f"--eval: no objective reads it; expected {_expected(config, settings)}")
    for kind in ("parallel", "monolingual"):
        if shuffled and getattr(corpora, kind) and kind not in read:
            raise InputError(f"--{kind}: no objective reads it; expected {_expected(config, settings)}")
    return parts


def _read(objective: type[Objective]) -> str:
    """What an objective reads of the corpora."""
    return "pairs" if objective.reads == "pairs" and objective is not MLMWithNSP else "texts"


def _expected(config: Any, settings: PretrainingSettings) -> str:
    """What the objectives of a run read."""
    used = [(name, cls) for name, cls in objectives_of(config).items() if settings.objectives.get(name)]
    return ", ".join(f"{_read(cls)} for {name}" for name, cls in used)


def _around(reader: Reader, objective: type[Objective], languages: Mapping[str, int] | None) -> Reader:
    """The reader of what an objective takes."""
    if objective is MLMWithNSP:
        return Following(reader)
    return Spoken(reader, languages) if languages else reader


def _options(objective: type[Objective], settings: PretrainingSettings, first_position: int) -> dict[str, Any]:
    """How an objective masks."""
    if objective is XLMCLM:
        return {}
    options = {"mask_probability": settings.mask_probability, "first_position": first_position}
    return options if objective is MLMWithNSP else {**options, "whole_word": settings.whole_word}


def _part(name: str, objective: Objective, stream: Stream, weight: float, languages: Mapping[str, int] | None) -> Part:
    special = objective.vocabulary.special_tokens
    room = objective.layout.max_length
    if isinstance(objective, BTMLM):
        growth, added = 1 + objective.placeholder_share, sum(map(len, special)) + 1
    elif isinstance(objective, XLMTLM):
        growth, added = 1.0, 2 * (len(special.start) + len(special.end))
    elif objective.reads == "pairs":
        growth, added = 1.0, sum(map(len, special))
    else:
        growth, added = 1.0, len(special.start) + len(special.end)
    least = added + (1 if objective.reads == "sentences" else 2)
    if room < least:
        raise InputError(
            f"--max-length {room}: expected at least {least}, for the special tokens of {name!r} and a text"
        )
    most = max(1, int((room - added) / growth) - (growth > 1))
    return Part(name, objective, stream, weight, most, growth, added, languages)


def corpora_of(
    inputs: Sequence[Any], parallel_columns: Columns, monolingual_columns: Columns, with_languages: bool = False
) -> Corpora:
    """Sort inputs by what any of their lines can be read as: as a pair, or else all as texts.

    Args:
        inputs: files, folders or datasets.
        parallel_columns, monolingual_columns: names of their columns.
        with_languages: the other way round, since two columns without a header are a text and its language.

    Raises:
        InputError: an input can't be read.
    """
    found: dict[str, list[Any]] = {"parallel": [], "monolingual": []}
    kinds = {"parallel": parallel_columns, "monolingual": monolingual_columns}
    (first, columns), (second, others) = reversed(kinds.items()) if with_languages else kinds.items()
    for one in inputs:
        if _holds(one, columns):
            found[first].append(one)
        else:
            open_readers([one], others)
            found[second].append(one)
    return Corpora(**found, parallel_columns=parallel_columns, monolingual_columns=monolingual_columns)


def _holds(one: Any, columns: Columns) -> bool:
    """True if an input has a sample of these columns, be it behind bad lines."""
    try:
        (reader,) = open_readers([one], columns)
        return next(reader.read(BadLines(skip=True)), None) is not None
    except InputError:
        return False
