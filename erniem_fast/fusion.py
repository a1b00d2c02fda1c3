"""May it be fused? The fused operation, else the modules themselves, side by side.

The decision is made anew in every call: hooks, adapters and `.eval()` on one dropout come and go at any time. A module
is read, and not called, only if calling it would do nothing else: its exact class, no hooks, plain parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.activations import ACT2FN

from . import ops
from .ops import Dropout, onednn, rows_cpu
from .packing import PackedBatch
from .validation import warn_once

GELU = type(ACT2FN["gelu"])
DropoutLike = nn.Module | float | None
"""A dropout as models have it: a module, a probability that holds in training, or none."""
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class PackedContext:
    """The batch as the layers see it.

    Attributes:
        batch: the packing.
        seed: (1,) int64 for this forward's dropouts; None outside training.
        mask: (batch, 1 or num_heads, seq_len, seq_len) bool of the dense attention, or None.
        plan: of the fused attention; None: the attention is computed densely.
        backend: of the operations, "triton" or "torch".
        rows_to_keep: (num_kept,) int64, those of the (total_tokens,) rows that the layer computes behind its attention,
            and all that it returns; None: every row.
    """

    batch: PackedBatch
    seed: Tensor | None
    mask: Tensor | None
    plan: ops.AttentionPlan | None
    backend: str
    rows_to_keep: Tensor | None = None

    @property
    def adds_bias_late(self) -> bool:
        """True if the operation behind a linear layer adds its bias: a kernel does so for free."""
        return self.backend == "triton"

    def kept(self, rows: Tensor) -> Tensor:
        """Select the rows to keep, (total_tokens, ...) to (num_kept, ...)."""
        return rows if self.rows_to_keep is None else rows.index_select(0, self.rows_to_keep)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedContext":
        """Move to another device, as accelerate does with a layer's arguments where it spreads layers over devices.

        Where the kernels do not run on that device, the operations run by torch.
        """

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            batch=self.batch.to(device, non_blocking),
            seed=move(self.seed),
            mask=move(self.mask),
            plan=None if self.plan is None else self.plan.to(device, non_blocking),
            backend=ops.backend_after_move(self.backend, self.batch.position_ids.device, torch.device(device)),
            rows_to_keep=move(self.rows_to_keep),
        )


class Pending(NamedTuple):
    """A linear layer's result that what follows it may finish at less cost.

    Attributes:
        product: (total_tokens, out_features), the bias not added; None: not computed yet.
        bias: (out_features,) to be added; None: nothing is.
        add_to: computes the whole result, and its sum with a residual where one is given, where `product` is None.
    """

    product: Tensor | None
    bias: Tensor | None = None
    add_to: Callable[[Tensor | None], Tensor] | None = None

    def with_product(self) -> tuple[Tensor, Tensor | None]:
        """The product, computed now if need be, and the bias that is missing in it."""
        if self.product is not None:
            return self.product, self.bias
        assert self.add_to is not None
        return self.add_to(None), None


CAPTURE = "transformers.utils.output_capturing"
"""Where transformers' hooks are from that record a forward's intermediate results, and stay on modules idle."""


def may_bypass(module: nn.Module) -> bool:
    """True if nothing but the module's own forward runs when it is called: no hooks, no replaced forward."""
    members = module.__dict__
    hooks = members["_forward_hooks"]
    return not (
        (hooks and any(getattr(hook, "__module__", None) != CAPTURE for hook in hooks.values()))
        or members["_forward_pre_hooks"]
        or members["_backward_hooks"]
        or members["_backward_pre_hooks"]
        or "forward" in members  # accelerate's offloading replaces it
        or has_global_hooks()
    )


def has_global_hooks() -> bool:
    """True if hooks run at each call of any module."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def is_plain(module: nn.Module, cls: type[M]) -> TypeGuard[M]:
    """True if the module can be fused: exact class, no hooks, plain parameters."""
    if type(module) is not cls or not may_bypass(module):
        return False
    for parameter in module.__dict__["_parameters"].values():
        # Quantised and sharded weights are subclasses of Tensor; a missing bias or weight is None.
        if type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
            return False
    return True


def _is_plain_embedding(module: nn.Module) -> TypeGuard[nn.Embedding]:
    plain = is_plain(module, nn.Embedding)
    return plain and module.max_norm is None and not (module.scale_grad_by_freq or module.sparse)


def take_over(dropout: DropoutLike, context: PackedContext, site: int) -> tuple[bool, Dropout | None]:
    """Decide on a dropout.

    Returns:
        True and the dropout that an operation takes over, None where nothing is dropped; False if it must be called.
    """
    if dropout is None:
        return True, None
    if isinstance(dropout, int | float):
        p, on = dropout, context.seed is not None
    elif is_plain(dropout, nn.Dropout):
        p, on = dropout.p, dropout.training
    else:
        return False, None
    if not on or p == 0:
        return True, None
    # Without a seed the model is in eval mode and somebody has left this dropout on.
    if context.seed is None or p >= 1:
        return False, None
    return True, Dropout(float(p), context.seed, site)


def call_dropout(dropout: DropoutLike, x: Tensor, context: PackedContext) -> Tensor:
    """Apply a dropout that no operation takes over."""
    if dropout is None:
        return x
    return F.dropout(x, dropout, context.seed is not None) if isinstance(dropout, int | float) else dropout(x)


def embed(
    words: nn.Module,
    positions: nn.Module,
    norm: nn.Module,
    dropout: DropoutLike,
    position_rows: Tensor,
    context: PackedContext,
    further: Sequence[tuple[nn.Module, Tensor | int]] = (),
) -> Tensor:
    """dropout(norm(words + further + positions)) of the context's tokens, at site 0.

    Args:
        words: table of the word embeddings; not read where the batch holds `inputs_embeds`.
        positions: table of the position embeddings.
        norm, dropout: that follow.
        position_rows: (total_tokens,) integers, rows of the position table.
        context: of the batch.
        further: tables of further embeddings, with (total_tokens,) integers, or the one row that all tokens read.

    Returns:
        (total_tokens, hidden_size).
    """
    input_ids, embedded = context.batch.input_ids, context.batch.inputs_embeds
    if further:
        embedded = _call_table(words, input_ids, context.batch) if embedded is None else embedded
        input_ids = None
        for module, row in further:
            embedded = embedded + _read_table(module, row, context.batch)
    # A module that is called may have no table, or keep it on another device.
    table: nn.Embedding | None = None
    if embedded is None and _is_plain_embedding(words):
        table = words
    elif embedded is None:
        input_ids, embedded = None, _call_table(words, input_ids, context.batch)
    if not (_is_plain_embedding(positions) and is_plain(norm, nn.LayerNorm)):
        embedded = _call_table(words, input_ids, context.batch) if embedded is None else embedded
        return call_dropout(dropout, norm(embedded + positions(position_rows)), context)
    fused, drop = take_over(dropout, context, 0)
    rows = ops.embedding_layer_norm(
        input_ids,
        position_rows,
        None if table is None else table.weight,
        positions.weight,
        norm.weight,
        norm.bias,
        norm.eps,
        inputs_embeds=embedded,
        padding_idx=None if table is None else table.padding_idx,
        position_padding_idx=positions.padding_idx,
        dropout=drop,
        backend=context.backend,
    )
    return rows if fused else call_dropout(dropout, rows, context)


def _call_table(table: nn.Module, ids: Tensor | None, batch: PackedBatch) -> Tensor:
    """Rows of a table for the (total_tokens,) ids; hooks see the shape of the caller's batch, as NEFTune's need it."""
    assert ids is not None
    if may_bypass(table):
        return table(ids)  # type: ignore[no-any-return]
    pad = getattr(table, "padding_idx", None) or 0
    return batch.rows(table(batch.output(ids, pad)))


def _read_table(table: nn.Module, row: Tensor | int, batch: PackedBatch) -> Tensor:
    """Rows of a table, or the one row that every token reads."""
    if isinstance(row, Tensor):
        return _call_table(table, row, batch)
    if _is_plain_embedding(table) and table.padding_idx != row:
        return table.weight[row]
    return _call_table(table, torch.full_like(batch.position_ids, row), batch)


def project_qkv(query: nn.Module, key: nn.Module, value: nn.Module, x: Tensor) -> Tensor:
    """Project (total_tokens, hidden_size) to (total_tokens, 3, num_heads * head_dim)."""
    if not (is_plain(query, nn.Linear) and is_plain(key, nn.Linear) and is_plain(value, nn.Linear)):
        return torch.stack([query(x), key(x), value(x)], 1)
    # DataParallel's replicas have no parameters: their tensors are plain attributes.
    parameters = [module.__dict__["_parameters"] or module.__dict__ for module in (query, key, value)]
    weights, biases = ([of[name] for of in parameters] for name in ("weight", "bias"))
    is_taken = rows_cpu.takes(x, *weights, *biases)
    weight = None if is_taken and onednn.packed(weights) is not None else as_one(weights)
    if is_taken and weight is None:
        return rows_cpu.linear(x, weights, biases)
    bias = as_one(biases)
    # Concatenated every time: a write through `.data` leaves no trace that would tell a kept copy is stale.
    weight = torch.cat(weights) if weight is None else weight
    bias = torch.cat(biases) if bias is None else bias
    joined = ops.add_linear(x, weight, bias)
    return joined.unflatten(1, (3, joined.shape[1] // 3))


def as_one(tensors: Sequence[Tensor]) -> Tensor | None:
    """The concatenation of plain tensors as a view, where they lie one behind the other in memory; else None.

    Looked up by address, so that a tensor that was replaced is noticed. None where gradients are recorded, which a view
    of the first tensor would not pass on to the others, nor their tangents, and where there are no addresses
    (torch.compile, torch.func).
    """
    if not rows_cpu.computes_plainly(*tensors):
        return None
    first, shape = tensors[0], tensors[0].shape
    address, size = first.data_ptr(), first.nbytes
    for tensor in tensors:
        if tensor.data_ptr() != address or tensor.shape != shape or tensor.dtype != first.dtype:
            return None
        if not tensor.is_contiguous() or tensor.device != first.device:
            return None
        address += size
    storage = first.untyped_storage()
    # Two allocations may be neighbours by chance.
    if not size or address > storage.data_ptr() + storage.nbytes():
        return None
    return first.as_strided((len(tensors) * shape[0], *shape[1:]), first.stride())


def linear(module: nn.Module, x: Tensor, context: PackedContext) -> Pending:
    """A linear layer, as far as the operation behind it does not compute it at less cost."""
    if not is_plain(module, nn.Linear):
        return Pending(module(x))
    if context.adds_bias_late:
        return Pending(F.linear(x, module.weight), module.bias)
    return Pending(None, add_to=lambda residual: ops.add_linear(x, module.weight, module.bias, residual))


def fused_activation(module: nn.Module) -> str | None:
    """Name of the activation for the operations; None: it must be called."""
    return "gelu" if is_plain(module, GELU) else "relu" if is_plain(module, nn.ReLU) else None


def is_fused(part: nn.Module) -> bool:
    """True if an operation takes over a part of a layer, and it is not called."""
    return fused_activation(part) is not None or any(
        is_plain(part, cls) for cls in (nn.Linear, nn.LayerNorm, nn.Dropout)
    )


def decoder_loss(
    model: nn.Module,
    around: Mapping[str, type[nn.Module]],
    decoder_name: str,
    transform: Callable[[Tensor], Tensor],
    backend: str,
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Sum of the cross-entropies of a masked-LM head, its decoder and the loss in one operation.

    Args:
        model: module that holds the head.
        around: names of the modules between it and the decoder, the outermost first, which are not called then; and
            the class that each must be.
        decoder_name: of the projection to the vocabulary.
        transform: what the head computes before that.
        backend: of the operation.

    Returns:
        The function of (num_rows, hidden_size) and of (num_rows,) targets; None: the head must be called.
    """
    for name, cls in around.items():
        module = model.get_submodule(name)
        if type(module) is not cls or not may_bypass(module):
            return None
    decoder = model.get_submodule(decoder_name)
    if not is_plain(decoder, nn.Linear):
        return None
    weight, bias = decoder.weight, decoder.bias
    return lambda rows, targets: ops.linear_cross_entropy(transform(rows), weight, bias, targets, backend=backend)


def feed_forward(
    linear1: nn.Module,
    activation: nn.Module,
    dropout: DropoutLike,
    linear2: nn.Module,
    x: Tensor,
    context: PackedContext,
    site: int,
) -> Pending:
    """linear2(dropout(activation(linear1(x))))."""
    fused, drop = take_over(dropout, context, site)
    name = fused_activation(activation)
    if name is None:
        warn_once("The activation is not fused: it is neither gelu nor relu, or it carries hooks.")
        return linear(linear2, call_dropout(dropout, activation(linear1(x)), context), context)
    if not (fused and is_plain(linear1, nn.Linear) and is_plain(linear2, nn.Linear)):
        product, bias = linear(linear1, x, context).with_product()
        inner = ops.bias_activation_dropout(product, bias, activation=name, dropout=drop, backend=context.backend)
        return linear(linear2, inner if fused else call_dropout(dropout, inner, context), context)
    late = context.adds_bias_late

    def compute(residual: Tensor | None) -> Tensor:
        return ops.mlp(
            x,
            linear1.weight,
            linear1.bias,
            linear2.weight,
            None if late else linear2.bias,
            activation=name,
            dropout=drop,
            residual=residual,
            backend=context.backend,
        )

    return Pending(compute(None), linear2.bias) if late else Pending(None, add_to=compute)


def dropout_add_norm(
    x: Pending, residual: Tensor, dropout: DropoutLike, norm: nn.Module, context: PackedContext, site: int
) -> Tensor:
    """norm(residual + dropout(x))."""
    fused, drop = take_over(dropout, context, site)
    if x.add_to is not None and fused and drop is None:
        return norm(x.add_to(residual))  # type: ignore[no-any-return]
    product, bias = x.with_product()
    if not (fused and is_plain(norm, nn.LayerNorm)):
        product = product if bias is None else product + bias
        return norm(residual + call_dropout(dropout, product, context))  # type: ignore[no-any-return]
    return ops.dropout_add_layer_norm(
        product,
        residual,
        norm.weight,
        norm.bias,
        norm.eps,
        linear_bias=bias,
        dropout=drop,
        backend=context.backend,
    )
