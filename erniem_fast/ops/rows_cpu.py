"""Linear layers of inference on a CPU: by pieces of rows, each written where it belongs.

Nothing is concatenated or copied: a product is added to what its result already holds (the bias, or the residual and
the bias), and the wide activations of the feed-forward block stay in a buffer of one piece.

In 16 bits oneDNN compiles a product anew for each number of rows, which takes up to 30 ms and 4 MB for a layer of base
width, and the next batch has another number. So all pieces have one size, and the last one is filled up to a multiple
of oneDNN's tiles. Weights that were packed (`onednn.pack`) are not put in order again for each piece.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import onednn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Others (float64) are computed as in training, to the bit."""
SIZES = (2048, 512)
"""Rows of a piece in 16 bits: oneDNN's products take up to twice as long for 768 to 1,280 rows. In float32 all rows."""
MLP_SIZES = {torch.float32: (1024,), torch.bfloat16: (512,), torch.float16: (512,)}
"""Rows of a piece in the feed-forward block, whose wide activations should stay near the cache."""
ROWS_OF_THREAD, ROWS_OF_ALL = 640, 192
"""Most rows of a piece where weights are packed: of a thread alone; for each of several. With more, oneDNN leaves
products of some shapes to one of two threads."""
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"gelu": torch.ops.aten.gelu_, "relu": torch.relu_}
"""Activations that overwrite their argument."""


def modes_look_on() -> bool:
    """True if a mode of this thread sees the operations, as a FLOP counter does."""
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


def computes_plainly(*tensors: Tensor) -> bool:
    """True if nothing but values is asked for: no gradients, tangents, batching, tracing, or modes that look on."""
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or modes_look_on()
    ):
        return False
    for tensor in tensors:  # noqa: SIM110  (a generator takes as long as the checks)
        if type(tensor) is not nn.Parameter and type(tensor) is not Tensor:
            return False
    return True


def takes(x: Tensor, *parameters: Tensor | None) -> bool:
    """True if the functions of this file compute linear layers of these operands; None: a bias that is not there."""
    dtype = x.dtype
    if not x.is_cpu or dtype not in DTYPES or x.dim() != 2 or x.shape[0] == 0 or torch.is_autocast_enabled("cpu"):
        return False
    given = [parameter for parameter in parameters if parameter is not None]
    for one in given:
        if one.dtype != dtype or not one.is_cpu or not one.is_contiguous():
            return False
    return computes_plainly(x, *given)


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """x weight^T + bias of several layers.

    Args:
        x: (total_tokens, in_features).
        weights: (out_features, in_features) of each.
        biases: (out_features,) of each, or None.

    Returns:
        (total_tokens, number of layers, out_features).
    """
    if (packed := onednn.packed(weights)) is not None:
        bias = _joined(biases)
        out = _stacked([onednn.linear(piece, packed, bias) for piece in _whole_pieces(x)])
        return out[: x.shape[0]].unflatten(1, (len(weights), weights[0].shape[0]))
    out = x.new_empty(len(weights), _filled_rows(x), weights[0].shape[0])
    for rows, piece in _pieces(x, _sizes(x)):
        for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            _multiply(piece, weight, bias, None, out[index, rows])
    return out[:, : x.shape[0]].movedim(0, 1)


def add_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """residual + x weight^T + bias.

    Args:
        x: (total_tokens, in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        residual: (total_tokens, out_features).

    Returns:
        (total_tokens, out_features).
    """
    if (packed := onednn.packed([weight])) is not None:
        return _add_linear(_whole_pieces(x), packed, bias, residual)[: x.shape[0]]
    out = x.new_empty(_filled_rows(x), weight.shape[0])
    for rows, piece in _pieces(x, _sizes(x)):
        _multiply(piece, weight, bias, residual[rows], out[rows])
    return out[: x.shape[0]]


def add_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """residual + activation(x weight1^T + bias1) weight2^T + bias2, as `ops.mlp`."""
    packed1, packed2 = onednn.packed([weight1]), onednn.packed([weight2])
    if packed1 is not None and packed2 is not None:
        activated = (onednn.linear(piece, packed1, bias1, activation) for piece in _whole_pieces(x))
        return _add_linear(activated, packed2, bias2, residual)[: x.shape[0]]
    out = x.new_empty(_filled_rows(x), weight2.shape[0])
    fused = onednn.is_available(x.dtype)
    sizes = MLP_SIZES[x.dtype]
    buffer = None if fused else x.new_empty(min(out.shape[0], sizes[-1]), weight1.shape[0])
    for rows, piece in _pieces(x, sizes):
        if buffer is None:
            inner = onednn.linear(piece, weight1, bias1, activation)
        else:
            inner = buffer[: piece.shape[0]]
            _multiply(piece, weight1, bias1, None, inner)
            IN_PLACE[activation](inner)
        _multiply(inner, weight2, bias2, None if residual is None else residual[rows], out[rows])
    return out[: x.shape[0]]


def _add_linear(pieces: Iterable[Tensor], packed: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Products of pieces of rows with packed weights, and their sums with the residual's rows; those that fill too."""
    if residual is None:
        return _stacked([onednn.linear(piece, packed, bias) for piece in pieces])
    pairs = zip(pieces, _whole_pieces(residual), strict=True)
    return _stacked([onednn.add_linear(piece, packed, bias, rows) for piece, rows in pairs])


def _stacked(pieces: list[Tensor]) -> Tensor:
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _whole_pieces(x: Tensor) -> Iterator[Tensor]:
    """Rows for products with packed weights, filled up."""
    threads, total = torch.get_num_threads(), x.shape[0]
    most = ROWS_OF_THREAD if threads == 1 else ROWS_OF_ALL * threads
    size = filled(-(-total // -(-total // most)))
    return (piece for _, piece in _pieces(x, (size,)))


def _joined(biases: Sequence[Tensor | None]) -> Tensor | None:
    """Biases of several layers as one, where they have any."""
    given = [bias for bias in biases if bias is not None]
    return torch.cat(given) if len(given) > 1 else given[0] if given else None


def fill(x: Tensor) -> Tensor:
    """Rows filled up to whole tiles, so that none of these functions has to; in float32 as they are."""
    missing = 0 if x.dtype == torch.float32 else filled(x.shape[0]) - x.shape[0]
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def filled(rows: int) -> int:
    """Rows of a piece in 16 bits: whole tiles, of which oneDNN computes the missing rows anyway."""
    step = 16 if rows <= 64 else 32
    return -(-rows // step) * step


def _sizes(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0],) if x.dtype == torch.float32 else SIZES


def _filled_rows(x: Tensor) -> int:
    """Rows of a result, those that fill the last piece included."""
    total = x.shape[0]
    return total if x.dtype == torch.float32 else total - total % SIZES[-1] + filled(total % SIZES[-1])


def _pieces(x: Tensor, sizes: tuple[int, ...]) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each piece in a result, and the piece of x, of the largest of the sizes that there are rows for."""
    begin, total = 0, x.shape[0]
    while begin < total:
        size = next((size for size in sizes if size <= total - begin), sizes[-1])
        piece = x if size >= total else x[begin : begin + size]
        rows = min(size, total - begin)
        piece = fill(piece)
        yield slice(begin, begin + piece.shape[0]), piece
        begin += rows


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor) -> None:
    """Write x weight^T + bias + residual; the rows of `out` beyond the residual's are whatever they are."""
    if residual is not None:
        held = out[: residual.shape[0]]
        torch.add(residual, bias, out=held) if bias is not None else held.copy_(residual)
        out.addmm_(x, weight.t())
    elif bias is not None:
        torch.addmm(bias, x, weight.t(), out=out)
    else:
        torch.mm(x, weight.t(), out=out)
