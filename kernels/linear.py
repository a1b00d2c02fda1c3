"""Linear layers by one persistent kernel, with an activation and dropout in its epilogue if asked for.

    product = x weight^T      y = product + bias, or act(product + bias) * keep / (1 - p)

x: (rows, in_features), M x K in the kernel; weight: (out_features, in_features), N x K; bias: (out_features,);
product, y: (rows, out_features), M x N.
The sum over in_features is float32, and the product is rounded to x's dtype before anything is done to it, as if it had
been stored: y is bit for bit what `activation.bias_activation_dropout` makes of it.

A tile of y is one program's, which walks over in_features from the first to the last in steps of one size whatever the
number of rows. So a row of y depends on its row of x alone, not on how many rows there are or where among them it lies
(batch invariance: He et al., "Defeating Nondeterminism in LLM Inference", thinkingmachines.ai, 2025); cuBLAS picks
other sums for other sizes. Each program takes one tile after another, so that the next one's loads overlap with this
one's epilogue; operands come through tensor descriptors (TMA from sm_90 on).

Residual and layer-norm are left to a pass of their own: for inference an epilogue that adds the residual would move as
many bytes (it reads the residual and writes the sum, which the layer-norm then reads) as the pass that does both.
"""

import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .activation import activate, bias_activation_dropout_oracle
from .common import Operation, cdiv, dropout_arguments, keep_rows, launch_options, multiply, narrow, precision
from .configs import linear_config
from .dropout import Dropout
from .jit import jit

ALIGNMENT = 16
"""Bytes; a row of x and of the weight must be a multiple of it for a descriptor."""
_GROUP_M = tl.constexpr(8)
"""Tiles of rows that are walked through together, so that they find the weight in the cache."""


def linear_oracle(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None, dropout: Dropout | None = None
) -> tuple[Tensor, Tensor]:
    """The operation by plain formulas, in the dtype of its operands: (y, product)."""
    product = F.linear(x, weight)
    if activation is not None:
        return bias_activation_dropout_oracle(product, bias, activation, dropout), product
    return product if bias is None else product + bias, product


@jit(do_not_specialize=["M", "site", "threshold"])
def _linear_fwd_kernel(
    x_desc,  # (M, K)
    weight_desc,  # (N, K)
    bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    product_ptr,  # (M, N), if STORE_PRODUCT
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    site,
    threshold,
    keep_scale,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,  # None: none
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    STORE_PRODUCT: tl.constexpr,
    FLATTEN: tl.constexpr,  # the pipeline runs on from one tile into the next
    PARTS: tl.constexpr,  # 2: the epilogue takes one half of the columns after the other
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of y after another, as many programs as the multiprocessors hold."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        first_m = tile // (_GROUP_M * tiles_n) * _GROUP_M
        group_m = tl.minimum(tiles_m - first_m, _GROUP_M)
        in_group = tile - first_m * tiles_n
        start_m, start_n = (first_m + in_group % group_m) * BLOCK_M, in_group // group_m * BLOCK_N

        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start_k in range(0, K, BLOCK_K):
            x = x_desc.load([start_m, start_k])
            weight = weight_desc.load([start_n, start_k])
            acc = multiply(x, tl.trans(weight), acc, PRECISION)

        for part in tl.static_range(PARTS):
            if PARTS == 1:
                columns = acc
            else:
                halves = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
                columns = halves[part]
            _store_columns(
                columns, bias_ptr, y_ptr, product_ptr, seed_ptr, M, N, start_m, start_n + part * (BLOCK_N // PARTS),
                site, threshold, keep_scale, HAS_BIAS, ACTIVATION, APPLY_DROPOUT, USE_PTX, STORE_PRODUCT, BLOCK_M,
                BLOCK_N // PARTS,
            )  # fmt: skip


@triton.jit
def _store_columns(
    acc,  # (BLOCK_M, BLOCK_N)
    bias_ptr,  # (N,)
    y_ptr,  # (M, N)
    product_ptr,  # (M, N), if STORE_PRODUCT
    seed_ptr,  # (1,) int64
    M,
    N: tl.constexpr,
    start_m,
    start_n,
    site,
    threshold,
    keep_scale,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    APPLY_DROPOUT: tl.constexpr,
    USE_PTX: tl.constexpr,
    STORE_PRODUCT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The epilogue: y, and the product, of a block whose sums are acc."""
    offs_m, offs_n = start_m + tl.arange(0, BLOCK_M), start_n + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    offsets = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    product = narrow(acc, y_ptr.dtype.element_ty)
    if STORE_PRODUCT:
        tl.store(product_ptr + offsets, product, mask=mask)
    y = product.to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION is not None:
        y = activate(y, ACTIVATION)
    if APPLY_DROPOUT:
        keep = keep_rows(tl.load(seed_ptr), site, offs_m[:, None], offs_n[None, :], threshold, USE_PTX)
        y = tl.where(keep, y * keep_scale, 0.0)
    tl.store(y_ptr + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)


def is_aligned(x: Tensor, weight: Tensor) -> bool:
    """True if the kernel takes these operands."""
    return weight.shape[1] * weight.dtype.itemsize % ALIGNMENT == 0 and x.dtype == weight.dtype


def _descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
    """Descriptor of a contiguous matrix: a lone row may have any stride, but a descriptor needs an aligned one."""
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.shape[1], 1], block)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Their number; where there are none, so few that a program takes several tiles."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None, dropout: Dropout | None = None,
    save: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel.

    Args:
        x: (rows, in_features), contiguous, as is the weight; a row must be a multiple of ALIGNMENT bytes.
        weight: (out_features, in_features), of x's dtype.
        bias: (out_features,); None: none.
        activation: "gelu" or "relu" after the bias; None: none.
        dropout: dropout of y; None: none.
        save: True if the product is returned as well.

    Returns:
        y, and the product, or no rows of it.
    """
    (m, k), n = x.shape, weight.shape[0]
    y, product = x.new_empty(m, n), x.new_empty(m if save else 0, n)
    if not y.numel():
        return y, product
    x, weight = (tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor for tensor in (x, weight))
    config = linear_config(x.device, x.dtype, activation is not None)
    tiles = cdiv(m, config.block_m) * cdiv(n, config.block_n)
    _linear_fwd_kernel[(min(tiles, config.programs * _multiprocessors(x.device)),)](
        _descriptor(x, [config.block_m, config.block_k]),
        _descriptor(weight, [config.block_n, config.block_k]),
        weight if bias is None else bias, y, product, M=m, N=n, K=k, HAS_BIAS=bias is not None, ACTIVATION=activation,
        STORE_PRODUCT=save, FLATTEN=config.flatten, PARTS=config.parts, PRECISION=precision(x.dtype, x.device),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, **launch_options(config, x.device),
        **dropout_arguments(dropout, y),
    )  # fmt: skip
    return y, product


linear = Operation(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: launch_linear(x, weight, bias)[0],
    lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
)
