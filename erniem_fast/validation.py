"""What both models ask of their input: one clear error for what can't be right, before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .configuration import POSITION_OFFSET, ErnieMConfig


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
        max_seqlen: most real tokens in a row.
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    position_ids: Tensor
    real: Tensor
    dense_mask: Tensor | None
    total_tokens: int
    max_seqlen: int


class ValueCheck(Protocol):
    """Values that are read together with the input: two scalars to the host, and what they must be."""

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


def check_integers(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {value.dtype}")
    return value


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)} ({meaning}), got {tuple(value.shape)}")


def check_device(name: str, value: Tensor, device: torch.device, other: str) -> None:
    if value.device != device:
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


def check_embeds(inputs_embeds: object, config: ErnieMConfig, dtype: torch.dtype, dims: int) -> Tensor:
    if not isinstance(inputs_embeds, Tensor):
        raise TypeError(f"inputs_embeds must be a tensor, got {type(inputs_embeds).__name__}")
    if not inputs_embeds.is_floating_point():
        raise TypeError(f"inputs_embeds must be floating point, got {inputs_embeds.dtype}")
    if inputs_embeds.dim() != dims or inputs_embeds.shape[-1] != config.hidden_size:
        raise ValueError(
            f"inputs_embeds must have {dims} dimensions, the last of size {config.hidden_size} (hidden_size), "
            f"got shape {tuple(inputs_embeds.shape)}"
        )
    if inputs_embeds.dtype != dtype and not torch.is_autocast_enabled(inputs_embeds.device.type):
        raise ValueError(f"inputs_embeds must be {dtype} like the model's weights, got {inputs_embeds.dtype}")
    return inputs_embeds


def read(facts: list[Tensor]) -> list[int]:
    """Scalars to the host in one copy."""
    return torch.stack([fact.long() for fact in facts]).tolist()  # type: ignore[no-any-return]


def check_encoder_only(past_key_values: object) -> None:
    if past_key_values is not None:
        raise ValueError("past_key_values must be None: ErnieM is an encoder and keeps no cache")


def check_padded(
    config: ErnieMConfig,
    weight: Tensor,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    value_checks: tuple[ValueCheck, ...] = (),
) -> PaddedInputs:
    """Check a padded batch and fill in what was left out. Reads the device once (values, totals and errors together).

    Args:
        config: the model's configuration.
        weight: the model's position table; its dtype and device are what the input must match.
        input_ids: (batch, seq_len) integers in [0, vocab_size).
        inputs_embeds: (batch, seq_len, hidden_size) of the model's dtype, instead of `input_ids`.
        attention_mask: 0/1 of shape (batch, seq_len), (batch, seq_len, seq_len) or (batch, 1 or num_heads, seq_len,
            seq_len); None: tokens other than [PAD] are real (with `inputs_embeds`: all).
        position_ids: (batch, seq_len) or (1, seq_len) integers; None: the column. Real tokens take [0,
            max_position_embeddings - 2); padding may also stand at -1 and -2, as the `cumsum - 1` idiom leaves it.
        value_checks: further values, read together with the rest.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is accepted.
    """
    check_one_source(input_ids, inputs_embeds)
    if input_ids is not None:
        name, source = "input_ids", check_integers("input_ids", input_ids)
        if source.dim() != 2:
            raise ValueError(f"input_ids must have shape (batch, seq_len), got {tuple(source.shape)}")
    else:
        name, source = "inputs_embeds", check_embeds(inputs_embeds, config, weight.dtype, 3)
    batch, seq_len = source.shape[:2]
    device = source.device
    if batch == 0 or seq_len == 0:
        raise ValueError(f"{name} holds an empty batch, got shape {tuple(source.shape)}")
    if seq_len > config.max_tokens:
        raise ValueError(
            f"{name} must hold at most {config.max_tokens} tokens a row (max_position_embeddings - 2), got {seq_len}"
        )
    # Offloaded weights stand on meta until a hook brings them.
    if weight.device.type != "meta":
        check_device(name, source, weight.device, "the model")

    if position_ids is None:
        position_ids = torch.arange(seq_len, device=device).expand(batch, seq_len)
    else:
        check_integers("position_ids", position_ids)
        check_device("position_ids", position_ids, device, name)
        if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != seq_len:
            check_shape("position_ids", position_ids, (batch, seq_len), "batch, seq_len")
        position_ids = position_ids.expand(batch, seq_len)

    real, dense_mask = _masks(config, input_ids, attention_mask, (batch, seq_len), device)
    lengths = real.sum(1)
    facts = [lengths.sum(), lengths.amax(), position_ids.amin(), position_ids.amax()]
    facts.append(torch.where(real, position_ids, 0).amin())
    facts.append(torch.zeros_like(facts[0]) if attention_mask is None else _count_bad(attention_mask))
    facts += [] if input_ids is None else [input_ids.amin(), input_ids.amax()]
    for check in value_checks:
        check_device(check.name, check.values, device, name)
        facts += check.extremes()
    total, longest, low, high, low_real, bad_mask, *ranges = read(facts)
    if bad_mask:
        assert attention_mask is not None
        value = attention_mask[(attention_mask != 0) & (attention_mask != 1)][0].item()
        raise ValueError(f"attention_mask must hold only 0 and 1, got {value}")
    if input_ids is not None:
        check_range("input_ids", ranges[:2], config.vocab_size, "vocab_size")
        ranges = ranges[2:]
    for check, extremes in zip(value_checks, zip(ranges[::2], ranges[1::2], strict=True), strict=True):
        check.check(*extremes)
    meaning = "max_position_embeddings - 2"
    check_range("position_ids", (low_real, high), config.max_tokens, meaning)
    check_range("position_ids at padding", (low, high), config.max_tokens, meaning, lowest=-POSITION_OFFSET)
    return PaddedInputs(input_ids, inputs_embeds, position_ids, real, dense_mask, total, longest)


def _count_bad(mask: Tensor) -> Tensor:
    return ((mask != 0) & (mask != 1)).sum()


def _masks(
    config: ErnieMConfig,
    input_ids: Tensor | None,
    mask: Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """(batch, seq_len) bool of real tokens, and the mask of a dense attention if one was given."""
    if mask is None:
        if input_ids is None or config.pad_token_id is None:
            return torch.ones(shape, dtype=torch.bool, device=device), None
        return input_ids != config.pad_token_id, None
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got {type(mask).__name__}")
    if mask.is_complex():
        raise TypeError(f"attention_mask must be bool, integer or floating point, got {mask.dtype}")
    check_device("attention_mask", mask, device, "the input")
    batch, seq_len = shape
    square = (batch, seq_len, seq_len)
    accepted = [shape, square, (batch, 1, *square[1:]), (batch, config.num_attention_heads, *square[1:])]
    if tuple(mask.shape) not in accepted:
        raise ValueError(
            f"attention_mask must have shape {accepted[0]}, {accepted[1]}, {accepted[2]} or {accepted[3]} "
            f"(batch, [[heads,] queries,] keys), got {tuple(mask.shape)}"
        )
    allowed = mask == 1
    if mask.dim() == 2:
        return allowed, None
    dense = allowed[:, None] if mask.dim() == 3 else allowed
    # Padding is what neither attends to anything nor is attended to.
    return dense.any(1).any(2) | dense.any(1).any(1), dense
