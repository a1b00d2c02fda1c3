"""Checks of a model's input: one clear error for an argument that cannot be right, before anything is computed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .configuration import POSITION_OFFSET, ErnieMConfig

logger = logging.getLogger(__name__)
_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning the first time that it is given."""
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        logger.warning(message)


class Limits(NamedTuple):
    """Bounds of an encoder's input.

    Attributes:
        vocab_size: token ids lie in [0, vocab_size).
        hidden_size: columns of inputs_embeds.
        num_heads: heads of a 4-dimensional mask.
        max_tokens: most tokens of a sequence.
        max_tokens_source: where that number comes from, for error messages.
        first_position: position of a sequence's first token; positions lie in [first_position, first_position +
            max_tokens).
        positions_below: positions below first_position that padding may have.
        default_mask: bool (batch, seq_len) of real tokens, made of (batch, seq_len) token ids where no attention_mask
            is given; None: all tokens are real.
        default_positions: (batch, seq_len) positions, made of (batch, seq_len) token ids where none are given; None:
            the columns, from first_position on.
        token_ids: rows of the tables of further ids a token, such as token types, by argument name.
    """

    vocab_size: int
    hidden_size: int
    num_heads: int
    max_tokens: int
    max_tokens_source: str
    first_position: int = 0
    positions_below: int = 0
    default_mask: Callable[[Tensor], Tensor] | None = None
    default_positions: Callable[[Tensor], Tensor] | None = None
    token_ids: dict[str, int] = {}

    @classmethod
    def of(cls, config: ErnieMConfig) -> "Limits":
        """Limits of an ErnieM model: [PAD] is padding, which may lie at positions -1 and -2."""
        pad = config.pad_token_id
        return cls(
            config.vocab_size,
            config.hidden_size,
            config.num_attention_heads,
            config.max_position_embeddings - POSITION_OFFSET,
            "max_position_embeddings - 2",
            positions_below=POSITION_OFFSET,
            default_mask=None if pad is None else lambda input_ids: input_ids != pad,
        )

    @property
    def last_position(self) -> int:
        """Greatest position of a token."""
        return self.first_position + self.max_tokens - 1


@dataclass(frozen=True, eq=False)
class PaddedInputs:
    """A padded batch, checked and normalised. `batch` rows of `seq_len` columns.

    Attributes:
        input_ids: (batch, seq_len) integers, or None.
        inputs_embeds: (batch, seq_len, hidden_size), or None. Exactly one of the two is given.
        position_ids: (batch, seq_len) integers.
        real: (batch, seq_len) bool, False at padding.
        dense_mask: (batch, 1 or num_heads, seq_len, seq_len) bool for a 3D or 4D mask, else None.
        total_tokens: number of real tokens.
        max_seqlen: most real tokens in a row, or in a packed sequence.
        packed_sequences: sequences of a lone row that holds several, one after another; else 0. See `check_padded`.
        token_ids: further (batch, seq_len) ids of the tokens, by argument name.
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    position_ids: Tensor
    real: Tensor
    dense_mask: Tensor | None
    total_tokens: int
    max_seqlen: int
    packed_sequences: int = 0
    token_ids: dict[str, Tensor] = field(default_factory=dict)


class ValueCheck(Protocol):
    """Check of values that are read together with the input, as two scalars."""

    @property
    def name(self) -> str: ...

    @property
    def values(self) -> Tensor: ...

    def extremes(self) -> list[Tensor]: ...

    def check(self, low: int, high: int) -> None: ...


class RangeCheck(NamedTuple):
    """Integer values, such as labels, that must lie in [0, limit) or be `ignored`."""

    name: str
    values: Tensor
    limit: int
    meaning: str
    ignored: int = -100

    def extremes(self) -> list[Tensor]:
        if self.values.numel() == 0:
            return [self.values.new_zeros(())] * 2
        counted = torch.where(self.values == self.ignored, 0, self.values)
        return [counted.amin(), counted.amax()]

    def check(self, low: int, high: int) -> None:
        if low < 0 or high >= self.limit:
            raise ValueError(
                f"{self.name} must lie in [0, {self.limit}) ({self.meaning}) or be {self.ignored} (ignored), "
                f"got {low if low < 0 else high}"
            )


def check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one")
    return value


def check_integers(name: str, value: object) -> Tensor:
    value = check_tensor(name, value)
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {value.dtype}")
    return value


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(check_tensor(name, value).shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)} ({meaning}), got {tuple(value.shape)}")


def check_device(name: str, value: Tensor, device: torch.device, other: str) -> None:
    if check_tensor(name, value).device != device:
        raise ValueError(f"{name} must be on {device}, where {other} is, got {value.device}")


def check_range(name: str, extremes: Sequence[int], limit: int, meaning: str, lowest: int = 0) -> None:
    """`extremes` are the least and the greatest that came; all values must lie in [lowest, limit)."""
    low, high = extremes
    if low < lowest or high >= limit:
        raise ValueError(f"{name} must lie in [{lowest}, {limit}) ({meaning}), got {low if low < lowest else high}")


def check_one_source(input_ids: object, inputs_embeds: object) -> None:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            f"give exactly one of input_ids and inputs_embeds, got {'both' if input_ids is not None else 'neither'}"
        )


def check_embeds(inputs_embeds: object, hidden_size: int, dtype: torch.dtype, dims: int) -> Tensor:
    inputs_embeds = check_tensor("inputs_embeds", inputs_embeds)
    if not inputs_embeds.is_floating_point():
        raise TypeError(f"inputs_embeds must be floating point, got {inputs_embeds.dtype}")
    if inputs_embeds.dim() != dims or inputs_embeds.shape[-1] != hidden_size:
        raise ValueError(
            f"inputs_embeds must have {dims} dimensions, the last of size {hidden_size} (hidden_size), "
            f"got shape {tuple(inputs_embeds.shape)}"
        )
    # Autocast leaves float64 as it is.
    cast = torch.is_autocast_enabled(inputs_embeds.device.type) and inputs_embeds.dtype != torch.float64
    if inputs_embeds.dtype != dtype and not cast:
        raise ValueError(f"inputs_embeds must be {dtype} like the model's weights, got {inputs_embeds.dtype}")
    return inputs_embeds


def read(facts: list[Tensor]) -> list[int]:
    """Copy scalars to the host, in one copy."""
    return torch.stack([fact.long() for fact in facts]).tolist()  # type: ignore[no-any-return]


def refuse_tracing() -> None:
    """Raise under `torch.jit.trace`, which `torch.onnx.export(dynamo=False)` uses, too."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError(
            "torch.jit.trace is not supported: it would keep the lengths of the traced batch for all others; use "
            "torch.export.export, or erniem_fast.export.export_onnx for ONNX"
        )


def check_encoder_only(past_key_values: object) -> None:
    if past_key_values is not None:
        raise ValueError("past_key_values must be None: ErnieM is an encoder and keeps no cache")


def warn_token_types(token_type_ids: Tensor | None) -> None:
    if token_type_ids is not None:
        warn_once("token_type_ids are ignored: ErnieM has no token type embedding.")


def split_head_mask(head_mask: Any, num_layers: int, num_heads: int, device: torch.device) -> list[Tensor | None]:
    """Split (num_heads,) or (num_layers, num_heads) factors, on the input's device, into one (num_heads,) a layer."""
    if head_mask is None:
        return [None] * num_layers
    head_mask = check_tensor("head_mask", head_mask)
    if tuple(head_mask.shape) not in ((num_heads,), (num_layers, num_heads)):
        raise ValueError(
            f"head_mask must have shape {(num_heads,)} (num_heads) or {(num_layers, num_heads)} "
            f"(num_layers, num_heads), got {tuple(head_mask.shape)}"
        )
    if head_mask.is_complex():
        raise TypeError(f"head_mask must be bool, integer or floating point, got {head_mask.dtype}")
    check_device("head_mask", head_mask, device, "the input")
    return list(head_mask.expand(num_layers, num_heads).unbind(0))


def check_padded(
    limits: Limits,
    weight: Tensor,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    value_checks: tuple[ValueCheck, ...] = (),
    *,
    token_ids: dict[str, Tensor] | None = None,
    find_packed: bool = False,
) -> PaddedInputs:
    """Check a padded batch and fill in what was left out. Reads the device once (values, totals and errors together).

    Under torch.export nothing is read: `total_tokens` and `max_seqlen` count padding, too.

    Args:
        limits: of the model.
        weight: the model's position table; its dtype and device are what the input must match.
        input_ids: (batch, seq_len) integers in [0, vocab_size).
        inputs_embeds: (batch, seq_len, hidden_size) of the model's dtype, instead of `input_ids`.
        attention_mask: 0/1 of shape (batch, seq_len), (batch, seq_len, seq_len) or (batch, 1 or num_heads, seq_len,
            seq_len); None: `limits.default_mask` (with `inputs_embeds`: all tokens are real).
        position_ids: (batch, seq_len) or (1, seq_len) integers; None: `limits.default_positions`, or the column. Real
            tokens take [0, last_position]; padding may also lie `positions_below` further down, as the `cumsum - 1`
            idiom leaves it.
        value_checks: further values, read together with the rest.
        token_ids: further (batch, seq_len) or (1, seq_len) integers, by argument name, as `limits.token_ids` says.
        find_packed: recognise a lone row without a mask that holds several sequences: every position is the first one
            or its predecessor's successor, and the first one comes again. Then every token is real.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is accepted.
    """
    check_one_source(input_ids, inputs_embeds)
    if input_ids is not None:
        name, source = "input_ids", check_integers("input_ids", input_ids)
        if source.dim() != 2:
            raise ValueError(f"input_ids must have shape (batch, seq_len), got {tuple(source.shape)}")
    else:
        name, source = "inputs_embeds", check_embeds(inputs_embeds, limits.hidden_size, weight.dtype, 3)
    batch, seq_len = source.shape[:2]
    device = source.device
    if batch == 0 or seq_len == 0:
        raise ValueError(f"{name} holds an empty batch, got shape {tuple(source.shape)}")
    # Offloaded weights are on meta until a hook brings them.
    if weight.device.type != "meta":
        check_device(name, source, weight.device, "the model")
    exporting = torch.compiler.is_exporting()
    may_be_packed = find_packed and not exporting and batch == 1 and attention_mask is None and position_ids is not None
    if may_be_packed and torch.compiler.is_compiling():
        raise ValueError(
            "cu_seq_lens_q must be given with position_ids of a lone row under torch.compile: the values of "
            "position_ids, which tell whether it holds several sequences, are not known there"
        )
    # Where padding has no positions, a row may be longer than the table.
    from_ids = limits.default_positions is not None and position_ids is None and input_ids is not None
    if not (may_be_packed or from_ids):
        _check_row(name, seq_len, limits)
    positions = _positions(limits, input_ids, position_ids, (batch, seq_len), device, name)
    token_ids = {} if token_ids is None else token_ids
    token_ids = {
        other: _check_token_ids(limits, other, ids, (batch, seq_len), device, name) for other, ids in token_ids.items()
    }
    real, dense_mask = _masks(limits, input_ids, attention_mask, (batch, seq_len), device)
    if exporting:  # no values are known: every column counts
        return PaddedInputs(
            input_ids, inputs_embeds, positions, real, dense_mask, batch * seq_len, seq_len, token_ids=token_ids
        )

    lengths = real.sum(1)
    facts = [lengths.sum(), lengths.amax()]
    if position_ids is not None:
        facts += [positions.amin(), positions.amax(), torch.where(real, positions, limits.first_position).amin()]
    if from_ids:
        facts += [positions.amax()]
    if may_be_packed:
        facts += [count_packed(positions[0], limits.first_position), count_packed(positions[0], 0)]
    if attention_mask is not None:
        facts += [((attention_mask != 0) & (attention_mask != 1)).sum()]
    if input_ids is not None:
        facts += [input_ids.amin(), input_ids.amax()]
    facts += [extreme for ids in token_ids.values() for extreme in (ids.amin(), ids.amax())]
    for check in value_checks:
        check_device(check.name, check.values, device, name)
        facts += check.extremes()
    values = iter(read(facts))
    total, longest = next(values), next(values)
    low, high, low_real = (next(values), next(values), next(values)) if position_ids is not None else (0, 0, 0)
    last = next(values) if from_ids else 0
    packed, from_zero = (next(values), next(values)) if may_be_packed else (0, 0)
    if attention_mask is not None and next(values):
        wrong = attention_mask[(attention_mask != 0) & (attention_mask != 1)][0].item()
        raise ValueError(f"attention_mask must hold only 0 and 1, got {wrong}")
    if from_zero and limits.first_position:
        raise ValueError(
            f"position_ids of a lone row without attention_mask must start a sequence at {limits.first_position}, got "
            f"0: pass position_ids_start={limits.first_position} to DataCollatorWithFlattening"
        )
    if packed < 2:
        packed = 0
        _check_row(name, last - limits.first_position + 1 if from_ids else seq_len, limits)
    else:
        real, total, longest = torch.ones_like(real), seq_len, high - limits.first_position + 1
        low_real = low
    if input_ids is not None:
        check_range("input_ids", (next(values), next(values)), limits.vocab_size, "vocab_size")
    for other in token_ids:
        check_range(other, (next(values), next(values)), limits.token_ids[other], "rows of its table")
    for check in value_checks:
        check.check(next(values), next(values))
    if position_ids is not None:
        end, meaning = limits.last_position + 1, limits.max_tokens_source
        check_range("position_ids", (low_real, high), end, meaning)
        check_range("position_ids at padding", (low, high), end, meaning, lowest=-limits.positions_below)
    return PaddedInputs(input_ids, inputs_embeds, positions, real, dense_mask, total, longest, packed, token_ids)


def _check_row(name: str, seq_len: int, limits: Limits) -> None:
    if seq_len > limits.max_tokens:
        raise ValueError(
            f"{name} must hold at most {limits.max_tokens} tokens a row ({limits.max_tokens_source}), got {seq_len}"
        )


def _positions(
    limits: Limits,
    input_ids: Tensor | None,
    position_ids: Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
    source: str,
) -> Tensor:
    if position_ids is None and input_ids is not None and limits.default_positions is not None:
        return limits.default_positions(input_ids)
    if position_ids is None:
        first = limits.first_position
        return torch.arange(first, first + shape[1], device=device).expand(shape)
    return _expand("position_ids", position_ids, shape, device, source)


def _check_token_ids(
    limits: Limits, name: str, ids: Tensor, shape: tuple[int, int], device: torch.device, source: str
) -> Tensor:
    if name not in limits.token_ids:
        raise ValueError(f"{name} must be None: the model has no table for them")
    return _expand(name, ids, shape, device, source)


def _expand(name: str, ids: Tensor, shape: tuple[int, int], device: torch.device, source: str) -> Tensor:
    """Integers (batch, seq_len) or (1, seq_len), checked, as (batch, seq_len)."""
    check_integers(name, ids)
    check_device(name, ids, device, source)
    if ids.dim() != 2 or ids.shape[0] not in (shape[0], 1) or ids.shape[1] != shape[1]:
        check_shape(name, ids, shape, "batch, seq_len")
    return ids.expand(shape)


def count_packed(positions: Tensor, first: int) -> Tensor:
    """Number of sequences that start in a row; 0 if a position neither starts a sequence nor follows the one before."""
    starts = positions == first
    follows = positions[1:] == positions[:-1] + 1
    return torch.where(starts[0] & (starts[1:] | follows).all(), starts.sum(), 0)


def _masks(
    limits: Limits,
    input_ids: Tensor | None,
    mask: Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """Give (batch, seq_len) bool of real tokens, and the mask of a dense attention if one was given."""
    if mask is None:
        if input_ids is None or limits.default_mask is None:
            return torch.ones(shape, dtype=torch.bool, device=device), None
        return limits.default_mask(input_ids), None
    mask = check_tensor("attention_mask", mask)
    if mask.is_complex():
        raise TypeError(f"attention_mask must be bool, integer or floating point, got {mask.dtype}")
    check_device("attention_mask", mask, device, "the input")
    batch, seq_len = shape
    square = (batch, seq_len, seq_len)
    accepted = [shape, square, (batch, 1, *square[1:]), (batch, limits.num_heads, *square[1:])]
    if tuple(mask.shape) not in accepted:
        raise ValueError(
            f"attention_mask must have shape {accepted[0]}, {accepted[1]}, {accepted[2]} or {accepted[3]} "
            f"(batch, [[heads,] queries,] keys), got {tuple(mask.shape)}"
        )
    allowed = mask == 1
    if mask.dim() == 2:
        return allowed, None
    dense = allowed[:, None] if mask.dim() == 3 else allowed
    # Padding neither attends to anything nor is attended to.
    return dense.any(1).any(2) | dense.any(1).any(1), dense
