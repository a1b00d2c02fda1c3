"""Padding-free batches: the sequences of a batch end to end, without the padding between them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .validation import (
    Limits,
    PaddedInputs,
    ValueCheck,
    check_device,
    check_embeds,
    check_integers,
    check_one_source,
    check_range,
    check_shape,
    check_tensor,
    read,
)

MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """`num_sequences` sequences packed into `total_tokens` rows; sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].

    Attributes:
        cu_seqlens: (num_sequences + 1,) int32, starts at 0, never falls, ends at total_tokens. Sequences may be empty.
        max_seqlen: tokens in the longest sequence, or more.
        position_ids: (total_tokens,) integers, the position of each token in its sequence.
        input_ids: (total_tokens,) integers, or None.
        inputs_embeds: (total_tokens, hidden_size), or None.
        prefix_lens: (num_sequences,) int32, or None. Rows of a sequence before its prefix length p see only columns
            before p; rows from p on see all.
        indices: (total_tokens,) integers, places of the rows in the flattened padded batch; None: there is no such
            batch, or each sequence fills its line from the left.
        padded_shape: (batch, seq_len) of that padded batch, which outputs of tokens have; None: (1, total_tokens).
        token_ids: further (total_tokens,) integer ids of the tokens, such as token types, by argument name.
    """

    holds_padding: ClassVar[bool] = False
    """True where rows are padding; then only dense attention, which masks it, is right."""

    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor
    input_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    prefix_lens: Tensor | None = None
    indices: Tensor | None = None
    padded_shape: tuple[int, int] | None = None
    token_ids: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_padded(cls, inputs: PaddedInputs) -> "PackedBatch":
        """Pack a checked padded batch. No host synchronisation beyond the one that checked it."""
        batch, seq_len = inputs.real.shape
        if inputs.packed_sequences:
            return cls._from_restarts(inputs)
        full = inputs.total_tokens == batch * seq_len
        indices = None
        if not full:
            indices = torch.nonzero_static(inputs.real.reshape(-1), size=inputs.total_tokens).squeeze(1)

        def pack(padded: Tensor) -> Tensor:
            rows = padded.flatten(0, 1)
            return rows if indices is None else rows.index_select(0, indices)

        return cls(
            cu_seqlens=_offsets(inputs.real.sum(1)),
            max_seqlen=inputs.max_seqlen,
            position_ids=pack(inputs.position_ids),
            input_ids=None if inputs.input_ids is None else pack(inputs.input_ids),
            inputs_embeds=None if inputs.inputs_embeds is None else pack(inputs.inputs_embeds),
            indices=indices,
            padded_shape=(batch, seq_len),
            token_ids={name: pack(ids) for name, ids in inputs.token_ids.items()},
        )

    @classmethod
    def _from_restarts(cls, inputs: PaddedInputs) -> "PackedBatch":
        """Pack a lone row in which a sequence starts wherever the first position comes again."""
        positions = inputs.position_ids[0]
        starts = torch.nonzero_static(positions == positions[0], size=inputs.packed_sequences).squeeze(1)
        return cls(
            cu_seqlens=F.pad(starts, (0, 1), value=inputs.total_tokens).to(torch.int32),
            max_seqlen=inputs.max_seqlen,
            position_ids=positions,
            input_ids=None if inputs.input_ids is None else inputs.input_ids[0],
            inputs_embeds=None if inputs.inputs_embeds is None else inputs.inputs_embeds[0],
            token_ids={name: ids[0] for name, ids in inputs.token_ids.items()},
        )

    @classmethod
    def from_sequences(
        cls,
        sequences: Iterable[Sequence[int] | Tensor],
        device: torch.device | str | None = None,
        first_position: int = 0,
    ) -> "PackedBatch":
        """Pack lists of token ids (special tokens included), without ever padding them.

        Args:
            sequences: token ids of each sequence; sequences may be empty.
            device: device of the batch.
            first_position: position of a sequence's first token, `limits.first_position` of the model.

        Raises:
            TypeError: ids that are no integers.
            ValueError: no sequence at all, or one that is not flat.
        """
        rows = [_token_row(index, sequence) for index, sequence in enumerate(sequences)]
        if not rows:
            raise ValueError("sequences must hold at least one sequence, got none")
        lengths = torch.tensor([len(row) for row in rows])
        cu_seqlens = _offsets(lengths)
        total = int(cu_seqlens[-1])
        return cls(
            cu_seqlens=cu_seqlens,
            max_seqlen=int(lengths.max()),
            position_ids=_places(cu_seqlens, total)[1] + first_position,
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
        limits: Limits,
        token_ids: dict[str, Tensor] | None = None,
        padded_shape: tuple[int, int] | None = None,
        prefix_lens: Tensor | None = None,
    ) -> "PackedBatch":
        """Pack (1, total_tokens) rows, as transformers' DataCollatorWithFlattening makes them. No host synchronisation.

        Args:
            input_ids: (1, total_tokens) integers.
            inputs_embeds: (1, total_tokens, hidden_size), instead.
            position_ids: (1, total_tokens) integers; None: each sequence counts from the first position.
            cu_seqlens: (num_sequences + 1,) int32 or int64.
            max_seqlen: tokens in the longest sequence; None: taken from `cu_seqlens` on a CPU, elsewhere the most
                that the model takes.
            limits: of the model.
            token_ids: further (1, total_tokens) integers, by argument name.
            padded_shape: (num_sequences, seq_len) of the outputs of tokens; None: (1, total_tokens).
            prefix_lens: (num_sequences,) int32 or int64, or None.
        """
        name = "inputs_embeds" if input_ids is None else "input_ids"
        source = check_tensor(name, inputs_embeds if input_ids is None else input_ids)
        if source.dim() < 2 or source.shape[0] != 1:
            raise ValueError(f"packed input must have shape (1, total_tokens, ...), got {tuple(source.shape)}")
        total = source.shape[1]
        further = {} if token_ids is None else token_ids
        for other, ids in (("position_ids", position_ids), *further.items()):
            if ids is not None:
                check_integers(other, ids)
                check_shape(other, ids, (1, total), "1, total_tokens")
        check_offsets("cu_seq_lens_q", cu_seqlens)
        if max_seqlen is not None and not isinstance(max_seqlen, int | torch.SymInt):
            raise TypeError(f"max_length_q must be an int, got {type(max_seqlen).__name__}")
        if max_seqlen is None:
            on_cpu = cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling()
            max_seqlen = min(max(int(cu_seqlens.diff().amax()), 0), MAX_INT32) if on_cpu else limits.max_tokens
        if position_ids is None:
            position_ids = (_places(cu_seqlens, total)[1] + limits.first_position)[None]
        return cls(
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            position_ids=position_ids[0],
            input_ids=None if input_ids is None else input_ids[0],
            inputs_embeds=None if inputs_embeds is None else inputs_embeds[0],
            prefix_lens=prefix_lens,
            padded_shape=padded_shape,
            token_ids={other: ids[0] for other, ids in further.items()},
        )

    def checked(
        self, limits: Limits, weight: Tensor, validate: bool, value_checks: tuple[ValueCheck, ...] = ()
    ) -> "PackedBatch":
        """Check the batch, and give it with int32 offsets and, where values were not read, clamped ids.

        Shapes, dtypes and devices are checked always; values on CPU tensors and, at the price of a synchronisation,
        wherever `validate` is set. Elsewhere offsets, ids and positions are clamped, so that none becomes a
        device-side assert.

        Args:
            limits: of the model.
            weight: the model's position table; its dtype and device are what the batch must match.
            validate: check values on any device.
            value_checks: further values, read together with the rest.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is accepted.
        """
        check_one_source(self.input_ids, self.inputs_embeds)
        if self.input_ids is not None:
            name, source = "input_ids", check_integers("input_ids", self.input_ids)
        else:
            name, source = "inputs_embeds", check_embeds(self.inputs_embeds, limits.hidden_size, weight.dtype, 2)
        total = source.shape[0] if source.dim() else 0
        if self.input_ids is not None:
            check_shape(name, source, (total,), "total_tokens")
        if not isinstance(self.token_ids, dict):
            raise TypeError(f"token_ids must be a dict of tensors, got {type(self.token_ids).__name__}")
        unknown = sorted(self.token_ids.keys() - limits.token_ids.keys())
        if unknown:
            taken = ", ".join(sorted(limits.token_ids)) or "no further ids"
            raise ValueError(f"token_ids must hold what the model takes, {taken}; got {', '.join(unknown)}")
        for other, ids in (("position_ids", self.position_ids), *self.token_ids.items()):
            check_integers(other, ids)
            check_shape(other, ids, (total,), "total_tokens")
            check_device(other, ids, source.device, name)
        check_offsets("cu_seqlens", self.cu_seqlens)
        check_device("cu_seqlens", self.cu_seqlens, source.device, name)
        if self.prefix_lens is not None:
            check_integers("prefix_lens", self.prefix_lens)
            check_shape("prefix_lens", self.prefix_lens, (self.num_sequences,), "num_sequences")
            check_device("prefix_lens", self.prefix_lens, source.device, name)
        _check_max_seqlen(self.max_seqlen)
        self._check_grid(source.device, name)
        for check in value_checks:
            check_device(check.name, check.values, source.device, name)
        if weight.device.type != "meta":
            check_device(name, source, weight.device, "the model")
        if validate or (source.device.type == "cpu" and not torch.compiler.is_compiling()):
            self._check_values(limits, total, value_checks)
            return self if self.cu_seqlens.dtype == torch.int32 else replace(self, cu_seqlens=self.cu_seqlens.int())
        return replace(
            self,
            cu_seqlens=self.cu_seqlens.clamp(0, total).to(torch.int32),
            input_ids=None if self.input_ids is None else self.input_ids.clamp(0, limits.vocab_size - 1),
            position_ids=self.position_ids.clamp(limits.first_position, limits.last_position),
            token_ids={name: ids.clamp(0, limits.token_ids[name] - 1) for name, ids in self.token_ids.items()},
        )

    def _check_grid(self, device: torch.device, source: str) -> None:
        """Check `padded_shape` and `indices`, but for values."""
        shape = self.padded_shape
        if shape is None:
            if self.indices is not None:
                raise ValueError("indices must be None without padded_shape")
            return
        if not isinstance(shape, tuple | list) or len(shape) != 2 or shape[0] != self.num_sequences:
            raise ValueError(f"padded_shape must be ({self.num_sequences} (num_sequences), seq_len), got {shape!r:.80}")
        if self.indices is not None:
            check_integers("indices", self.indices)
            check_shape("indices", self.indices, (self.total_tokens,), "total_tokens")
            check_device("indices", self.indices, device, source)

    def _check_values(self, limits: Limits, total: int, value_checks: tuple[ValueCheck, ...]) -> None:
        lengths = self.cu_seqlens.diff()
        facts = [self.cu_seqlens[0], self.cu_seqlens[-1], lengths.amin(), lengths.amax()]
        ranges = [("position_ids", self.position_ids, limits.first_position, limits.last_position + 1,
                   limits.max_tokens_source)]  # fmt: skip
        if self.input_ids is not None:
            ranges.append(("input_ids", self.input_ids, 0, limits.vocab_size, "vocab_size"))
        ranges += [(name, ids, 0, limits.token_ids[name], "rows of its table") for name, ids in self.token_ids.items()]
        if total:
            facts += [extreme for _, ids, *_ in ranges for extreme in (ids.amin(), ids.amax())]
        facts += [extreme for check in value_checks for extreme in check.extremes()]
        values = iter(read(facts))
        first, last, shortest, longest = (next(values) for _ in range(4))
        if first != 0 or shortest < 0 or last != total:
            raise ValueError(
                f"cu_seqlens (cu_seq_lens_q) must start at 0, never fall and end at {total} (total_tokens), "
                f"got first {first}, last {last}, smallest step {shortest}"
            )
        if longest > limits.max_tokens:
            raise ValueError(
                f"a sequence must hold at most {limits.max_tokens} tokens ({limits.max_tokens_source}), got {longest}"
            )
        if self.max_seqlen < longest:
            raise ValueError(
                f"max_seqlen (max_length_q) must be at least {longest}, the longest sequence, got {self.max_seqlen}"
            )
        if total:
            for name, _, lowest, end, meaning in ranges:
                low, high = next(values), next(values)
                if name == "position_ids" and 0 <= low < lowest:
                    raise ValueError(
                        f"position_ids must start a sequence at {lowest}, got {low}: pass position_ids_start={lowest} "
                        f"to DataCollatorWithFlattening, or first_position={lowest} to PackedBatch.from_sequences"
                    )
                check_range(name, (low, high), end, meaning, lowest)
        for check in value_checks:
            check.check(next(values), next(values))
        if self.prefix_lens is not None and bool(((self.prefix_lens < 0) | (self.prefix_lens > lengths)).any()):
            raise ValueError("prefix_lens must lie between 0 and the length of each sequence")
        if self.padded_shape is not None:
            self._check_lines(self.padded_shape, longest)

    def _check_lines(self, shape: tuple[int, int], longest: int) -> None:
        """Check that the rows of each sequence lie in its line of the padded batch, in order."""
        if longest > shape[1]:
            raise ValueError(f"padded_shape must be (num_sequences, {longest} or more), got {shape}")
        if self.indices is None or self.total_tokens == 0:
            return
        line = _places(self.cu_seqlens, self.total_tokens)[0]
        inside = (self.indices >= line * shape[1]) & (self.indices < (line + 1) * shape[1])
        if not bool(inside.all() & (self.indices.diff() > 0).all()):
            raise ValueError(f"indices must rise, and those of sequence i lie in line i of padded_shape {shape}")

    @property
    def token_shape(self) -> tuple[int, int]:
        """Shape of the caller's token tensors, labels among them: (batch, seq_len) or (1, total_tokens)."""
        return self.padded_shape or (1, self.total_tokens)

    def rows(self, values: Tensor) -> Tensor:
        """Pack token tensors of the caller's shape into (total_tokens, ...)."""
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
        """Move the batch to another device."""
        if device is None:
            return self

        def move(tensors: dict[str, Any]) -> dict[str, Any]:
            return {
                name: value.to(device, non_blocking=non_blocking)
                for name, value in tensors.items()
                if isinstance(value, Tensor)
            }

        return replace(self, **move(vars(self)), token_ids=move(self.token_ids))

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(batch, seq_len) of the padded batch, or (num_sequences, max_seqlen) if there never was one."""
        return self.padded_shape or (self.num_sequences, max(self.max_seqlen, 1))

    @property
    def is_full_grid(self) -> bool:
        """True if the rows are those of a padded batch without padding."""
        shape = self.padded_shape
        return shape is not None and self.indices is None and shape[0] * shape[1] == self.total_tokens

    def _grid_indices(self) -> Tensor:
        if self.indices is not None:
            return self.indices.long()
        sequence, offset = _places(self.cu_seqlens, self.total_tokens)
        # Unread offsets must neither leave the grid nor reach into the next sequence's line.
        width = self.grid_shape[1]
        return sequence * width + offset.clamp(0, width - 1)

    def to_grid(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Unpack (total_tokens, ...) into (batch, seq_len, ...), padding filled with `fill`."""
        batch, seq_len = self.grid_shape
        if self.is_full_grid:
            return rows.unflatten(0, (batch, seq_len))
        grid = rows.new_full((batch * seq_len, *rows.shape[1:]), fill)
        return grid.index_copy_(0, self._grid_indices(), rows).unflatten(0, (batch, seq_len))

    def from_grid(self, grid: Tensor) -> Tensor:
        """Pack (batch, seq_len, ...) into (total_tokens, ...)."""
        if self.is_full_grid:
            return grid.flatten(0, 1)
        return grid.flatten(0, 1).index_select(0, self._grid_indices())

    def output(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Give rows the shape of the caller's input: (batch, seq_len, ...) or (1, total_tokens, ...)."""
        return rows[None] if self.padded_shape is None else self.to_grid(rows, fill)

    def first_rows(self) -> Tensor:
        """(num_sequences,) int64, the first row of each sequence; of an empty one any row. There must be rows."""
        return self.cu_seqlens[:-1].long().clamp(max=self.total_tokens - 1).clamp(min=0)

    def zero_empty(self, values: Tensor) -> Tensor:
        """Zero the values (num_sequences, ...) of empty sequences."""
        return values.masked_fill((self.lengths == 0).view(-1, *[1] * (values.dim() - 1)), 0.0)

    def first(self, rows: Tensor) -> Tensor:
        """Take the first row of each sequence, (total_tokens, ...) to (num_sequences, ...); zeros for an empty one."""
        if rows.shape[0] == 0:
            return rows.new_zeros((self.num_sequences, *rows.shape[1:]))
        return self.zero_empty(rows.index_select(0, self.first_rows()))

    def mean(self, rows: Tensor) -> Tensor:
        """Average each sequence, (total_tokens, hidden) to (num_sequences, hidden) float32; zeros for an empty one."""
        # By offsets, not lengths, whose checks wait for the device; in bounds whatever the offsets hold.
        offsets = self.cu_seqlens.long().clamp(0, rows.shape[0]).cummax(0).values
        sums = torch.segment_reduce(rows.float(), "sum", offsets=offsets)
        return sums / offsets.diff().clamp(min=1)[:, None]


def _token_row(index: int, sequence: Sequence[int] | Tensor) -> Tensor:
    try:
        row = torch.as_tensor(sequence)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{sequence!r:.80}" if isinstance(sequence, str) else type(sequence).__name__
        raise TypeError(f"sequences[{index}] must hold integers, got {got}: {error}") from error
    check_tensor(f"sequences[{index}]", row)
    if row.numel() and (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool):
        raise TypeError(f"sequences[{index}] must hold integers, got {row.dtype}")
    if row.dim() != 1:
        raise ValueError(f"sequences[{index}] must have shape (length,), got {tuple(row.shape)}")
    return row.to(torch.int64)


def _check_max_seqlen(max_seqlen: object) -> None:
    if not isinstance(max_seqlen, int | torch.SymInt) or isinstance(max_seqlen, bool):
        raise TypeError(f"max_seqlen (max_length_q) must be an int, got {type(max_seqlen).__name__}")
    if isinstance(max_seqlen, int) and not 0 <= max_seqlen <= MAX_INT32:
        raise ValueError(f"max_seqlen (max_length_q) must lie in [0, {MAX_INT32}], got {max_seqlen}")


def check_offsets(name: str, cu_seqlens: Tensor) -> None:
    """Check the dtype and shape of offsets."""
    check_integers(name, cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"{name} must have shape (num_sequences + 1,) with at least one sequence, got {tuple(cu_seqlens.shape)}"
        )


def _offsets(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _places(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Give the sequence of each of `total` rows, and its offset there. In bounds whatever `cu_seqlens` holds."""
    rows = torch.arange(total, device=cu_seqlens.device)
    offsets = cu_seqlens.long()
    sequence = torch.searchsorted(offsets[1:].contiguous(), rows, right=True).clamp(max=cu_seqlens.shape[0] - 2)
    return sequence, rows - offsets[sequence]
