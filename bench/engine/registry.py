"""The registry: benchmarks, the shapes that they are timed on, and the providers that compute them.

A new provider is one decorated function, in `bench/ops`, in `bench/models` or in a module of one's own that
`--provider` names:

    @ATTENTION.provider("mine", devices=("cuda",))
    def _(inputs: AttentionInputs) -> Prepared:
        return inputs.prepare(lambda p: lambda qkv: my_attention(qkv, inputs.batch.packed.cu_seqlens, p))
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from .results import Measured
from .shapes import FORWARD, Setting, Shape
from .work import Work

CPU_PARTS = ("cpu", "families", "serving")
"""Parts of the suite that a CPU measures."""
OURS = "erniem_fast"
"""Provider of an operation that this project measures; other ways of it have other names."""


@dataclass(frozen=True)
class Prepared:
    """A provider with all that it needs, ready to be timed.

    Attributes:
        run: the call that is timed.
        results: the output and, where the setting asks for them, gradients, in the form that all providers share;
            None for a bound, which computes something else.
        same_mask: True if `results` have dropout with the oracle's mask; else they have none.
        memory: bytes that it holds, by what is counted; None: not measured.
        work: least work, where it is not that of the benchmark.
    """

    run: Callable[[], object]
    results: Callable[[], Sequence[Tensor]] | None
    same_mask: bool = False
    memory: Callable[[], Mapping[str, int]] | None = None
    work: Work | None = None


class Inputs(Protocol):
    """Operands that all providers of a case share.

    Attributes:
        work: least work of the case.
        facts: further fields of the case's rows in the result file.
    """

    work: Work
    facts: Mapping[str, Any]

    def expected(self, dropout_p: float) -> tuple[list[Tensor], list[Tensor] | None]:
        """The oracle's results, and those of plain PyTorch in the setting's 16-bit dtype (None in float32)."""


Needs = Callable[[Shape, Setting], str | None]
"""Reason why a provider cannot run a setting on a shape, or None."""


@dataclass(frozen=True)
class Provider:
    """A way to compute a benchmark: built from its inputs (not timed), on some devices, under further conditions.

    `note` is a remark for readers of its figures.
    """

    name: str
    build: Callable[[Any], Prepared]
    devices: tuple[str, ...]
    note: str = ""
    needs: Needs | None = None

    def refusal(self, shape: Shape, setting: Setting) -> str | None:
        """Reason why it cannot run, or None."""
        if setting.device not in self.devices:
            return f"runs on {' and '.join(self.devices)} only"
        return None if self.needs is None else self.needs(shape, setting)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Something that is timed.

    Attributes:
        name: name in the results.
        inputs: makes what all providers share, so that they compute the same thing.
        shapes: shapes that it is timed on.
        tiny: shapes of a dry run.
        variants: (passes, dropout probability) that each shape is timed in, the most important first.
        baseline: provider that the others' times are divided by.
        rounds: rounds of timing, where a run takes so long that no other one goes before; None: as many as there is
            time for.
        measure: measures a case in a way of its own; None: the providers in turns.
        providers: providers by name.
    """

    name: str
    inputs: Callable[[Shape, Setting], Inputs]
    shapes: tuple[Shape, ...]
    tiny: tuple[Shape, ...]
    variants: tuple[tuple[str, float], ...] = ((FORWARD, 0.0),)
    baseline: str = OURS
    rounds: int | None = None
    measure: "Callable[[Case], Measured] | None" = None
    providers: dict[str, Provider] = field(default_factory=dict)

    def provider(
        self, name: str, devices: tuple[str, ...] = ("cpu", "cuda"), note: str = "", needs: Needs | None = None
    ) -> Callable[[Callable[[Any], Prepared]], Callable[[Any], Prepared]]:
        """Decorator that registers `build(inputs)` as a provider.

        Raises:
            ValueError: a provider of this name is registered already.
        """

        def register(build: Callable[[Any], Prepared]) -> Callable[[Any], Prepared]:
            if name in self.providers:
                raise ValueError(f"provider {name!r} of {self.name} is registered twice")
            self.providers[name] = Provider(name, build, devices, note, needs)
            return build

        return register


@dataclass(frozen=True)
class Case:
    """One benchmark on one shape in one setting, by all its providers in turns.

    Attributes:
        part: "cpu", "families", "serving", "smoke", "kernels" or "models".
    """

    part: str
    benchmark: Benchmark
    shape: Shape
    setting: Setting

    @property
    def name(self) -> str:
        setting, sizes = self.setting, self.shape.sizes
        size = f"{sizes.num_layers}x{sizes.hidden_size}"
        variant = f"{setting.dtype_name}/{setting.passes}/dropout {setting.dropout_p:g}"
        return f"{self.benchmark.name}/{self.shape.name}/{size}/{variant}"

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of its rows that tell it from other cases."""
        setting, sizes = self.setting, self.shape.sizes
        return {
            "operation": self.benchmark.name, "shape": self.shape.name, "passes": setting.passes,
            "dtype": setting.dtype_name, "dropout_p": setting.dropout_p, "layers": sizes.num_layers,
            "hidden_size": sizes.hidden_size,
        }  # fmt: skip

    def providers(self) -> list[Provider]:
        """Those that are measured: for a smoke test ours alone."""
        found = self.benchmark.providers.values()
        return [one for one in found if self.part != "smoke" or one.name == self.benchmark.baseline]


def load_providers(modules: Iterable[str]) -> None:
    """Import modules that register providers; the current folder is searched, too."""
    _search_current_folder()
    for module in modules:
        importlib.import_module(module)


def is_module(name: str) -> bool:
    """True if `load_providers` finds such a module; the packages around it are imported."""
    if not name or name.startswith("."):  # a path, or a relative import
        return False
    _search_current_folder()
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return False
        raise


def _search_current_folder() -> None:
    if "" not in sys.path:
        sys.path.insert(0, "")
