"""Hyper-parameters of fine-tuning, and the presets of ERNIE-M's authors.

Source: the scripts of the ERNIE repository (github.com/PaddlePaddle/ERNIE, branch repro, ernie-m/scripts).
Their batches are of samples, 32 for XNLI and MLQA and 8 for CoNLL; a batch here is a number of tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..files.errors import InputError

MOST_EPOCHS = 100_000
"""A schedule has as many steps, which are counted before the first."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a run.

    Attributes:
        epochs: passes over the training data.
        learning_rate: highest rate of the head's parameters.
        batch_tokens: most tokens of a batch on each process.
        accumulate: batches of a step.
        max_length: most tokens of a sequence; None: what the model takes.
        warmup: share of the steps over which the rate rises; it falls linearly to 0 afterwards.
        layer_decay: factor of the rate from each layer to the one below.
        weight_decay: of all but biases and norms.
        patience: evaluations without a better figure after which training ends; None: it never ends early.
        eval_steps: steps between evaluations; None: one an epoch.
        seed: of new parameters, the order of the data, and dropout.
    """

    epochs: float = 3.0
    learning_rate: float = 5e-5
    batch_tokens: int = 4096
    accumulate: int = 1
    max_length: int | None = None
    warmup: float = 0.1
    layer_decay: float = 0.8
    weight_decay: float = 0.01
    patience: int | None = None
    eval_steps: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 0.0, MOST_EPOCHS), ("learning_rate", 0.0, math.inf), ("batch_tokens", 0, math.inf),
            ("accumulate", 0, math.inf), ("max_length", 2, math.inf), ("layer_decay", 0.0, 1.0),
            ("patience", 0, math.inf), ("eval_steps", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (low < value <= high and value < math.inf):
                accepted = f"more than {low:g}, and " + ("finite" if high == math.inf else f"at most {high:g}")
                raise InputError(f"{option(name)} {value}: expected {accepted}")
        for name, high in (("warmup", 1.0), ("weight_decay", math.inf), ("seed", 2**32)):
            value = getattr(self, name)
            if not 0 <= value < high:
                accepted = "at least 0, and " + ("finite" if high == math.inf else f"less than {high:.10g}")
                raise InputError(f"{option(name)} {value}: expected {accepted}")

    def by_option(self) -> dict[str, Any]:
        """Values by the names of the command line."""
        return {option(name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Preset:
    """Values that a preset gives.

    Attributes:
        task: name of the task that it is for.
        settings: hyper-parameters.
        large: those that differ where the model is wider than 768.
        options: of the task.
    """

    task: str
    settings: Mapping[str, Any]
    large: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


AUTHORS = {"warmup": 0.1, "layer_decay": 0.8, "weight_decay": 0.0}
PRESETS: Mapping[str, Preset] = {
    "xnli": Preset("classify", {**AUTHORS, "learning_rate": 5e-5, "max_length": 256, "epochs": 5.0}),
    "conll": Preset("tag", {**AUTHORS, "learning_rate": 4e-4, "max_length": 512, "epochs": 10.0, "weight_decay": 0.01}),
    "mlqa": Preset(
        "qa",
        {**AUTHORS, "learning_rate": 3e-4, "max_length": 384, "epochs": 2.0},
        {"learning_rate": 8e-5, "layer_decay": 0.9},
        {"stride": 128},
    ),
}
"""By the data sets that the authors fine-tuned on."""
BASE_WIDTH = 768


def find_preset(name: str | None, task: str) -> Preset:
    """The preset of a name; None: one without values.

    Raises:
        InputError: an unknown name, or a preset for another task.
    """
    if name is None:
        return Preset(task, {})
    if name not in PRESETS:
        raise InputError(f"--preset {name!r}: expected one of {', '.join(PRESETS)}")
    if PRESETS[name].task != task:
        fit = ", ".join(other for other, preset in PRESETS.items() if preset.task == task) or "none"
        raise InputError(f"--preset {name!r}: is for {PRESETS[name].task}; expected one for {task}: {fit}")
    return PRESETS[name]


def settings_of(preset: Preset, hidden_size: int, given: Mapping[str, Any]) -> Settings:
    """Hyper-parameters: those that are given, else the preset's, else the defaults.

    Args:
        preset: gives values.
        hidden_size: of the model.
        given: by the names of `Settings`; None: not given.

    Raises:
        InputError: a value out of range.
    """
    values = {**preset.settings, **(preset.large if hidden_size > BASE_WIDTH else {})}
    values |= {name: value for name, value in given.items() if value is not None}
    unknown = set(values) - {field.name for field in fields(Settings)}
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    return replace(Settings(), **values)


def option(name: str) -> str:
    """The option of the command line behind a name."""
    return f"--{name.replace('_', '-')}"
