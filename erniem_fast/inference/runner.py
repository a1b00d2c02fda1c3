"""A model that runs rows of token ids in batches of at most so many tokens, however much memory there is."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoder import PackedModelOutput
from ..fusion import has_global_hooks
from ..modeling import ErnieMModel
from ..packed import PackedEncoder
from ..packing import PackedBatch
from . import cpu_streams
from .arguments import check_eval, check_whole
from .graphs import GraphedEncoder
from .progress import progress_bar
from .tokens import Row

CPU_TOKENS = 8192
"""Tokens of a batch on a CPU: more are no faster."""
GPU_TOKENS = 128 * 1024
"""Most tokens of a batch elsewhere."""
LEAST_TOKENS = 512
GRAPH_TOKENS = 4096
"""A batch of more tokens keeps a GPU busy for longer than its kernels take to launch."""
MEMORY = Path("/proc/meminfo")
BATCHES_UNDER_WAY = 2
"""Batches on a GPU at once, so that one is packed and its results are fetched while the other is computed."""

Compute = Callable[[PackedBatch], Any]
logger = logging.getLogger(__name__)


class Runner:
    """Runs a model on rows of tokens, longest first, in batches within a budget.

    On a CUDA device the next batch is packed and copied while one is computed. If memory runs out, the budget is halved
    and the same rows are computed again.

    Args:
        model: a padding-free model, in eval mode; peft's wrapper of one passes, too.
        batch_tokens: most tokens of a batch; a longer row makes a batch alone. None: by the memory that is free now.

    Attributes:
        batch_tokens: the budget.
        on_tokens: called with the number of tokens of each batch that is done; None: nothing is.

    Raises:
        TypeError: the model holds no padding-free encoder.
        ValueError: the model is in training mode, or `batch_tokens` is no whole number of at least 1.
    """

    def __init__(self, model: Any, batch_tokens: int | None = None) -> None:
        check_eval(model)
        if batch_tokens is not None:
            check_whole("batch_tokens", batch_tokens, 1)
        self.model = model
        encoders: list[Any] = [part for part in model.modules() if isinstance(part, ErnieMModel | PackedEncoder)]
        if not encoders:
            raise TypeError(f"model must hold a padding-free encoder, got {type(model).__name__}")
        self.encoder = encoders[0]
        self.device: torch.device = self.encoder.device
        self.batch_tokens = budget(self.encoder) if batch_tokens is None else int(batch_tokens)
        self.on_tokens: Callable[[int], None] | None = None
        self._graphed: GraphedEncoder | None = None
        self._has_room_for_graphs = True

    def encode(self, batch: PackedBatch) -> PackedModelOutput:
        """Run the encoder alone; on a GPU a small batch replays a CUDA graph, until memory has run out once."""
        if self.device.type == "cuda" and batch.total_tokens <= GRAPH_TOKENS and self._can_be_graphed():
            self._graphed = self._graphed or GraphedEncoder(self.encoder)
            return self._graphed(batch)
        output: PackedModelOutput = self.encoder(batch, return_packed=True)
        return output

    def as_completed(
        self, rows: Sequence[Row], compute: Compute, lengths: np.ndarray | None = None, progress: str | None = None
    ) -> Iterator[tuple[list[int], Any]]:
        """Compute rows a batch at a time.

        Args:
            rows: token ids of each; empty ones are left out.
            compute: from a batch, whose sequences are in the order of the yielded indices, to its result: tensors or
                tuples of them, of any device. Runs in inference mode, and again with fewer rows if memory runs out.
            lengths: (len(rows),) tokens of each, where rows are put together when they are read; None: they are asked.
            progress: description of a progress bar on stderr; None: no bar.

        Yields:
            Indices of the batch's rows, and the batch's result, its tensors on the CPU.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        if lengths is None:
            lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        todo = _Plan(lengths)
        streams = self._streams(todo)
        share = cpu_streams.share_of(todo.tokens, streams) if streams > 1 else math.inf
        most = 2 * streams if streams > 1 else BATCHES_UNDER_WAY if self.device.type == "cuda" else 1
        under_way: deque[_UnderWay] = deque()
        is_short = False  # memory ran out: nothing is begun before all is done
        with progress_bar(todo.tokens, progress or "", " tokens", progress is not None) as bar:
            try:
                while todo.left or under_way:
                    done = None
                    try:
                        if todo.left and len(under_way) < most and not (is_short and under_way):
                            is_short = False
                            indices = todo.next(self.batch_tokens, share)
                            under_way.append(self._start([rows[i] for i in indices], indices, compute, streams))
                            continue
                        done = under_way.popleft()
                        indices = done.indices
                        result = done.wait()
                    except Exception as error:
                        was_alone = streams == 1 and not is_short and self._graphed is None
                        if not _is_out_of_memory(error) or (len(indices) == 1 and was_alone):
                            raise
                        shortage = str(error)
                    else:
                        bar.update(done.tokens)
                        if self.on_tokens is not None:
                            self.on_tokens(done.tokens)
                        yield indices, result
                        continue
                    # Outside of the handler, whose traceback would keep the batch's memory; and so would `done`.
                    done, is_short = None, True
                    if streams > 1:  # what does not fit beside others may fit alone
                        streams, share, most = 1, math.inf, 1
                    self._halve(int(lengths[indices].sum()), shortage)
                    todo.give_back(indices)
            finally:
                for one in under_way:
                    one.cancel()

    @contextmanager
    def showing_rate(self, bar: Any) -> Iterator[None]:
        """Show the tokens of a second on a progress bar, anew with each batch that is done."""
        tokens = 0

        def count(done: int) -> None:
            nonlocal tokens
            tokens += done
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
            bar.update(0)

        self.on_tokens = None if bar.disable else count
        try:
            yield
        finally:
            self.on_tokens = None

    def run(self, rows: Sequence[Row], compute: Callable[[PackedBatch], Any]) -> list[Any]:
        """Compute rows to one result each, in order; None for an empty one. `compute` gives a tensor with a line each.

        Returns:
            Tensors on the CPU.
        """
        results: list[Any] = [None] * len(rows)
        for indices, found in self.as_completed(rows, compute):
            for index, result in zip(indices, found, strict=True):
                results[index] = result
        return results

    def _streams(self, todo: "_Plan") -> int:
        """Number of batches that are computed side by side by threads of a CPU; 1: all threads compute each."""
        return cpu_streams.streams_for(len(todo.left), todo.tokens) if self.device.type == "cpu" else 1

    def _start(self, rows: list[Row], indices: list[int], compute: Compute, streams: int) -> "_UnderWay":
        tokens = sum(len(row.ids) for row in rows)
        if streams > 1:
            future = cpu_streams.pool(streams).submit(self._compute, rows, compute)
            return _UnderWay(indices, tokens, future.result, future.cancel)
        result = self._compute(rows, compute)
        if self.device.type != "cuda":
            return _UnderWay(indices, tokens, lambda: result)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))

        def wait() -> Any:
            event.synchronize()
            return result

        return _UnderWay(indices, tokens, wait)

    def _compute(self, rows: list[Row], compute: Compute) -> Any:
        """The result of a batch: on a CPU, or on its way to pinned memory."""
        limits = self.encoder.limits
        on_gpu = self.device.type == "cuda"
        batch = pack(rows, limits.first_position, limits.token_ids, pinned=on_gpu).to(self.device, non_blocking=on_gpu)
        with torch.inference_mode():
            result = compute(batch)
            return _map(result, _to_pinned) if on_gpu else result

    def _halve(self, tokens: int, shortage: str) -> None:
        if tokens > self.batch_tokens:  # it was begun before the budget was halved
            return
        self.batch_tokens = max(1, tokens // 2)
        logger.warning("Out of memory: batches have at most %d tokens from now on (%s)", self.batch_tokens, shortage)
        self._graphed, self._has_room_for_graphs = None, False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _can_be_graphed(self) -> bool:
        """True if a graph does what calling the encoder's modules does, now and later."""
        if not self._has_room_for_graphs or has_global_hooks():
            return False
        for part in self.encoder.modules():
            # An adapter may be changed, or switched off, at any time.
            if (
                part._forward_hooks
                or part._forward_pre_hooks
                or "forward" in vars(part)
                or "base_layer" in part._modules
            ):
                return False
        return True


class _Plan:
    """Rows that are still to be computed, the longest first.

    Args:
        lengths: tokens of each.

    Attributes:
        left: indices of those rows, the shortest first.
        tokens: of all of them.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths
        order = np.argsort(-lengths, kind="stable")
        self.left: list[int] = order[: np.count_nonzero(lengths)].tolist()[::-1]
        self.tokens = int(lengths.sum())

    def next(self, most: int, share: float) -> list[int]:
        """Take the rows of the next batch: at most so many tokens, and about `share`, an even part of what is left."""
        part = self.tokens / max(1, round(self.tokens / share))
        batch: list[int] = []
        tokens = 0
        while self.left:
            length = int(self.lengths[self.left[-1]])
            if batch and (tokens + length > most or tokens + length / 2 > part):
                break
            batch.append(self.left.pop())
            tokens += length
        self.tokens -= tokens
        return batch

    def give_back(self, indices: list[int]) -> None:
        """Return rows that could not be computed."""
        self.left += indices[::-1]
        self.tokens += int(self.lengths[indices].sum())


@dataclass(frozen=True, eq=False)
class _UnderWay:
    """A batch that was handed to the device.

    Attributes:
        indices: of its rows.
        tokens: of all rows.
        wait: gives its result, once it is there, or raises what its computation raised.
        cancel: keeps it from being computed, if that has not begun.
    """

    indices: list[int]
    tokens: int
    wait: Callable[[], Any]
    cancel: Callable[[], Any] = bool


def pack(
    rows: Sequence[Row], first_position: int = 0, token_ids: Sequence[str] | dict[str, int] = (), pinned: bool = False
) -> PackedBatch:
    """Pack rows on the host.

    Args:
        rows: at least one, none of them empty.
        first_position: position of a row's first token.
        token_ids: names of the further ids that the model takes; rows have types for "token_type_ids" alone.
        pinned: take memory that a GPU copies from while the processor goes on.
    """
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    ends = lengths.cumsum()
    starts, total = ends - lengths, int(ends[-1])

    def tensor(values: np.ndarray) -> Tensor:
        made = torch.from_numpy(values)
        return made.pin_memory() if pinned else made

    further = {}
    if "token_type_ids" in token_ids and any(row.types is not None for row in rows):
        types = [np.zeros(len(row.ids), np.int64) if row.types is None else row.types for row in rows]
        further["token_type_ids"] = tensor(np.concatenate(types, dtype=np.int64))
    return PackedBatch(
        cu_seqlens=tensor(np.concatenate(([0], ends), dtype=np.int32)),
        max_seqlen=int(lengths.max()),
        position_ids=tensor(np.arange(first_position, first_position + total) - np.repeat(starts, lengths)),
        input_ids=tensor(np.concatenate([row.ids for row in rows], dtype=np.int64)),
        token_ids=further,
    )


def budget(encoder: Any) -> int:
    """Tokens of a batch whose activations take about half of the memory that is free on the encoder's device."""
    limits = encoder.limits
    most = CPU_TOKENS if encoder.device.type == "cpu" else GPU_TOKENS
    free = _free_bytes(encoder.device)
    if free is None:
        return most
    # At a layer's widest place: its input, query, key, value and heads, the inner rows twice (by default 4 times as
    # wide as the others), and as much again for what the allocator can't use.
    per_token = 2 * encoder.dtype.itemsize * limits.hidden_size * (6 + 2 * 4)
    return max(LEAST_TOKENS, min(most, free // 2 // per_token))


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:  # no such file on this system
        return None
    # What the system gives for files that it has read counts, too: it takes that back.
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def _is_out_of_memory(error: Exception) -> bool:
    # A CPU's allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _map(result: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, Tensor):
        return function(result)
    if isinstance(result, tuple):
        return tuple(_map(part, function) for part in result)
    return result


def _to_pinned(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
