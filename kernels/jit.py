"""Kernels that are launched again without Triton's binder, which costs the host more than the launch.

To find what it compiled, Triton makes strings of all arguments. `jit` is `triton.jit` for a kernel that is launched: it
holds what Triton compiled for a launch by a key of fewer parts that is at least as fine as Triton's, and launches what
it holds as Triton's `JITFunction.run` does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import triton
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

__all__ = ["HeldKernel", "jit"]

_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
_HOLDS = (3, 6) <= _VERSION <= (3, 9) and not triton.knobs.runtime.interpret
"""True where a launch by Triton is known to be what is written here."""
_RUNTIME, _COMPILATION = triton.knobs.runtime, triton.knobs.compilation
_INT32 = range(-(2**31), 2**31)
_LAUNCH = """
def launch(_grid, {arguments}, **_options):
    if ({addresses}) % 16 or _kernel.pre_run_hooks or _is_watched():
        return _kernel.run({arguments}, grid=_grid, warmup=False, **_options)
    _active = _driver.active
    _device = _active.get_current_device()
    _key = (_device, {key}, *_options.items())
    _held = _kernel.held.get(_key)
    if _held is None:
        return _kernel.hold(_key, _kernel.run({arguments}, grid=_grid, warmup=False, **_options))
    _x, _y, _z = (*_grid, 1, 1)[:3]
    _stream = _active.get_current_stream(_device)
    _held.run(_x, _y, _z, _stream, _held.function, _held.packed_metadata, None, None, None, {arguments})
    return _held
"""
"""A launch, written out for the parameters of a kernel: a loop over them would take half of Triton's time."""

_KEYS = {"constexpr": "{}", "ptr": "{}.dtype", "desc": "{0}.base.dtype, *{0}.block_shape"}
"""What of a parameter the kernel is compiled for: of a constexpr, or by the end of its name; else of a number."""


def _is_watched() -> bool:
    """True while a debugger, an instrument or a profiler takes part in launches: they are Triton's then."""
    enter, leave = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook  # chains of hooks, or one that was set
    return bool(
        _RUNTIME.debug
        or _RUNTIME.add_stages_inspection_hook
        or _COMPILATION.instrumentation_mode
        or getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
    )


def _number_class(value: Any) -> Any:
    """A key that two numbers share only if Triton compiles one kernel for both: 1 is a constant, 16 divides."""
    if type(value) is not int:
        return type(value)
    if value == 1 or value not in _INT32:
        return value
    return 0 if value % 16 else 16


class HeldKernel(JITFunction[Any]):
    """A kernel that holds its compiled forms.

    Parameters that end in "_ptr" take tensors, those that end in "_desc" tensor descriptors, the others numbers.

    Triton launches the first time, on AMD, with a pointer that is not aligned to 16 bytes, and while it is watched.

    Attributes:
        held: compiled kernels by (device, dtypes of pointers, classes of numbers, constexprs, options).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: dict[tuple[Any, ...], CompiledKernel] = {}
        key = []
        for param in self.params:
            kind = "constexpr" if param.is_constexpr else param.name.rpartition("_")[2]
            key.append(_KEYS.get(kind, "_number_class({})").format(param.name))
        source = _LAUNCH.format(
            arguments=", ".join(self.arg_names),
            addresses=" | ".join(f"{name}.data_ptr()" for name in self.arg_names if name.endswith("_ptr")),
            key=", ".join(key),
        )
        names: dict[str, Any] = {
            "_kernel": self, "_driver": driver, "_is_watched": _is_watched, "_number_class": _number_class,
        }  # fmt: skip
        exec(source, names)
        self._launch: Callable[..., CompiledKernel | None] = names["launch"]

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return partial(self._launch, grid)

    def hold(self, key: tuple[Any, ...], compiled: CompiledKernel | None) -> CompiledKernel | None:
        """Hold what Triton compiled for a launch."""
        # For AMD it asks more of a tensor than its alignment.
        if isinstance(compiled, CompiledKernel) and compiled.metadata.target.backend == "cuda":
            self.held[key] = compiled
        return compiled


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit` of a kernel that is launched, with its options; see the module."""
    if _HOLDS:
        return lambda function: HeldKernel(function, **options)
    return triton.jit(**options)  # type: ignore[no-any-return]
