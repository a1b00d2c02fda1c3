"""What the kernels share: dropout's Philox on blocks, dtypes, and how an operation is registered."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from . import configs
from .dropout import KEY_STEPS, MULTIPLIERS, ROUNDS, keep_scale, threshold

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run on CPU tensors, by numpy (TRITON_INTERPRET=1 before the first import)."""

_INTERPRETED = tl.constexpr(INTERPRETED)
_ROUNDS = tl.constexpr(ROUNDS)
_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_STEP_0, _STEP_1 = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32."""
    if _INTERPRETED:  # numpy has no bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 to a narrower dtype, to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:  # the interpreter truncates
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Philox4x32 (see dropout.py) of uint32 counters that broadcast against each other; seed: int64."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        even = c0.to(tl.uint64) * _MULTIPLIER_0
        odd = c2.to(tl.uint64) * _MULTIPLIER_1
        c0 = (odd >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = odd.to(tl.uint32)
        c2 = (even >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = even.to(tl.uint32)
        k0 += _STEP_0
        k1 += _STEP_1
    return c0, c1, c2, c3


@triton.jit
def _half_is_kept(word, odd, threshold):
    # The high half against the threshold is the whole word against the threshold moved up.
    return tl.where(odd, word, word << 16) >= (threshold.to(tl.uint32) << 16)


# Each element asks for a whole call of Philox. Elements of one thread that share a call have, by the mapping, counters
# that the compiler can tell to be equal, so that it is computed once; no value moves between threads.


@triton.jit
def keep_rows(seed, site, rows, columns, threshold):
    """Mask of elements (rows, columns) of packed rows; int32, of shapes that broadcast against each other."""
    none = tl.full((), 0, tl.uint32)
    w0, w1, w2, w3 = philox((columns // 8).to(tl.uint32), rows.to(tl.uint32), none, site.to(tl.uint32), seed)
    low, high = (columns & 2) == 0, (columns & 4) != 0
    word = tl.where(high, tl.where(low, w2, w3), tl.where(low, w0, w1))
    return _half_is_kept(word, (columns & 1) != 0, threshold)


@triton.jit
def keep_scores(seed, site, head, start, first_row, rows, first_column, columns, threshold):
    """Mask of attention scores (first_row + rows, first_column + columns) of the sequence that begins at row `start`.

    first_row and first_column are multiples of 16; rows and columns are places in a tile.
    """
    row = (start + first_row + (rows & ~8)).to(tl.uint32)
    call = (first_column // 16 * 4 + (columns // 16 * 4 + (columns & 7) // 2)).to(tl.uint32)
    w0, w1, w2, w3 = philox(call, row, head.to(tl.uint32), site.to(tl.uint32), seed)
    lower, right = (rows & 8) != 0, (columns & 8) != 0
    word = tl.where(lower, tl.where(right, w3, w2), tl.where(right, w1, w0))
    return _half_is_kept(word, (columns & 1) != 0, threshold)


def dropout_arguments(dropout_p: float, seed: Tensor | None, site: int, like: Tensor) -> dict[str, Any]:
    """What a kernel asks for its dropout. Without dropout any int64 pointer does for the seed: it isn't read."""
    return {
        "seed_ptr": seed if seed is not None and dropout_p else like,
        "site": site,
        "threshold": threshold(dropout_p),
        "keep_scale": keep_scale(dropout_p),
        "DROPOUT": dropout_p > 0,
    }


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """Of products of float32: TF32 where torch allows it for its own, else of three TF32 products each.

    Those keep 22 of 24 bits, on tensor cores; float32's own multiply-adds would hold whole operands in registers, and
    spill them. AMD's matrix cores multiply float32 as it is.
    """
    if dtype != torch.float32 or configs.architecture(device).startswith("gfx"):
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def partition(rows: int, config: configs.RowConfig) -> tuple[int, int]:
    """(programs, rows a program) of a backward pass that adds up rows."""
    per_program = max(config.rows, triton.cdiv(rows, config.programs))
    return triton.cdiv(rows, per_program), per_program


def _launcher(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Kernels take contiguous tensors, and Triton launches on the current device, wherever they are."""

    @functools.wraps(launch)
    def guarded(*args: Any) -> Any:
        args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return launch(*args)
        with torch.cuda.device(device):
            return launch(*args)

    return guarded


class Operation:
    """A launcher as an operation of torch: `torch.ops.erniem_fast.<name>`, traced whole by torch.compile.

    Eager calls go past the dispatcher, which costs more than a launch.

    Args:
        name: of the operation.
        schema: of its arguments and results.
        forward: the launcher; must allocate what it returns.
        fake: makes tensors like its results, without data.
        save: `setup_context(ctx, inputs, output)` of `torch.autograd.Function`; None: not differentiable.
        grad: `backward(ctx, *grads)`.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[..., None] | None = None,
        grad: Callable[..., Any] | None = None,
    ) -> None:
        forward = self.forward = _launcher(forward)
        self.op = torch.library.custom_op(f"erniem_fast::{name}", forward, mutates_args=(), schema=schema)
        self.op.register_fake(fake)
        self.function: Any = None
        if save is None or grad is None:
            return

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)  # or what isn't differentiable would get gradients of zeros
            save(ctx, inputs, output)

        def backward(ctx: Any, first: Tensor | None, *rest: None) -> Any:
            return (None,) * len(ctx.needs_input_grad) if first is None else grad(ctx, first, *rest)

        self.op.register_autograd(backward, setup_context=setup_context)
        functions: dict[str, Any] = {"forward": forward, "setup_context": setup_context, "backward": backward}
        members: dict[str, Any] = {key: staticmethod(function) for key, function in functions.items()}
        self.function = type(name, (torch.autograd.Function,), members)

    def __call__(self, *args: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return self.op(*args)
        # A tensor that isn't plain (fake, functional, distributed) has its own idea of what an operation is.
        if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
            return self.op(*args)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            # Without a gradient of its own the dispatcher makes it an error to ask for one.
            return self.op(*args) if self.function is None else self.function.apply(*args)
        return self.forward(*args)
