"""Linear layers by one persistent kernel, with GELU and dropout in its epilogue if asked for.

    product = x weight^T      y = product + bias, or gelu(product + bias) * keep / (1 - p)

x: (rows, in_features); weight: (out_features, in_features); bias: (out_features,); product, y: (rows, out_features).
The sum over in_features is float32, and the product is rounded to x's dtype before anything is done to it, as if it had
been stored: y is bit for bit what `activation.bias_gelu_dropout` makes of it.

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

from .activation import bias_gelu_dropout_oracle, gelu
from .common import Operation, dropout_arguments, keep_rows, multiply, narrow, precision
from .configs import linear_config

ALIGNMENT = 16
"""Bytes of which a row of x and of the weight must be a multiple: descriptors ask for it."""
_GROUP = tl.constexpr(8)
"""Tiles of rows that are walked through together, so that they find the weight in the cache."""


def linear_oracle(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False, dropout_p: float = 0.0,
    seed: Tensor | None = None, site: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same by plain formulas, in the dtype of its operands: (y, product)."""
    product = F.linear(x, weight)
    if gelu:
        return bias_gelu_dropout_oracle(product, bias, dropout_p, seed, site), product
    return product if bias is None else product + bias, product


@triton.jit(do_not_specialize=["rows", "site", "threshold"])
def _linear(
    x_desc, weight_desc, bias_ptr, y_ptr, product_ptr, rows, seed_ptr, site, threshold, keep_scale,
    DROPOUT: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    FLATTEN: tl.constexpr,
):  # fmt: skip
    """SAVE: the product is stored, too."""
    down = tl.cdiv(rows, ROWS)
    across: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=FLATTEN):
        group = tile // (_GROUP * across) * _GROUP
        height = tl.minimum(down - group, _GROUP)
        place = tile - group * across
        first_row, first_column = (group + place % height) * ROWS, place // height * COLUMNS
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, IN, STEP):
            x = x_desc.load([first_row, k])
            weight = weight_desc.load([first_column, k])
            acc = multiply(x, tl.trans(weight), acc, PRECISION)
        row, column = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < OUT)[None, :]
        offsets = row.to(tl.int64)[:, None] * OUT + column[None, :]
        product = narrow(acc, y_ptr.dtype.element_ty)
        if SAVE:
            tl.store(product_ptr + offsets, product, mask=mask)
        y = product.to(tl.float32)
        if BIAS:
            y += tl.load(bias_ptr + column, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
        if GELU:
            y = gelu(y)
        if DROPOUT:
            keep = keep_rows(tl.load(seed_ptr), site, row[:, None], column[None, :], threshold)
            y = tl.where(keep, y * keep_scale, 0.0)
        tl.store(y_ptr + offsets, narrow(y, y_ptr.dtype.element_ty), mask=mask)


def is_aligned(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes these operands."""
    return weight.shape[1] * weight.dtype.itemsize % ALIGNMENT == 0 and x.dtype == weight.dtype


def _descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
    """Of a contiguous matrix: a lone row may have any stride, but a descriptor asks for an aligned one."""
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.shape[1], 1], block)


@functools.cache
def _programs(device: torch.device) -> int:
    """One a multiprocessor; where there are none, few enough that each takes several tiles."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False, dropout_p: float = 0.0,
    seed: Tensor | None = None, site: int = 0, save: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The launcher.

    Args:
        x: (rows, in_features), contiguous, as is the weight; a row must be a multiple of ALIGNMENT bytes.
        weight: (out_features, in_features), of x's dtype.
        bias: (out_features,); None: none.
        gelu: whether GELU and dropout are applied.
        dropout_p, seed, site: of the dropout.
        save: whether the product is returned as well.

    Returns:
        y, and the product, or no rows of it.
    """
    rows, size = x.shape[0], weight.shape[0]
    y, product = x.new_empty(rows, size), x.new_empty(rows if save else 0, size)
    if not y.numel():
        return y, product
    x, weight = (tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor for tensor in (x, weight))
    config = linear_config(x.device, x.dtype, gelu)
    tiles = triton.cdiv(rows, config.rows) * triton.cdiv(size, config.columns)
    _linear[(min(tiles, _programs(x.device)),)](
        _descriptor(x, [config.rows, config.step]),
        _descriptor(weight, [config.columns, config.step]),
        weight if bias is None else bias, y, product, rows, BIAS=bias is not None, GELU=gelu, SAVE=save,
        PRECISION=precision(x.dtype, x.device), IN=weight.shape[1], OUT=size, ROWS=config.rows,
        COLUMNS=config.columns, STEP=config.step, FLATTEN=config.flatten,
        num_warps=config.warps, num_stages=config.stages, **dropout_arguments(dropout_p, seed, site, y),
    )  # fmt: skip
    return y, product


linear = Operation(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: launch_linear(x, weight, bias)[0],
    lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
)
