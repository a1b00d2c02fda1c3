"""The arguments of a forward as a batch of rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .packing import PackedBatch, check_offsets
from .validation import Limits, PaddedInputs, ValueCheck, check_device, check_one_source, check_padded


@dataclass(frozen=True, eq=False, kw_only=True)
class PaddedGrid(PackedBatch):
    """A padded batch whose padding is computed, too: what torch.export traces, which does not know where padding is.

    Its sequences are the whole lines of the batch. What leaves the rows (`to_grid`, `output`, `first`, `mean`) is as if
    padding had none, so the model gives what it gives on packed rows, and the dense attention finds its mask there.

    Attributes:
        real: (batch, seq_len) bool, False at padding.
    """

    holds_padding = True
    real: Tensor

    @classmethod
    def of(cls, inputs: PaddedInputs) -> "PaddedGrid":
        """Flatten a checked padded batch."""
        batch, seq_len = inputs.real.shape
        return cls(
            cu_seqlens=(torch.arange(batch + 1, device=inputs.real.device) * seq_len).to(torch.int32),
            max_seqlen=seq_len,
            position_ids=inputs.position_ids.flatten(),
            input_ids=None if inputs.input_ids is None else inputs.input_ids.flatten(),
            inputs_embeds=None if inputs.inputs_embeds is None else inputs.inputs_embeds.flatten(0, 1),
            padded_shape=(batch, seq_len),
            token_ids={name: ids.flatten() for name, ids in inputs.token_ids.items()},
            real=inputs.real,
        )

    def to_grid(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """(batch * seq_len, ...) to (batch, seq_len, ...), padding replaced by `fill`."""
        grid = rows.unflatten(0, self.grid_shape)
        real = self._like(grid, self.real)
        if grid.dtype == torch.bool:  # onnxruntime has no Where of bools
            return grid & real if not fill else grid | ~real
        return torch.where(real, grid, fill)

    def from_grid(self, grid: Tensor) -> Tensor:
        """(batch, seq_len, ...) to (batch * seq_len, ...)."""
        return grid.flatten(0, 1)

    def first_rows(self) -> Tensor:
        """(batch,) int64, the first real row of each line; any row where all is padding."""
        batch, seq_len = self.grid_shape
        # argmax gives the first of the greatest, and ONNX has none of bools.
        return torch.arange(batch, device=self.real.device) * seq_len + self.real.int().argmax(1)

    def zero_empty(self, values: Tensor) -> Tensor:
        """Zero the values (batch, ...) of lines that are all padding."""
        return torch.where(self._like(values, self.real.any(1)), values, 0.0)

    def mean(self, rows: Tensor) -> Tensor:
        """Average each line, (batch * seq_len, hidden) to (batch, hidden) float32; zeros if all is padding."""
        return self.to_grid(rows.float()).sum(1) / self.real.sum(1, keepdim=True).clamp(min=1)

    @staticmethod
    def _like(values: Tensor, chosen: Tensor) -> Tensor:
        """`chosen` with a dimension for each further one of `values`."""
        return chosen.view(*chosen.shape, *[1] * (values.dim() - chosen.dim()))


def pack_input(
    limits: Limits,
    weight: Tensor,
    input_ids: Tensor | PackedBatch | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_k: Tensor | None,
    max_length_q: int | None,
    validate: bool,
    value_checks: tuple[ValueCheck, ...],
    token_ids: dict[str, Tensor] | None = None,
    padded_shape: tuple[int, int] | None = None,
    prefix_lens: Tensor | None = None,
) -> tuple[PackedBatch, Tensor | None]:
    """Check and pack the arguments of a forward: a padded batch, a flattened one or a PackedBatch.

    Under torch.export a padded batch keeps its padding, see `PaddedGrid`.

    Args:
        limits: of the model.
        weight: the model's position table; its dtype and device are what the input must match.
        validate: check values of packed input off the CPU too, at the price of a synchronisation.
        value_checks: further values, read together with the rest.
        token_ids: further ids of the tokens, such as token types, in the shape of `input_ids`, by argument name.
        padded_shape: shape of the outputs of flattened input, or None.
        prefix_lens: of flattened input, or None.
        The others: as in the model's forward.

    Returns:
        The batch, and the mask of a dense attention if one was given.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is accepted.
    """
    batch = _packed_input(
        limits, input_ids, inputs_embeds, position_ids, attention_mask, cu_seq_lens_q, cu_seq_lens_k, max_length_q,
        token_ids or {}, padded_shape, prefix_lens,
    )  # fmt: skip
    if batch is not None:
        return batch.checked(limits, weight, validate, value_checks), None
    assert not isinstance(input_ids, PackedBatch)
    inputs = check_padded(
        limits, weight, input_ids, inputs_embeds, attention_mask, position_ids, value_checks, token_ids=token_ids,
        find_packed=True,
    )  # fmt: skip
    pack = PaddedGrid.of if torch.compiler.is_exporting() else PackedBatch.from_padded
    return pack(inputs), inputs.dense_mask


def _packed_input(
    limits: Limits,
    input_ids: Tensor | PackedBatch | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_k: Tensor | None,
    max_length_q: int | None,
    token_ids: dict[str, Tensor],
    padded_shape: tuple[int, int] | None,
    prefix_lens: Tensor | None,
) -> PackedBatch | None:
    """Read the arguments as a packed batch, not checked yet; None: they are a padded one."""
    if isinstance(input_ids, PackedBatch):
        for name, value in (
            ("inputs_embeds", inputs_embeds), ("position_ids", position_ids), ("cu_seq_lens_q", cu_seq_lens_q),
            ("cu_seq_lens_k", cu_seq_lens_k), ("max_length_q", max_length_q), ("padded_shape", padded_shape),
            ("prefix_lens", prefix_lens), *token_ids.items(),
        ):  # fmt: skip
            if value is not None:
                raise ValueError(f"{name} must be None where input_ids is a PackedBatch, which holds it")
    elif cu_seq_lens_q is None:
        for name, value in (
            ("cu_seq_lens_k", cu_seq_lens_k), ("max_length_q", max_length_q), ("padded_shape", padded_shape),
            ("prefix_lens", prefix_lens),
        ):  # fmt: skip
            if value is not None:
                raise ValueError(f"{name} must be None without cu_seq_lens_q, which makes the input a packed one")
        return None
    if attention_mask is not None:
        raise ValueError("attention_mask must be None with packed input: every packed token is real")
    if isinstance(input_ids, PackedBatch):
        return input_ids
    assert cu_seq_lens_q is not None
    check_one_source(input_ids, inputs_embeds)
    check_offsets("cu_seq_lens_q", cu_seq_lens_q)
    if cu_seq_lens_k is not None and cu_seq_lens_k is not cu_seq_lens_q:
        check_offsets("cu_seq_lens_k", cu_seq_lens_k)
        check_device("cu_seq_lens_k", cu_seq_lens_k, cu_seq_lens_q.device, "cu_seq_lens_q")
        on_cpu = cu_seq_lens_k.device.type == "cpu" and not torch.compiler.is_compiling()
        same = cu_seq_lens_k.shape == cu_seq_lens_q.shape
        if not same or (on_cpu and not bool((cu_seq_lens_k == cu_seq_lens_q).all())):
            raise ValueError("cu_seq_lens_k must equal cu_seq_lens_q: an encoder attends to its own tokens")
    return PackedBatch.from_flattened(
        input_ids,
        inputs_embeds,
        position_ids,
        cu_seq_lens_q,
        max_length_q,
        limits,
        token_ids,
        padded_shape,
        prefix_lens,
    )
