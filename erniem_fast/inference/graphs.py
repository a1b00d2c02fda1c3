"""Packed inference by CUDA graphs: the time of a small batch is that of its kernels, without that of launching them."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder import PackedModelOutput
from ..ops import is_batch_invariant
from ..packing import PackedBatch
from .arguments import check_encoder
from .projections import join_projections

TOKENS = tuple(size for power in range(5, 14) for size in (2**power, 3 * 2 ** (power - 1)))
"""32, 48, 64, 96, ... 12288: at most half as many tokens again as there are."""
SEQUENCES = tuple(2**power for power in range(10))
"""1, 2, 4, ... 512."""

Key = tuple[int, int, bool, torch.dtype | None, tuple[str, ...]]
"""Tokens and sequences of the bucket, batch invariance, autocast's dtype, names of the further ids."""


def in_bucket(batch: PackedBatch, tokens: int, sequences: int, max_tokens: int, first_position: int = 0) -> PackedBatch:
    """Enlarge a batch to fixed sizes. On the sequences of `batch`, the first ones, the model gives the same.

    The sequences added are empty: `cu_seqlens` goes on with its last offset. The rows added belong to no sequence.

    Args:
        batch: packed tokens.
        tokens: total_tokens of the result.
        sequences: num_sequences of the result.
        max_tokens: most tokens of a sequence; max_seqlen is this, or `tokens` where that is less.
        first_position: position of the rows added, the first that the model takes.
    """
    rows, empty = tokens - batch.total_tokens, sequences - batch.num_sequences
    assert batch.input_ids is not None
    ends = batch.cu_seqlens.new_full((empty,), batch.total_tokens)
    return PackedBatch(
        cu_seqlens=torch.cat((batch.cu_seqlens, ends)),
        max_seqlen=min(tokens, max_tokens),
        position_ids=F.pad(batch.position_ids, (0, rows), value=first_position),
        input_ids=F.pad(batch.input_ids, (0, rows)),
        token_ids={name: F.pad(ids, (0, rows)) for name, ids in batch.token_ids.items()},
    )


@dataclass(frozen=True, eq=False)
class Captured:
    """A captured graph and the fixed memory that `graph.replay()` reads and writes.

    Attributes:
        graph: the encoder's graph.
        batch: the batch that it reads.
        rows, pooled: the results that it writes, with room for the largest bucket.
    """

    graph: torch.cuda.CUDAGraph
    batch: PackedBatch
    rows: Tensor
    pooled: Tensor


class GraphedEncoder:
    """An encoder that replays a CUDA graph for each bucket of tokens and sequences.

    A bucket is captured when it is first met. All graphs share one pool of memory, since no two run at once: capture
    the largest bucket first, and the others need little more. `reserved_bytes` is the memory that pool and captures
    took. A batch beyond the buckets runs without a graph.

    The projections of the model's attention are stored together (`join_projections`), so that a graph does not copy
    them. Weights may be changed in place; a parameter or module that was replaced goes unnoticed, and so do the hooks
    of a replaced module. Not for several threads at once.

    Results equal those of the model on the same bucket (`in_bucket`) bit for bit, and those of the batch by itself but
    for rounding: cuBLAS may add up in another order where there are other numbers of rows.

    Args:
        model: an ErnieMModel, or an encoder that `padding_free` made so; on a CUDA device, in eval mode, without hooks,
            which a graph would leave out.
        tokens: total_tokens of the buckets, rising.
        sequences: num_sequences of the buckets, rising.
        max_graphs: most graphs kept at once; the least recently used one makes room.

    Raises:
        TypeError: `model` is anything else.
        ValueError: an argument that is not as described above.
    """

    device_type = "cuda"

    def __init__(
        self,
        model: Any,
        tokens: Sequence[int] = TOKENS,
        sequences: Sequence[int] = SEQUENCES,
        max_graphs: int = 64,
    ) -> None:
        check_encoder(model)
        if model.device.type != self.device_type:
            raise ValueError(f"model must be on a CUDA device, got {model.device}")
        for name, sizes in (("tokens", tokens), ("sequences", sequences)):
            if not sizes or sizes[0] < 1 or any(two <= one for one, two in pairwise(sizes)):
                raise ValueError(f"{name} must be rising numbers of at least 1, got {list(sizes)}")
        if max_graphs < 1:
            raise ValueError(f"max_graphs must be at least 1, got {max_graphs}")
        self.model = model
        self.tokens, self.sequences, self.max_graphs = tuple(tokens), tuple(sequences), max_graphs
        self.reserved_bytes = 0
        self._graphs: OrderedDict[Key, Captured] = OrderedDict()
        join_projections(model)
        self._hooks = [
            hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        # Memory of a pool belongs to the stream that it was first taken on: one stream captures all.
        self._stream: Any = None
        self._pool: Any = None
        # By dtype. Every graph copies its results here and leaves its own memory to the next one.
        self._results: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> PackedModelOutput:
        """Encode a batch of tokens on the model's device.

        Returns:
            last_hidden_state (total_tokens, hidden_size), pooler_output (num_sequences, hidden_size), and the batch.

        Raises:
            ValueError: the batch holds inputs_embeds or prefix_lens, or the model is in training mode or has hooks.
        """
        self._check(batch)
        tokens, sequences = _bucket(self.tokens, batch.total_tokens), _bucket(self.sequences, batch.num_sequences)
        limits = self.model.limits
        if tokens is None or sequences is None or batch.max_seqlen > limits.max_tokens:
            output: PackedModelOutput = self.model(batch, return_packed=True)
            return output
        kind = self.device_type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = tokens, sequences, is_batch_invariant(), autocast, tuple(sorted(batch.token_ids))
        captured = self._graphs.get(key)
        if captured is None:
            bucket = in_bucket(batch, tokens, sequences, limits.max_tokens, limits.first_position)
            # Autocast's cache would free the copies of weights that a graph reads.
            with torch.autocast(kind, autocast, enabled=autocast is not None, cache_enabled=False):
                captured = self._graphs[key] = self._capture(bucket)
            if len(self._graphs) > self.max_graphs:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        _refill(captured.batch, batch)
        captured.graph.replay()
        has_pooler = getattr(self.model, "pooler", None) is not None
        return PackedModelOutput(
            last_hidden_state=captured.rows[: batch.total_tokens].clone(),
            pooler_output=captured.pooled[: batch.num_sequences].clone() if has_pooler else None,
            batch=batch,
        )

    def _check(self, batch: PackedBatch) -> None:
        for name in ("inputs_embeds", "prefix_lens"):
            if getattr(batch, name) is not None:
                raise ValueError(f"{name} must be None: graphs take tokens only")
        if self.model.training:
            raise ValueError("model must be in eval mode, got training mode")
        if any(self._hooks):
            raise ValueError("model must have no forward hooks, which a graph would leave out")
        device, given = self.model.device, batch.position_ids.device
        if given != device:
            raise ValueError(f"batch must be on {device}, where the model is, got {given}")

    def _room(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Memory for the results of the largest bucket, in the dtype that this batch has; runs the model."""
        output = self.model(batch, return_packed=True)
        rows = output.last_hidden_state
        if rows.dtype not in self._results:
            pooled = rows if output.pooler_output is None else output.pooler_output
            self._results[rows.dtype] = (
                rows.new_empty(self.tokens[-1], rows.shape[1]),
                pooled.new_empty(self.sequences[-1], pooled.shape[1]),
            )
        return self._results[rows.dtype]

    def _run(self, batch: PackedBatch, rows: Tensor, pooled: Tensor) -> None:
        output = self.model(batch, return_packed=True)
        rows[: batch.total_tokens].copy_(output.last_hidden_state)
        if output.pooler_output is not None:
            pooled[: batch.num_sequences].copy_(output.pooler_output)

    def _capture(self, batch: PackedBatch) -> Captured:
        with torch.cuda.device(self.model.device):
            self._stream = self._stream or torch.cuda.Stream()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                # A capture must find its kernels compiled and its libraries ready.
                room = self._room(batch)
                self._run(batch, *room)
            torch.cuda.current_stream().wait_stream(self._stream)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            graph = torch.cuda.CUDAGraph()
            # Other threads, with engines on other GPUs, go on allocating.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                self._run(batch, *room)
            self._pool = graph.pool()
            self.reserved_bytes += torch.cuda.memory_reserved() - before
            return Captured(graph, batch, *room)


def _bucket(sizes: Sequence[int], size: int) -> int | None:
    place = bisect_left(sizes, size)
    return sizes[place] if place < len(sizes) else None


def _refill(static: PackedBatch, batch: PackedBatch) -> None:
    """Copy a batch into the fixed memory. Rows left over from another batch stay: they belong to no sequence."""
    assert static.input_ids is not None
    assert batch.input_ids is not None
    static.input_ids[: batch.total_tokens].copy_(batch.input_ids)
    static.position_ids[: batch.total_tokens].copy_(batch.position_ids)
    for name, ids in batch.token_ids.items():
        static.token_ids[name][: batch.total_tokens].copy_(ids)
    static.cu_seqlens[: batch.num_sequences + 1].copy_(batch.cu_seqlens)
    static.cu_seqlens[batch.num_sequences + 1 :].fill_(batch.total_tokens)
