"""Padding-free batches: the sequences of a batch end to end, without the padding between them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration import ErnieMConfig
from .validation import (
    PaddedInputs,
    ValueCheck,
    check_device,
    check_embeds,
    check_integers,
    check_one_source,
    check_range,
    check_shape,
    read,
)


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """`num_sequences` sequences packed into `total_tokens` rows; sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].

    Attributes:
        cu_seqlens: (num_sequences + 1,) int32, starts at 0, never falls, ends at total_tokens. Sequences may be empty.
        max_seqlen: tokens in the longest sequence, or more.
        position_ids: (total_tokens,) integers, the position of each token in its sequence (row 2 of the table is 0).
        input_ids: (total_tokens,) integers, or None.
        inputs_embeds: (total_tokens, hidden_size), or None.
        prefix_lens: (num_sequences,) int32, or None. Rows of a sequence before its prefix length p see only columns
            before p; rows from p on see all.
        indices: (total_tokens,) int64, where each row stands in the flattened padded batch, if it came from one.
        padded_shape: (batch, seq_len) of that padded batch.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor
    input_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    prefix_lens: Tensor | None = None
    indices: Tensor | None = None
    padded_shape: tuple[int, int] | None = None

    @classmethod
    def from_padded(cls, inputs: PaddedInputs) -> "PackedBatch":
        """Pack a checked padded batch. No host synchronisation beyond the one that checked it."""
        batch, seq_len = inputs.real.shape
        indices = torch.nonzero_static(inputs.real.reshape(-1), size=inputs.total_tokens).squeeze(1)

        def pack(padded: Tensor | None) -> Tensor | None:
            return None if padded is None else padded.flatten(0, 1).index_select(0, indices)

        return cls(
            cu_seqlens=_offsets(inputs.real.sum(1)),
            max_seqlen=inputs.max_seqlen,
            position_ids=inputs.position_ids.reshape(-1).index_select(0, indices),
            input_ids=pack(inputs.input_ids),
            inputs_embeds=pack(inputs.inputs_embeds),
            indices=indices,
            padded_shape=(batch, seq_len),
        )

    @classmethod
    def from_sequences(
        cls, sequences: Iterable[Sequence[int] | Tensor], device: torch.device | str | None = None
    ) -> "PackedBatch":
        """Pack lists of token ids (special tokens included), without ever padding them.

        Args:
            sequences: token ids of each sequence; sequences may be empty.
            device: where the batch goes.

        Raises:
            ValueError: no sequence at all.
        """
        rows = [torch.as_tensor(sequence, dtype=torch.int64) for sequence in sequences]
        if not rows:
            raise ValueError("sequences must hold at least one sequence, got none")
        lengths = torch.tensor([len(row) for row in rows])
        cu_seqlens = _offsets(lengths)
        total = int(cu_seqlens[-1])
        return cls(
            cu_seqlens=cu_seqlens,
            max_seqlen=int(lengths.max()),
            position_ids=_places(cu_seqlens, total)[1],
            input_ids=torch.cat(rows),
        ).to(device)

    @classmethod
    def from_flattened(
        cls,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor | None,
        cu_seqlens: Tensor,
        max_seqlen: int | None,
        config: ErnieMConfig,
    ) -> "PackedBatch":
        """From (1, total_tokens) rows, as transformers' DataCollatorWithFlattening makes them. No host synchronisation.

        Args:
            input_ids: (1, total_tokens) integers.
            inputs_embeds: (1, total_tokens, hidden_size), instead.
            position_ids: (1, total_tokens) integers; None: each sequence counts from 0.
            cu_seqlens: (num_sequences + 1,) int32 or int64.
            max_seqlen: tokens in the longest sequence; None: taken from `cu_seqlens` on a CPU, elsewhere the most
                that the model takes.
            config: the model's configuration.
        """
        source = inputs_embeds if input_ids is None else input_ids
        assert source is not None
        if source.dim() < 2 or source.shape[0] != 1:
            raise ValueError(f"packed input must have shape (1, total_tokens, ...), got {tuple(source.shape)}")
        total = source.shape[1]
        if position_ids is not None:
            check_integers("position_ids", position_ids)
            check_shape("position_ids", position_ids, (1, total), "1, total_tokens")
        _check_offsets("cu_seq_lens_q", cu_seqlens)
        if max_seqlen is not None and not isinstance(max_seqlen, int | torch.SymInt):
            raise TypeError(f"max_length_q must be an int, got {type(max_seqlen).__name__}")
        if max_seqlen is None:
            on_cpu = cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling()
            max_seqlen = int(cu_seqlens.diff().amax()) if on_cpu else config.max_tokens
        return cls(
            cu_seqlens=cu_seqlens.to(torch.int32),
            max_seqlen=max_seqlen,
            position_ids=_places(cu_seqlens, total)[1] if position_ids is None else position_ids[0],
            input_ids=None if input_ids is None else input_ids[0],
            inputs_embeds=None if inputs_embeds is None else inputs_embeds[0],
        )

    def checked(
        self, config: ErnieMConfig, weight: Tensor, validate: bool, value_checks: tuple[ValueCheck, ...] = ()
    ) -> "PackedBatch":
        """This batch, or a TypeError or ValueError for what can't be right.

        Shapes, dtypes and devices always; values on CPU tensors and, at the price of a synchronisation, wherever
        `validate` is set. Elsewhere ids and positions are clamped, so that none becomes a device-side assert.

        Args:
            config: the model's configuration.
            weight: the model's position table; its dtype and device are what the batch must match.
            validate: check values on any device.
            value_checks: further values, read together with the rest.
        """
        check_one_source(self.input_ids, self.inputs_embeds)
        if self.input_ids is not None:
            name, source = "input_ids", check_integers("input_ids", self.input_ids)
        else:
            name, source = "inputs_embeds", check_embeds(self.inputs_embeds, config, weight.dtype, 2)
        total = source.shape[0]
        if self.input_ids is not None:
            check_shape(name, source, (total,), "total_tokens")
        check_integers("position_ids", self.position_ids)
        check_shape("position_ids", self.position_ids, (total,), "total_tokens")
        _check_offsets("cu_seqlens", self.cu_seqlens)
        if self.prefix_lens is not None:
            check_integers("prefix_lens", self.prefix_lens)
            check_shape("prefix_lens", self.prefix_lens, (self.num_sequences,), "num_sequences")
            check_device("prefix_lens", self.prefix_lens, source.device, name)
        for other, tensor in (("position_ids", self.position_ids), ("cu_seqlens", self.cu_seqlens)):
            check_device(other, tensor, source.device, name)
        for check in value_checks:
            check_device(check.name, check.values, source.device, name)
        if weight.device.type != "meta":
            check_device(name, source, weight.device, "the model")
        if validate or (source.device.type == "cpu" and not torch.compiler.is_compiling()):
            self._check_values(config, total, value_checks)
            return self
        input_ids = None if self.input_ids is None else self.input_ids.clamp(0, config.vocab_size - 1)
        return replace(self, input_ids=input_ids, position_ids=self.position_ids.clamp(0, config.max_tokens - 1))

    def _check_values(self, config: ErnieMConfig, total: int, value_checks: tuple[ValueCheck, ...]) -> None:
        lengths = self.cu_seqlens.diff()
        facts = [self.cu_seqlens[0], self.cu_seqlens[-1], lengths.amin(), lengths.amax()]
        if total:
            facts += [self.position_ids.amin(), self.position_ids.amax()]
            if self.input_ids is not None:
                facts += [self.input_ids.amin(), self.input_ids.amax()]
        further = [extreme for check in value_checks for extreme in check.extremes()]
        first, last, shortest, longest, *extremes = read(facts + further)
        ranges, extremes = extremes[len(extremes) - len(further) :], extremes[: len(extremes) - len(further)]
        if first != 0 or shortest < 0 or last != total:
            raise ValueError(
                f"cu_seqlens (cu_seq_lens_q) must start at 0, never fall and end at {total} (total_tokens), "
                f"got first {first}, last {last}, smallest step {shortest}"
            )
        if longest > config.max_tokens:
            raise ValueError(
                f"a sequence must hold at most {config.max_tokens} tokens (max_position_embeddings - 2), got {longest}"
            )
        if self.max_seqlen < longest:
            raise ValueError(
                f"max_seqlen (max_length_q) must be at least {longest}, the longest sequence, got {self.max_seqlen}"
            )
        if extremes:
            check_range("position_ids", extremes[:2], config.max_tokens, "max_position_embeddings - 2")
        if len(extremes) > 2:
            check_range("input_ids", extremes[2:], config.vocab_size, "vocab_size")
        for check, pair in zip(value_checks, zip(ranges[::2], ranges[1::2], strict=True), strict=True):
            check.check(*pair)
        if self.prefix_lens is not None and bool(((self.prefix_lens < 0) | (self.prefix_lens > lengths)).any()):
            raise ValueError("prefix_lens must lie between 0 and the length of each sequence")

    @property
    def token_shape(self) -> tuple[int, int]:
        """Shape of the caller's token tensors, labels among them: (batch, seq_len) or (1, total_tokens)."""
        return self.padded_shape or (1, self.total_tokens)

    def rows(self, values: Tensor) -> Tensor:
        """Token tensors of the caller's shape to (total_tokens, ...)."""
        return values[0] if self.padded_shape is None else self.from_grid(values)

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def total_tokens(self) -> int:
        return self.position_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """(num_sequences,) int64."""
        return self.cu_seqlens.diff().long()

    def to(self, device: torch.device | str | None, non_blocking: bool = False) -> "PackedBatch":
        """The same batch on another device."""
        if device is None:
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=non_blocking) for name, value in tensors.items()}
        return replace(self, **moved)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(batch, seq_len) of the padded batch, or (num_sequences, max_seqlen) if there never was one."""
        return self.padded_shape or (self.num_sequences, max(self.max_seqlen, 1))

    def _grid_indices(self) -> Tensor:
        if self.indices is not None:
            return self.indices
        sequence, offset = _places(self.cu_seqlens, self.total_tokens)
        # Offsets that nobody has read must neither leave the grid nor reach into the next sequence's line.
        width = self.grid_shape[1]
        return sequence * width + offset.clamp(0, width - 1)

    def to_grid(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """(total_tokens, ...) to (batch, seq_len, ...), padding filled with `fill`."""
        batch, seq_len = self.grid_shape
        grid = rows.new_full((batch * seq_len, *rows.shape[1:]), fill)
        return grid.index_copy(0, self._grid_indices(), rows).unflatten(0, (batch, seq_len))

    def from_grid(self, grid: Tensor) -> Tensor:
        """(batch, seq_len, ...) to (total_tokens, ...)."""
        return grid.flatten(0, 1).index_select(0, self._grid_indices())

    def output(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Rows in the shape that the caller's input had: (batch, seq_len, ...) or (1, total_tokens, ...)."""
        return rows[None] if self.padded_shape is None else self.to_grid(rows, fill)

    def first(self, rows: Tensor) -> Tensor:
        """(total_tokens, ...) to (num_sequences, ...): the first row of each sequence; zeros for an empty one."""
        if rows.shape[0] == 0:
            return rows.new_zeros((self.num_sequences, *rows.shape[1:]))
        first = rows.index_select(0, self.cu_seqlens[:-1].long().clamp(0, rows.shape[0] - 1))
        empty = (self.lengths == 0).view(-1, *[1] * (rows.dim() - 1))
        return first.masked_fill(empty, 0.0)

    def mean(self, rows: Tensor) -> Tensor:
        """(total_tokens, hidden) to (num_sequences, hidden) float32: each sequence's mean; zeros for an empty one."""
        # By offsets, not lengths, whose checks wait for the device; in bounds whatever the offsets hold.
        offsets = self.cu_seqlens.long().clamp(0, rows.shape[0]).cummax(0).values
        sums = torch.segment_reduce(rows.float(), "sum", offsets=offsets)
        return sums / offsets.diff().clamp(min=1)[:, None]


def _check_offsets(name: str, cu_seqlens: Tensor) -> None:
    check_integers(name, cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"{name} must have shape (num_sequences + 1,) with at least one sequence, got {tuple(cu_seqlens.shape)}"
        )


def _offsets(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For each of `total` rows, its sequence and its offset in it. Stays in bounds whatever `cu_seqlens` holds."""
    rows = torch.arange(total, device=cu_seqlens.device)
    offsets = cu_seqlens.long()
    sequence = torch.searchsorted(offsets[1:].contiguous(), rows, right=True).clamp(max=cu_seqlens.shape[0] - 2)
    return sequence, rows - offsets[sequence]
