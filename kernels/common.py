"""Parts that the kernels share: Philox on blocks, dtypes and precision, and the registration of an operation."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from . import configs
from .dropout import KEY_ROUNDS, KEY_STEPS, MULTIPLIER_2, MULTIPLIERS, ROUNDS, Dropout, keep_scale, threshold

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = triton.knobs.runtime.interpret
"""True if kernels run on CPU tensors, by numpy (TRITON_INTERPRET=1 before the first import)."""

_INTERPRETED = tl.constexpr(INTERPRETED)
_ROUNDS = tl.constexpr(ROUNDS)
_KEY_ROUNDS = tl.constexpr(KEY_ROUNDS)
_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_MULTIPLIER_2 = tl.constexpr(MULTIPLIER_2)
_STEP_0, _STEP_1 = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])
_DROPOUT = "Dropout? dropout"


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32."""
    if _INTERPRETED:  # numpy has no bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=tl.float32)


def uses_ptx(device: torch.device) -> bool:
    """True if kernels may hold NVIDIA's assembly of sm_80 and later; not while they are interpreted."""
    vendor, _, number = configs.architecture(device).partition("_")
    return not INTERPRETED and vendor == "sm" and int(number) >= 80


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own function costs 2 microseconds a call."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n; n >= 1."""
    return 1 << (n - 1).bit_length()


@triton.jit
def narrow(x, dtype: tl.constexpr, USE_PTX: tl.constexpr = False):
    """float32 rounded to a narrower dtype, to nearest even; with USE_PTX two elements an instruction.

    Pairs are neighbours in a thread's registers: USE_PTX pays where the compiler converts them one by one.
    """
    if USE_PTX and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], tl.bfloat16, True, 2)
    if USE_PTX and dtype == tl.float16:
        return tl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], tl.float16, True, 2)
    if _INTERPRETED and dtype == tl.bfloat16:  # the interpreter truncates
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def widen(x, USE_PTX: tl.constexpr = False):
    """float32 of a dtype of up to 32 bits; of bfloat16 with USE_PTX a pair in two instructions, not three."""
    if USE_PTX and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=&r,=r,r", [x], tl.float32, True, 2
        )
    return x.to(tl.float32)


@triton.jit
def round_to(x, dtype: tl.constexpr, USE_PTX: tl.constexpr = False):
    """(x narrowed to a dtype, and that as float32); with USE_PTX the pairs of bfloat16 are not taken apart between."""
    if USE_PTX and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;", "=&r,=r,=r,r,r", [x],
            (tl.bfloat16, tl.float32), True, 2,
        )  # fmt: skip
    narrowed = narrow(x, dtype, USE_PTX)
    return narrowed, narrowed.to(tl.float32)


@triton.jit
def wide_product(a, b, USE_PTX: tl.constexpr):
    """The 64 bits of the product of two uint32."""
    if USE_PTX:  # one instruction; the compiler makes two of a product of uint64
        return tl.inline_asm_elementwise("mul.wide.u32 $0, $1, $2;", "=l,r,r", [a, b], tl.uint64, True, 1)
    return a.to(tl.uint64) * b


@triton.jit
def philox(c0, c1, c2, c3, seed, ROUNDS: tl.constexpr, USE_PTX: tl.constexpr):
    """Philox4x32 (see dropout.py) of uint32 counters that broadcast against each other; seed: 64 bits, the key."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        even = wide_product(c0, tl.full((), _MULTIPLIER_0, tl.uint32), USE_PTX)
        odd = wide_product(c2, tl.full((), _MULTIPLIER_1, tl.uint32), USE_PTX)
        c0 = (odd >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = odd.to(tl.uint32)
        c2 = (even >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = even.to(tl.uint32)
        k0 += _STEP_0
        k1 += _STEP_1
    return c0, c1, c2, c3


@triton.jit
def philox_2(c0, c1, key, ROUNDS: tl.constexpr, USE_PTX: tl.constexpr):
    """Philox2x32 of uint32 counters that broadcast against each other; key: uint32."""
    for _ in tl.static_range(ROUNDS):
        product = wide_product(c0, tl.full((), _MULTIPLIER_2, tl.uint32), USE_PTX)
        c0 = (product >> 32).to(tl.uint32) ^ key ^ c1
        c1 = product.to(tl.uint32)
        key += _STEP_0
    return c0, c1


@triton.jit
def _half_is_kept(word, high, threshold):
    """True where the low half of a word, or the high one, keeps its element."""
    # The high half against the threshold is the whole word against the threshold moved up.
    return tl.where(high, word, word << 16) >= (threshold.to(tl.uint32) << 16)


# Each element computes a whole call of Philox. Elements of one thread that share a call have, by the mapping, counters
# that the compiler can tell to be equal, so that it keeps one; no value moves between threads.


@triton.jit
def keep_rows(seed, site, rows, columns, threshold, USE_PTX: tl.constexpr):
    """Mask of elements (rows, columns) of packed rows; int32, of shapes that broadcast against each other."""
    none = tl.full((), 0, tl.uint32)
    call = (columns // 8).to(tl.uint32)
    w0, w1, w2, w3 = philox(call, rows.to(tl.uint32), none, site.to(tl.uint32), seed, _ROUNDS, USE_PTX)
    low, high = (columns & 2) == 0, (columns & 4) != 0
    word = tl.where(high, tl.where(low, w2, w3), tl.where(low, w0, w1))
    return _half_is_kept(word, (columns & 1) != 0, threshold)


@triton.jit
def scores_key(seed, site, USE_PTX: tl.constexpr):
    """uint64 that stands for a seed (int64) and a site in the mask of the scores. Scalar: once a program."""
    none = tl.full((), 0, tl.uint32)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    key, tweak, _, _ = philox(low, high, site.to(tl.uint32), none, tl.full((), 0, tl.int64), _KEY_ROUNDS, USE_PTX)
    return (tweak.to(tl.uint64) << 32) | key


@triton.jit
def keep_scores(key, head, start, start_m, offs_m, start_n, offs_n, threshold, USE_PTX: tl.constexpr):
    """Mask of scores (start_m + offs_m, start_n + offs_n) of the sequence whose first token is packed row `start`.

    key: from scores_key. start_m and start_n are multiples of 16; offs_m and offs_n are int32, of shapes that broadcast
    against each other.
    """
    row = (start + start_m + (offs_m & ~8)).to(tl.uint32)
    column = ((head << 16) + start_n + (offs_n & ~8)).to(tl.uint32) ^ (key >> 32).to(tl.uint32)
    w0, w1 = philox_2(row, column, key.to(tl.uint32), _ROUNDS, USE_PTX)
    word = tl.where((offs_m & 8) != 0, w1, w0)
    return _half_is_kept(word, (offs_n & 8) != 0, threshold)


def drops(dropout: Dropout | None) -> bool:
    """True if there is a dropout that drops anything."""
    return dropout is not None and dropout.p > 0


def dropout_arguments(dropout: Dropout | None, like: Tensor) -> dict[str, Any]:
    """Arguments of a kernel for its dropout, and whether it may hold assembly.

    Args:
        dropout: the dropout, if any.
        like: any tensor of the kernel's device; passed for the seed, which is not read without dropout.
    """
    p, seed, site = dropout if dropout is not None and drops(dropout) else (0.0, like, 0)
    return {"seed_ptr": seed, "site": site, **_dropout_constants(p, uses_ptx(like.device))}


@functools.lru_cache(maxsize=256)
def _dropout_constants(p: float, use_ptx: bool) -> dict[str, Any]:
    return {"threshold": threshold(p), "keep_scale": keep_scale(p), "APPLY_DROPOUT": p > 0, "USE_PTX": use_ptx}


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """Precision of products of float32: TF32 where torch allows it for its own, else of three TF32 products each.

    Those keep 22 of 24 bits, on tensor cores; float32's own multiply-adds would hold whole operands in registers, and
    spill them. AMD's matrix cores multiply float32 as it is.
    """
    if dtype != torch.float32 or configs.architecture(device).startswith("gfx"):
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def launch_options(
    config: configs.AttentionConfig | configs.LinearConfig, device: torch.device, capped: bool = True
) -> dict[str, int]:
    """Warps, stages and, if capped, the cap of registers, which AMD's compiler does not take."""
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if capped and config.max_registers and configs.architecture(device).startswith("sm_"):
        options["maxnreg"] = config.max_registers
    return options


def partition(rows: int, config: configs.RowConfig) -> tuple[int, int]:
    """(programs, rows a program) of a backward pass that adds up rows."""
    rows_per_program = cdiv(max(config.min_rows, cdiv(rows, config.max_programs)), config.block_m) * config.block_m
    return cdiv(rows, rows_per_program), rows_per_program


def row_blocks(n: int, like: Tensor, config: configs.RowConfig) -> dict[str, int]:
    """Blocks of rows of n columns of a tensor's dtype, cut into chunks of 16 bytes a thread, and warps.

    Where there are as many rows as warps, each row then lies within a warp, and its sums cross no barrier.
    """
    lanes = 64 if configs.architecture(like.device).startswith("gfx") else 32
    width = 16 // like.dtype.itemsize * lanes * max(1, config.num_warps // config.block_m)
    block_n = min(next_power_of_2(n), width)
    chunks = next_power_of_2(cdiv(n, block_n))
    return {"CHUNKS": chunks, "BLOCK_M": config.block_m, "BLOCK_N": block_n, "num_warps": config.num_warps}


class Operation:
    """A launcher as an operation of torch: `torch.ops.erniem_fast.<name>`, traced whole by torch.compile.

    Eager calls go past the dispatcher, which costs more than a launch. A result after the first is not differentiable.

    The argument `Dropout? dropout` of a schema is one value, `Dropout | None`, for callers and for the functions below.
    Torch's schemas have no such type: there it is `float dropout_p, Tensor? seed, int site`. Only this class handles
    those three.

    Args:
        name: name of the operation.
        schema: arguments and results.
        forward: the launcher; must allocate what it returns.
        fake: the same arguments to results without data.
        save: (ctx, arguments, results) to the tensors that backward needs; None: not differentiable.
        grad: (ctx, gradient of the first result, saved tensors, dropout) to the gradients of the arguments, of which
            the last ones may be missing. Those of tensors come before the dropout.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[[Any, tuple[Any, ...], Any], tuple[Tensor | None, ...]] | None = None,
        grad: Callable[[Any, Tensor, list[Tensor | None], Dropout | None], tuple[Tensor | None, ...]] | None = None,
    ) -> None:
        self._launch = forward
        arguments = [argument.strip() for argument in schema.strip("(").partition(")")[0].split(",")]
        self._dropout = arguments.index(_DROPOUT) if _DROPOUT in arguments else None
        schema = schema.replace(_DROPOUT, "float dropout_p, Tensor? seed, int site")

        def flat_forward(*flat: Any) -> Any:
            return self.forward(*self.regroup(flat))

        self.op = torch.library.custom_op(f"erniem_fast::{name}", flat_forward, mutates_args=(), schema=schema)
        self.op.register_fake(lambda *flat: fake(*self.regroup(flat)))
        self.function: Any = None
        if save is None or grad is None:
            return

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)  # results that are not differentiable would get gradients of zeros
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[1:])
            args = self.regroup(inputs)
            dropout = next((arg for arg in args if isinstance(arg, Dropout)), None)
            ctx.dropout = None if dropout is None else (dropout.p, dropout.site)
            ctx.save_for_backward(*save(ctx, args, output), None if dropout is None else dropout.seed)

        def backward(ctx: Any, first: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
            count = len(ctx.needs_input_grad)
            if first is None:
                return (None,) * count
            *saved, seed = ctx.saved_tensors
            dropout = None if seed is None else Dropout(ctx.dropout[0], seed, ctx.dropout[1])
            grads = grad(ctx, first, saved, dropout)
            return *grads, *[None] * (count - len(grads))

        self.op.register_autograd(backward, setup_context=setup_context)
        functions: dict[str, Any] = {"forward": flat_forward, "setup_context": setup_context, "backward": backward}
        members: dict[str, Any] = {key: staticmethod(function) for key, function in functions.items()}
        self.function = type(name, (torch.autograd.Function,), members)

    def flatten(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments in torch's form: three for the dropout."""
        if self._dropout is None:
            return args
        dropout = args[self._dropout]
        three = (0.0, None, 0) if dropout is None else (dropout.p, dropout.seed, dropout.site)
        return *args[: self._dropout], *three, *args[self._dropout + 1 :]

    def regroup(self, flat: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inverse of `flatten`."""
        if self._dropout is None:
            return flat
        p, seed, site = flat[self._dropout : self._dropout + 3]
        dropout = None if seed is None else Dropout(p, seed, site)
        return *flat[: self._dropout], dropout, *flat[self._dropout + 3 :]

    def forward(self, *args: Any) -> Any:
        """Call the launcher: kernels take contiguous tensors, and Triton launches on the current device."""
        device = None
        for arg in args:
            if isinstance(arg, Tensor):
                device = device or arg.device
                if not arg.is_contiguous():
                    return self.forward(*(each.contiguous() if isinstance(each, Tensor) else each for each in args))
        return self._launch_on(device, args)

    def _launch_on(self, device: torch.device | None, args: tuple[Any, ...]) -> Any:
        if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
            return self._launch(*args)
        with torch.cuda.device(device):
            return self._launch(*args)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return self.op(*self.flatten(args))
        device, contiguous, requires_grad = None, True, False
        for arg in args:
            kind = type(arg)
            if kind is Tensor or kind is nn.Parameter:
                device = device or arg.device
                contiguous = contiguous and arg.is_contiguous()
                requires_grad = requires_grad or arg.requires_grad
            elif isinstance(arg, Tensor):
                # One that isn't plain (fake, functional, distributed) has an implementation of operations of its own.
                return self.op(*self.flatten(args))
        if requires_grad and torch.is_grad_enabled():
            # Without a gradient of its own the dispatcher makes it an error to ask for one.
            flat = self.flatten(args)
            return self.op(*flat) if self.function is None else self.function.apply(*flat)
        return self._launch_on(device, args) if contiguous else self.forward(*args)
