"""A linear layer and the cross-entropy of its logits in one operation, whose logits are never whole.

    logits = x weight^T + bias      loss = sum over counted rows of log(sum(exp(logits))) - logits[target]
    G = softmax(logits) - one_hot(target), 0 in ignored rows
    dx = G weight      dweight = G^T x      dbias = sum of G over rows

Rows are computed in chunks. Where gradients are asked for, the logits of a chunk are replaced by G, and all three are
computed before the next chunk, in forward: backward would need the logits again, a fourth product. Backward multiplies
them by the gradient of the loss. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", arXiv
2411.09009, and Hsu et al., "Liger Kernel", arXiv 2410.10989, save the same memory in other ways.

Within a chunk the products go through the table by slices, so that what autocast makes of it is never whole, either.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import check_devices, check_rows, check_vectors, is_batch_invariant, needs_grad, resolve_backend

IGNORED = -100
"""Target that is not counted."""
BUDGET = 225 * 10**6
"""Bytes of a chunk's logits, and of a table's float32 gradient where the table has 16 bits."""
SLICE = 4096
"""Words of a slice of the table."""
CACHED = 2**20
"""Bytes of float32 rows, for each thread, that softmax goes through at a time: they stay in a core's cache."""
PITCH = 64
"""Logits of a row are apart from the next row's by a multiple of this: kernels then load several at once."""
HALF_LIMIT, MAX_HALF_SCALE = 2.0**15, 2.0**8
"""Greatest sum in float16, and the greatest factor that its gradients are scaled by."""


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Sum of the cross-entropies of x weight^T + bias.

    Beyond the operands and their gradients it takes about `BUDGET` bytes, whatever the number of rows and words.
    Gradients are computed in forward, of those operands alone that require one. The second derivative is not defined.

    Args:
        x: (num_rows, hidden_size).
        weight: (vocab_size, hidden_size), the table, of x's dtype unless autocast is on.
        bias: (vocab_size,) likewise, or None.
        targets: (num_rows,) int64 or int32 in [0, vocab_size), or -100: the row is not counted. Checked on a CPU;
            elsewhere, and under torch.compile, clamped.
        backend: "auto", "triton" or "torch": what replaces logits by gradients. Products are torch's.

    Returns:
        () float32, or float64 of float64 operands; 0 if no row is counted.

    Raises:
        TypeError: targets that are no integers.
        ValueError: shapes, dtypes or devices that do not fit, targets out of range, or an unknown backend.
        RuntimeError: from backward with `create_graph=True`.
    """
    dtype = _check(x, weight, bias, targets)
    use_kernel = resolve_backend(backend, x.device, dtype) == "triton"
    if is_batch_invariant() or _is_transformed():
        return _whole(x, weight, bias, targets)
    given = (x, weight, bias)
    needs = [needs_grad(operand) for operand in given]
    total: Tensor = _linear_cross_entropy(x, weight, bias, targets, dtype, needs, use_kernel)[0]
    return total


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> torch.dtype:
    """Refuse operands that do not fit, and give the dtype of the products."""
    check_rows("x", x)
    if weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must have shape (vocab_size, {x.shape[1]}), got {tuple(weight.shape)}")
    check_vectors(weight.shape[0], bias=bias)
    if targets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"targets must be int64 or int32, got {targets.dtype}")
    check_vectors(x.shape[0], targets=targets)
    check_devices(x=x, weight=weight, bias=bias, targets=targets)
    dtype, kind = x.dtype, x.device.type
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    else:
        for name, operand in (("weight", weight), ("bias", bias)):
            if operand is not None and operand.dtype != dtype:
                raise ValueError(f"{name} must have the dtype of x, {dtype}, got {operand.dtype}")
    if kind == "cpu" and not torch.compiler.is_compiling():
        wrong = (targets != IGNORED) & ((targets < 0) | (targets >= weight.shape[0]))
        if wrong.any():
            raise ValueError(
                f"targets must lie in [0, {weight.shape[0]}) (vocab_size) or be {IGNORED} (ignored), "
                f"got {int(targets[wrong][0])}"
            )
    return dtype


def _is_transformed() -> bool:
    """True under torch.func and forward-mode derivatives, which see through torch's own operations alone."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def _whole(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The same by torch's own operations, on whole logits."""
    losses = F.cross_entropy(
        F.linear(x, weight, bias), _indices(targets, weight.shape[0]), reduction="none", ignore_index=IGNORED
    )
    return losses.to(_statistics(losses.dtype)).sum()


def _statistics(dtype: torch.dtype) -> torch.dtype:
    """Dtype of losses and sums."""
    return torch.promote_types(dtype, torch.float32)


def _indices(targets: Tensor, vocab_size: int) -> Tensor:
    """int64 targets, none of them out of range."""
    return torch.where(targets == IGNORED, IGNORED, targets.long().clamp(0, max(vocab_size - 1, 0)))


def _table_dtype(weight: Tensor) -> torch.dtype:
    """Dtype that the table's gradient is added up in: float32 where that takes no more than half the budget."""
    return _statistics(weight.dtype) if _extra_bytes(weight) <= BUDGET // 2 else weight.dtype


def _extra_bytes(weight: Tensor) -> int:
    """Bytes of a gradient of wider dtype than the table, whose own gradient comes on top of it."""
    wide = _statistics(weight.dtype)
    return 0 if wide == weight.dtype else weight.numel() * wide.itemsize


def _rows_of_chunk(num_rows: int, weight: Tensor, dtype: torch.dtype, pitch: int) -> int:
    """Rows of each chunk but the last one: as few chunks as the budget allows, of about the same size."""
    extra = _extra_bytes(weight)
    most = (BUDGET - (extra if extra <= BUDGET // 2 else 0)) // (pitch * dtype.itemsize)
    chunks = -(-num_rows // max(most, 1))
    return -(-num_rows // max(chunks, 1))


def _steps(size: int, step: int) -> Iterator[slice]:
    return (slice(begin, min(begin + step, size)) for begin in range(0, size, max(step, 1)))


def _results(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, needs: list[bool],
    use_kernel: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss and zeros for dx, dweight and dbias, without elements where they are not needed."""
    wide = _statistics(dtype)
    dtypes = (wide, _table_dtype(weight), wide)
    shapes = (x.shape, weight.shape, weight.shape[:1])
    grads = [
        x.new_zeros(shape if need else (0,), dtype=of) for shape, need, of in zip(shapes, needs, dtypes, strict=True)
    ]
    return x.new_zeros((), dtype=wide), grads[0], grads[1], grads[2]


def _compute(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, needs: list[bool],
    use_kernel: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss, and its gradients for dx, dweight and dbias that are needed."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        total, dx, dweight, dbias = _results(x, weight, bias, targets, dtype, needs, use_kernel)
        num_rows, vocab_size = x.shape[0], weight.shape[0]
        if not num_rows or not vocab_size:
            return total, dx, dweight, dbias
        x, targets = x.to(dtype), _indices(targets, vocab_size)
        pitch = -(-vocab_size // PITCH) * PITCH
        step = _rows_of_chunk(num_rows, weight, dtype, pitch)
        scale = _half_scale(x, step) if dtype == torch.float16 and any(needs) else 1.0
        buffer = x.new_empty(step, pitch)
        buffer[:, vocab_size:] = 0  # oneDNN multiplies by 0 what is behind a row's end, and 0 * NaN is NaN
        losses = total.new_empty(num_rows)
        for rows in _steps(num_rows, step):
            part, logits = x[rows], buffer[: rows.stop - rows.start, :vocab_size]
            for words in _steps(vocab_size, SLICE):
                _multiply(part, weight[words].to(dtype), None if bias is None else bias[words], logits[:, words])
            compare = _compare_by_kernel if use_kernel else _compare
            compare(logits, targets[rows], losses[rows], scale if any(needs) else None)
            for words in _steps(vocab_size, SLICE):
                grad = logits[:, words]
                if needs[0]:
                    _add_product(dx[rows], grad, weight[words].to(dtype), scale)
                if needs[1]:
                    _add_product(dweight[words], grad.t(), part, scale)
                if needs[2]:
                    dbias[words].add_(grad.sum(0, dtype=dbias.dtype), alpha=1 / scale)
        return losses.sum(), dx, dweight, dbias


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x weight^T + bias."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias.to(x.dtype), x, weight.t(), out=out)


def _add_product(out: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """out += a b / scale."""
    if out.dtype == a.dtype:
        out.addmm_(a, b, alpha=1 / scale)
    else:
        out.add_(a @ b, alpha=1 / scale)


def _half_scale(x: Tensor, rows: int) -> float:
    """Power of two that G is multiplied by in float16, which holds nothing below 6e-8 and nothing above 65,504.

    An element of G is at most 1, so a sum over a chunk's rows of G^T x stays below `HALF_LIMIT`.
    """
    bound = rows * float(x.abs().max())
    if not 0 < bound < math.inf:
        return 1.0
    return min(2.0 ** math.floor(math.log2(HALF_LIMIT / bound)), MAX_HALF_SCALE)


def _compare(logits: Tensor, targets: Tensor, losses: Tensor, scale: float | None) -> None:
    """Write the losses of a chunk's rows; with a scale replace the logits by G times that.

    Args:
        logits: (rows, vocab_size); overwritten.
        targets: (rows,) int64.
        losses: (rows,).
        scale: None: no gradient is needed.
    """
    step = max(1, CACHED * torch.get_num_threads() // (logits.shape[1] * losses.dtype.itemsize))
    for rows in _steps(logits.shape[0], step):
        given, counted = logits[rows], (targets[rows] != IGNORED)[:, None]
        scores, index = given.to(losses.dtype), targets[rows, None].clamp(min=0)
        wanted, largest = scores.gather(1, index), scores.amax(1, keepdim=True)
        sums = scores.sub_(largest).exp_().sum(1, keepdim=True)
        losses[rows] = torch.where(counted, sums.log() + largest - wanted, 0.0)[:, 0]
        if scale is not None:
            factor = counted.to(losses.dtype) * scale
            scores.mul_(factor / sums)
            scores[torch.arange(len(scores), device=scores.device), index[:, 0]] -= factor[:, 0]
            given.copy_(scores)


def _compare_by_kernel(logits: Tensor, targets: Tensor, losses: Tensor, scale: float | None) -> None:
    from ..kernels import linear_cross_entropy as kernel

    kernel.compare(logits, targets, losses, scale)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.grads, ctx.rest = output[1:], inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _scale_grads(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph must be False for linear_cross_entropy, which has no second derivative; "
            "a masked-LM head takes plain operations with loss_only = False"
        )
    grads, operands = ctx.grads, ctx.saved_tensors
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.mul
    if not torch._C._len_torch_dispatch_stack():  # nothing is traced
        # Multiplied in place and given away: a second backward through a retained graph computes them anew.
        ctx.grads, multiply = None, Tensor.mul_
        grads = _linear_cross_entropy(*operands, *ctx.rest)[1:] if grads is None else grads
    found = [
        multiply(one, grad).to(operand.dtype) if need else None
        for one, operand, need in zip(grads, operands[:3], ctx.rest[1], strict=True)
    ]
    return (*found, *[None] * 4)


_linear_cross_entropy = torch.library.custom_op(
    "erniem_fast::linear_cross_entropy",
    _compute,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor targets, ScalarType dtype, bool[] needs, bool use_kernel) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
_linear_cross_entropy.register_fake(_results)
_linear_cross_entropy.register_autograd(_scale_grads, setup_context=_save)
