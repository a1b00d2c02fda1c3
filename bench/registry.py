"""The registry: operations, the shapes that they are timed on, and the providers that compute them.

A new provider is one decorated function (see `op_cases`):

    @VARLEN_ATTENTION.provider("triton", devices=("cuda",))
    def _(inputs: AttentionInputs) -> Prepared:
        return prepare(lambda: ops.varlen_attention(..., backend="triton"))
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .shapes import Setting, Shape
from .work import Work


@dataclass(frozen=True)
class Prepared:
    """A provider that holds all that it needs.

    Attributes:
        run: what is timed.
        rows: the result's real rows, packed, to be held against the oracle's; None for a bound, which computes
            something else.
        memory: what it holds, in bytes, by what is counted; None: not measured.
        results: the GPU suite's check: the output and, where the setting asks for them, gradients, in the form that
            all providers share; None: not compared.
        same_mask: whether `results` have dropout, with the oracle's mask; else they have none.
        work: what it must do, where that is not what its operation must.
    """

    run: Callable[[], object]
    rows: Callable[[], Tensor] | None
    memory: Callable[[], Mapping[str, int]] | None = None
    results: Callable[[], Sequence[Tensor]] | None = None
    same_mask: bool = False
    work: Work | None = None


def prepare(compute: Callable[[], Tensor], to_rows: Callable[[Tensor], Tensor] | None = None) -> Prepared:
    """A provider whose timed result is also what is checked, packed by `to_rows` where it is padded."""
    return Prepared(compute, compute if to_rows is None else lambda: to_rows(compute()))


@dataclass(frozen=True)
class Provider:
    """A way to compute an operation.

    Attributes:
        name: of the provider.
        build: from the operation's inputs. Not timed.
        devices: where it runs.
        note: what a reader of its figures must know.
        needs: what it lacks with a setting on a shape; None: nothing.
    """

    name: str
    build: Callable[[Any], Prepared]
    devices: tuple[str, ...]
    note: str = ""
    needs: Callable[[Shape, Setting], str | None] | None = None

    def refusal(self, shape: Shape, setting: Setting) -> str | None:
        """Why it can't run; None: it can."""
        if setting.device not in self.devices:
            return f"runs on {' and '.join(self.devices)} only"
        return None if self.needs is None else self.needs(shape, setting)


@dataclass(frozen=True, eq=False)
class Operation:
    """Something that is timed.

    Attributes:
        name: of the operation.
        inputs: makes what all its providers share, so that they compute the same thing.
        shapes: that it is timed on.
        tiny: the shape of a dry run.
        oracle: the provider whose rows are right.
        baseline: the provider that is timed in turn with every other one.
        rounds: how often each is timed.
        tolerance: greatest absolute difference from the oracle's rows, in float32. Other dtypes: as much more as
            their epsilon is larger.
        grad: whether it is run with gradients.
        providers: by name.
    """

    name: str
    inputs: Callable[[Shape, Setting], Any]
    shapes: tuple[Shape, ...]
    tiny: Shape
    oracle: str
    baseline: str
    rounds: int
    tolerance: float = 1e-5
    grad: bool = False
    providers: dict[str, Provider] = field(default_factory=dict)

    def provider(
        self,
        name: str,
        devices: tuple[str, ...] = ("cpu", "cuda"),
        note: str = "",
        needs: Callable[[Shape, Setting], str | None] | None = None,
    ) -> Callable[[Callable[[Any], Prepared]], Callable[[Any], Prepared]]:
        """Decorator that registers `build(inputs)` as a provider."""

        def register(build: Callable[[Any], Prepared]) -> Callable[[Any], Prepared]:
            if name in self.providers:
                raise ValueError(f"provider {name!r} of {self.name} is registered twice")
            self.providers[name] = Provider(name, build, devices, note, needs)
            return build

        return register

    def max_error(self, dtype: torch.dtype) -> float:
        """Tolerance in this dtype."""
        return self.tolerance * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Case:
    """One operation on one shape by one provider."""

    operation: Operation
    shape: Shape
    provider: Provider

    @property
    def name(self) -> str:
        return f"{self.operation.name}/{self.shape.name}/{self.provider.name}"


def cases(tiny: bool = False, device: str = "cpu") -> Iterator[Case]:
    """All cases that run on a device. Those of one operation and shape come together: they share their inputs."""
    from . import model_cases, op_cases

    for operation in (*model_cases.OPERATIONS, *op_cases.OPERATIONS):
        for shape in (operation.tiny,) if tiny else operation.shapes:
            for provider in operation.providers.values():
                if device in provider.devices:
                    yield Case(operation, shape, provider)
