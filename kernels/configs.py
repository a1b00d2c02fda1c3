"""Tiles, warps and pipeline stages of every kernel: plain tables, no autotuning at run time.

Attention is tabulated by architecture, operands (16-bit or float32, head_dim to 64 or to 128), kernel, tile and
dropout; what works on rows by architecture, kernel and whether a row is wide. The tables were chosen by what compiles
without spilling a register (`python -m bench.compiled` renews that report); none was tuned on a GPU yet.
"""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AttentionConfig:
    """How an attention kernel is launched.

    Attributes:
        block: columns (forward, "rows"), or rows ("columns"), of one step of the loop; of "in_one" the longest sequence.
        warps: a program.
        stages: of the software pipeline.
        heads: stacked in one tile; more than 1 only where every sequence fits it.
    """

    block: int
    warps: int
    stages: int = 1
    heads: int = 1


@dataclass(frozen=True)
class RowConfig:
    """How a kernel that works on rows is launched.

    Attributes:
        rows: at once.
        warps: a program.
        programs: most of a backward pass, which each leave one row of partial sums.
        block: columns a program; 0: all.
    """

    rows: int
    warps: int
    programs: int = 528
    block: int = 0


@functools.cache
def architecture(device: torch.device) -> str:
    """Such as "sm_90" or "gfx942"; what is not a GPU counts as sm_90."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


TILES = (16, 32, 64, 128)
LONG = 192
"""Mean length from which tiles of 128 rows are filled well enough."""


def attention_tile(max_seqlen: int, total_tokens: int, num_sequences: int) -> int:
    """Rows of an attention tile: the smallest that holds the longest sequence, or one of which sequences take several."""
    for tile in TILES[:-1]:
        if max_seqlen <= tile:
            return tile
    return 128 if total_tokens >= LONG * num_sequences else 64


Key = tuple[str, str, int]
"""Kernel, operands, tile."""

# 16-bit operands: d64, d128. float32: f64, f128.
_COMMON: dict[Key, AttentionConfig] = {
    ("forward", "d64", 16): AttentionConfig(16, 4, heads=4),
    ("forward", "d64", 32): AttentionConfig(32, 4, heads=2),
    ("forward", "d64", 64): AttentionConfig(64, 4, 2),
    ("forward", "d64", 128): AttentionConfig(64, 8, 2),
    ("in_one", "d64", 16): AttentionConfig(16, 4, heads=4),
    ("in_one", "d64", 32): AttentionConfig(32, 4, heads=2),
    ("in_one", "d64", 64): AttentionConfig(64, 4),
    ("in_one", "d64", 128): AttentionConfig(64, 4),
    ("rows", "d64", 64): AttentionConfig(64, 4, 2),
    ("rows", "d64", 128): AttentionConfig(64, 8, 2),
    ("columns", "d64", 64): AttentionConfig(32, 4, 2),
    ("columns", "d64", 128): AttentionConfig(32, 8, 2),
}
_COMMON |= {
    (kernel, operands, tile): config
    for operands in ("d128", "f64", "f128")
    for (kernel, _, tile), config in list(_COMMON.items())
}

ATTENTION: dict[str, dict[Key, AttentionConfig]] = {
    "sm_80": _COMMON,
    "sm_90": _COMMON,
    "sm_100": _COMMON,
    "sm_120": _COMMON,
    "gfx942": _COMMON,
}
ATTENTION_DROPOUT: dict[str, dict[Key, AttentionConfig]] = {}
"""Where dropout asks for other tiles than the table above."""


def _family(name: str) -> str:
    """The tabulated architecture whose rows a GPU takes."""
    if name in ATTENTION:
        return name
    if name.startswith("gfx"):
        return "gfx942"
    return {"10": "sm_100", "12": "sm_120"}.get(name.removeprefix("sm_")[:-1], "sm_80")


def attention_config(
    kernel: str, device: torch.device, tile: int, dtype: torch.dtype, head_block: int, dropout: bool
) -> AttentionConfig:
    """The row of the table for a kernel: "forward", "in_one", "rows" or "columns".

    Args:
        kernel: its name.
        device: where it runs.
        tile: rows of a tile.
        dtype: of the operands.
        head_block: head_dim, rounded up to a power of two.
        dropout: whether probabilities are dropped.
    """
    operands = ("f" if dtype == torch.float32 else "d") + ("64" if head_block <= 64 else "128")
    family, key = _family(architecture(device)), (kernel, operands, tile)
    dropped = ATTENTION_DROPOUT.get(family, {}) if dropout else {}
    return dropped.get(key) or ATTENTION[family][key]


ROWS: dict[str, tuple[RowConfig, RowConfig]] = {
    # rows of up to 1024 columns, and wider ones
    "layer_norm_forward": (RowConfig(2, 4), RowConfig(1, 8)),
    "layer_norm_backward": (RowConfig(2, 4), RowConfig(1, 8)),
    "embedding_forward": (RowConfig(2, 4), RowConfig(1, 8)),
    "embedding_backward": (RowConfig(2, 4), RowConfig(1, 8)),
    "gelu_forward": (RowConfig(2, 4, block=1024), RowConfig(2, 4, block=1024)),
    "gelu_backward": (RowConfig(2, 4, block=1024), RowConfig(2, 4, block=1024)),
}


def row_config(kernel: str, device: torch.device, size: int, dropout: bool) -> RowConfig:
    """How a kernel that works on rows of `size` columns is launched on a device."""
    return ROWS[kernel][size > 1024]
