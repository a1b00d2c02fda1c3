"""Names of parameters in Paddle checkpoints: what a table of them says, and how it is read.

The tables themselves are in `checkpoints.py`.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """A kind of module in a Paddle checkpoint.

    Attributes:
        parameters: our name and the dimensions of each, by what follows the module's name in the file.
        transposed: True if Paddle stores the matrix transposed: (in_features, out_features).
    """

    parameters: Mapping[str, tuple[str, int]]
    transposed: bool = False


LINEAR = Kind({".weight": ("weight", 2), ".bias": ("bias", 1)}, transposed=True)
NORM = Kind({".weight": ("weight", 1), ".bias": ("bias", 1)})
EMBEDDING = Kind({".weight": ("weight", 2)})
STATIC_LINEAR = Kind({".w_0": ("weight", 2), ".b_0": ("bias", 1)}, transposed=True)
STATIC_OUTPUT = Kind({"_w": ("weight", 2), "_b": ("bias", 1)}, transposed=True)
STATIC_NORM = Kind({"_scale": ("weight", 1), "_bias": ("bias", 1)})
STATIC_EMBEDDING = Kind({"": ("weight", 2)})
LONE_BIAS = Kind({"_bias": ("bias", 1)})
LONE_WEIGHT = Kind({"_weight": ("weight", 2)})
STATIC_BIAS = Kind({".b_0": ("bias", 1)})

Modules = tuple[tuple[Kind, Mapping[str, str]], ...]
"""Modules of each kind: our name of each by its name in Paddle. `{}` stands for the number of a layer."""


@dataclass(frozen=True)
class Head:
    """A class of Paddle's.

    Attributes:
        class_name: the class that takes its parameters: of this package, or of transformers.
        modules: those that it has besides the encoder.
        counted: our name of the one that has a row a label, which the configuration need not count.
        keeps_pooler: True if the pooler belongs into the checkpoint though the class has none: it is pre-trained, and
            the encoder by itself reads it.
        tied: parameters that repeat another one.
    """

    class_name: str
    modules: Modules = ()
    counted: str | None = None
    keeps_pooler: bool = False
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Parameter:
    """What becomes of a parameter of Paddle's: its name here, with `{}` for the layer's number, and its layout."""

    name: str
    dimensions: int
    transposed: bool


@dataclass(frozen=True)
class Family:
    """Names in a family of Paddle checkpoints.

    Attributes:
        form: where such files come from, for errors.
        model_type: what config.json says.
        prefix: our name of the encoder in a head, with a dot.
        prefixes: Paddle's names of the encoder in a head, each with a dot.
        encoder: its modules. The first is the word table.
        heads: classes by their names in Paddle.
        buffers: tensors that are no parameters.
    """

    form: str
    model_type: str
    prefix: str
    prefixes: tuple[str, ...]
    encoder: Modules
    heads: Mapping[str, Head]
    buffers: frozenset[str] = frozenset()

    @property
    def word_table(self) -> str:
        """Paddle's name of the word table's parameter, which tells the form of a file."""
        kind, names = self.encoder[0]
        return next(iter(names)) + next(iter(kind.parameters))

    def prefix_in(self, keys: Container[str]) -> str | None:
        """What precedes the encoder's names in a file; None if the file is of no such form."""
        return next((prefix for prefix in ("", *self.prefixes) if prefix + self.word_table in keys), None)

    def parameters(self, prefix: str, head: Head) -> dict[str, Parameter]:
        """Parameters by their names in Paddle, where `prefix` precedes the encoder's."""
        ours = self.prefix if head.modules else ""
        return _parameters(self.encoder, prefix, ours) | _parameters(head.modules)

    def fitting(self, keys: Container[str]) -> list[str]:
        """Paddle's classes that have the modules, besides the encoder, that a file has."""
        heads = {name: _keys(head.modules) for name, head in self.heads.items()}
        found = {module for modules in heads.values() for module, its in modules.items() if any(k in keys for k in its)}
        return [name for name, modules in heads.items() if modules.keys() == found]


def _keys(modules: Modules) -> dict[str, list[str]]:
    """Parameters of each module in Paddle."""
    keys: dict[str, list[str]] = {}
    for kind, names in modules:
        for module in names:
            keys.setdefault(module, []).extend(f"{module}{ending}" for ending in kind.parameters)
    return keys


def _parameters(modules: Modules, theirs: str = "", ours: str = "") -> dict[str, Parameter]:
    return {
        f"{theirs}{module}{ending}": Parameter(f"{ours}{name}.{parameter}", dimensions, kind.transposed)
        for kind, names in modules
        for module, name in names.items()
        for ending, (parameter, dimensions) in kind.parameters.items()
    }


LAYER_NUMBER = re.compile(r"(?:(?<=\blayers\.)|(?<=\bblock\.)|(?<=\bencoder_layer_))[0-9]+(?=[._])")
"""Number of a layer in the name of a parameter."""
