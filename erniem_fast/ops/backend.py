"""Which backend computes an operation: the Triton kernels, or torch.

"triton": the kernels in `kernels/`, for CUDA devices, and for a CPU under TRITON_INTERPRET=1, slowly, to test them.
"torch": torch's operations, on any device.
"auto": the kernels on NVIDIA GPUs of compute capability 8.0 and up, torch elsewhere.
"""

import functools
import threading
from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "triton", "torch")
MAX_HEAD_DIM = 128
"""Widest head that the attention kernels take."""
MAX_HIDDEN_SIZE = 4096
"""Most columns of a row that the layer-norm kernels reduce."""


class _State(threading.local):
    batch_invariant = 0


_state = _State()


def enter_batch_invariance() -> None:
    """Count one more entry of the calling thread into the batch-invariant mode."""
    _state.batch_invariant += 1


def leave_batch_invariance() -> None:
    """Count one entry less."""
    _state.batch_invariant -= 1


# A compiled graph keeps the answer: torch.compile traces again where the mode, a TorchFunctionMode, comes or goes.
@torch.compiler.assume_constant_result
def is_batch_invariant() -> bool:
    """True if the calling thread is in `erniem_fast.batch_invariant()`."""
    return _state.batch_invariant > 0


@functools.cache
def has_triton() -> bool:
    """True if the package triton is installed."""
    return find_spec("triton") is not None


@torch.compiler.assume_constant_result
def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype = torch.float32, *, head_dim: int = 0, hidden_size: int = 0
) -> str:
    """Resolve "auto", and refuse what cannot be had.

    Args:
        backend: "auto", "triton" or "torch".
        device: device of the operands.
        dtype: dtype of the operands.
        head_dim: width of an attention head, 0 where there is none.
        hidden_size: columns of a row that a layer-norm reduces, 0 where there is none.

    Returns:
        "triton" or "torch".

    Raises:
        ValueError: the backend is unknown; or "triton" was asked for, by name or by `batch_invariant()`, and does not
            take such operands.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    required = backend == "triton"
    if is_batch_invariant():
        if backend == "torch":
            raise ValueError("backend must be 'auto' or 'triton' in batch_invariant(), got 'torch'")
        required = True
    if not required and (backend == "torch" or device.type != "cuda" or not _is_at_home(device)):
        return "torch"
    reason = _refusal(device, dtype, head_dim, hidden_size)
    if reason is None:
        return "triton"
    if required:
        raise ValueError(f"backend 'triton' needs {reason}")
    return "torch"


def backend_after_move(backend: str, source: torch.device, target: torch.device) -> str:
    """Backend of operands that move from one device to another: "torch" where the kernels do not run on the other.

    Args:
        backend: "triton" or "torch", resolved for the source.
        source, target: devices.
    """
    return backend if backend == "torch" or source == target else resolve_backend("auto", target)


def runs_kernels(backend: str, first: Tensor, *others: Tensor | None, head_dim: int = 0, hidden_size: int = 0) -> bool:
    """True if the kernels compute an operation on these operands, False if torch does; raises as `resolve_backend`."""
    device, dtype = first.device, first.dtype
    if resolve_backend(backend, device, dtype) == "torch":
        return False
    kinds = {(device, dtype)}  # mostly the only one
    for operand in others:
        if operand is not None and (operand.dtype != dtype or operand.device != device):
            kinds.add((operand.device, operand.dtype))
    return all(
        resolve_backend(backend, *kind, head_dim=head_dim, hidden_size=hidden_size) == "triton" for kind in kinds
    )


@functools.cache
def _is_at_home(device: torch.device) -> bool:
    """True for NVIDIA GPUs with bfloat16 tensor cores, where triton is installed."""
    return has_triton() and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _refusal(device: torch.device, dtype: torch.dtype, head_dim: int, hidden_size: int) -> str | None:
    """Reason the kernels cannot run on such operands, or None."""
    if not has_triton():
        return "the package triton, which is not installed"
    from ..kernels.common import DTYPES, INTERPRETED

    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"a CUDA device (or a CPU under TRITON_INTERPRET=1), got {device}"
    if dtype not in DTYPES:
        return f"float32, bfloat16 or float16, got {dtype}"
    for name, size, most in (("head_dim", head_dim, MAX_HEAD_DIM), ("hidden_size", hidden_size, MAX_HIDDEN_SIZE)):
        if size > most:
            return f"a {name} of at most {most}, got {size}"
    return None


def autocast(*operands: Tensor | None) -> tuple[Tensor | None, ...]:
    """The operands of a matrix product as autocast, if it is on, makes them."""
    first = operands[0]
    assert first is not None
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return operands
    dtype = torch.get_autocast_dtype(kind)
    return tuple(None if operand is None else operand.to(dtype) for operand in operands)


def needs_grad(*tensors: Tensor | None) -> bool:
    """True if a gradient may be asked of a result of these operands."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def check_rows(name: str, x: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"{name} must have shape (total_tokens, size), got {tuple(x.shape)}")


def check_residual(residual: Tensor | None, rows: int, columns: int) -> None:
    if residual is not None and residual.shape != (rows, columns):
        raise ValueError(f"residual must have shape {(rows, columns)} (the result's), got {tuple(residual.shape)}")


def check_vectors(size: int, **vectors: Tensor | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {tuple(vector.shape)}")


def check_devices(**tensors: Tensor | None) -> None:
    first_name, first = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first_name, first = name, tensor.device
        elif tensor.device != first:
            raise ValueError(f"{name} must be on {first}, where {first_name} is, got {tensor.device}")
