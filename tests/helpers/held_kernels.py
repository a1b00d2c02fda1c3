"""A held kernel beside Triton's own launch, for GPUs that need not be there.

Run by tests/kernels/test_jit.py in a process of its own, where kernels are not interpreted; a driver stands in whose
launches are noted down.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bench.tools.host_time import silent_driver
from erniem_fast.kernels.jit import HeldKernel, jit


@jit(do_not_specialize=["size"])
def add_kernel(
    x_ptr,
    y_ptr,
    key,
    size,
    scale,
    block: tl.constexpr,
    scales: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * key + tl.arange(0, block)
    x = tl.load(x_ptr + offs, mask=offs < size, other=0.0)
    if scales:
        x *= scale
    tl.store(y_ptr + offs, x.to(y_ptr.dtype.element_ty), mask=offs < size)


launched: list[tuple[Any, ...]] = []
by_triton: list[tuple[Any, ...]] = []
stub = silent_driver()
stub.launcher_cls = lambda source, metadata: lambda *args: launched.append((metadata.hash, *args))
driver.set_active(stub)
real = JITFunction.run


def noted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    by_triton.append(args)
    return real(kernel, *args, **kwargs)


JITFunction.run = noted


def is_held(*args: Any, **kwargs: Any) -> bool:
    """True if a second launch with these arguments is not Triton's; each must be of what Triton compiles for them."""
    expected = real(add_kernel, *args, grid=(3,), warmup=False, **kwargs)
    for _ in range(2):
        launched.clear()
        by_triton.clear()
        assert add_kernel[(3,)](*args, **kwargs) is expected
        assert len(launched) == 1
        hash_, *grid, _stream, function, packed, _metadata, _enter, _leave = launched[0][:10]
        values = launched[0][10:]
        assert (hash_, grid, function, packed) == (
            expected.hash,
            [3, 1, 1],
            expected.function,
            expected.packed_metadata,
        )
        named = dict(zip(add_kernel.arg_names, values, strict=True))
        given = dict(zip(add_kernel.arg_names, args, strict=False)) | kwargs
        assert all(value is given[name] for name, value in named.items())
    return not by_triton


def check() -> None:
    assert isinstance(add_kernel, HeldKernel)
    x, y = torch.zeros(64), torch.zeros(64)
    plain: dict[str, Any] = {"key": 5, "size": 7, "scale": 2.0, "block": 16, "scales": True, "num_warps": 4}
    assert is_held(x, y, **plain)
    assert is_held(x, y, **plain | {"size": 1})  # not specialised
    assert len(add_kernel.held) == 2
    others: list[dict[str, Any]] = [
        {"key": 1}, {"key": 32}, {"key": 2**31}, {"key": -(2**31)}, {"key": 0}, {"size": 2**31},
        {"size": 2**31 + 16}, {"scale": 3}, {"block": 32}, {"scales": False}, {"num_warps": 2},
        {"num_warps": 2, "num_stages": 1},
    ]  # fmt: skip
    for other in others:
        assert is_held(x, y, **plain | other), other
    for dtypes in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        assert is_held(x.to(dtypes[0]), y.to(dtypes[1]), **plain)
    assert is_held(torch.nn.Parameter(x, requires_grad=False), y, **plain)
    # Every order of the arguments is the same call.
    held = len(add_kernel.held)
    assert is_held(x, y, 5, 7, scales=True, block=16, scale=2.0, num_warps=4)
    assert len(add_kernel.held) == held
    # Another device compiles again.
    stub.get_current_device = lambda: 1
    assert is_held(x, y, **plain)
    stub.get_current_device = lambda: 0
    # Triton launches what is not aligned, and whatever is watched.
    unaligned: Tensor = torch.zeros(65)[1:]
    assert not is_held(unaligned, y, **plain)
    assert not is_held(x, unaligned, **plain)
    runtime, seen = triton.knobs.runtime, []
    runtime.launch_enter_hook.add(seen.append)
    assert not is_held(x, y, **plain)
    runtime.launch_enter_hook.remove(seen.append)
    add_kernel.add_pre_run_hook(lambda *args, **kwargs: seen.append(args))
    assert not is_held(x, y, **plain)
    assert len(seen) == 3  # Triton's own and two
    add_kernel.pre_run_hooks.clear()
    assert is_held(x, y, **plain)
    runtime.debug = True
    assert not is_held(x, y, **plain)
    runtime.debug = False
    # AMD's is Triton's.
    stub.get_current_target = lambda: triton.backends.compiler.GPUTarget("hip", "gfx942", 64)
    stub.get_current_device = lambda: 2
    assert not is_held(x, y, **plain)


if __name__ == "__main__":
    check()
    print("right")
