"""Tiles, warps and pipeline stages of every kernel: plain tables, no autotuning at run time.

Attention is tabulated by architecture, operands (16-bit or float32, head_dim to 64 or to 128), kernel, tile and
dropout; what works on rows by architecture, kernel and whether a row is wide. The tables were chosen by what compiles
without spilling a register (`python -m bench.compiled` renews that report). None was tuned on a GPU yet: `python -m
bench.tune` does that, and writes what it finds to tuned.json beside this file, whose rows come first.
"""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class AttentionConfig:
    """How an attention kernel is launched.

    Attributes:
        block: columns (forward, "rows") or rows ("columns") of a step of the loop; of "in_one" the longest sequence.
        warps: a program.
        stages: of the software pipeline.
        heads: stacked in one tile; more than 1 only where every sequence fits it.
        split: programs that share the rows of a tile.
    """

    block: int
    warps: int
    stages: int = 1
    heads: int = 1
    split: int = 1


@dataclass(frozen=True)
class RowConfig:
    """How a kernel that works on rows is launched.

    Attributes:
        rows: at once.
        warps: a program.
        programs: most of a backward pass, which each leave one row of partial sums.
        block: columns a program; 0: all.
        stages: of the software pipeline of a backward pass.
    """

    rows: int
    warps: int
    programs: int = 528
    block: int = 0
    stages: int = 1


@dataclass(frozen=True)
class LinearConfig:
    """How a linear layer's kernel is launched.

    Attributes:
        rows, columns: of a tile of the result.
        step: along in_features.
        warps: a program.
        stages: of the software pipeline.
        flatten: whether that pipeline goes on from one tile into the next.
    """

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    flatten: bool = True


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


INVARIANT_TILE = 64
"""Rows of a tile where nothing may depend on the batch."""


def attention_tile(
    max_seqlen: int, total_tokens: int, num_sequences: int, batch_invariant: bool = False
) -> tuple[int, bool]:
    """Rows of an attention tile, and whether a sequence may have several, so that there is a list of them.

    The smallest tile that holds the longest sequence, or one of several a sequence; batch_invariant: one and the same
    kernel for all batches.
    """
    if batch_invariant:
        return INVARIANT_TILE, True
    for tile in TILES[:-1]:
        if max_seqlen <= tile:
            return tile, False
    tile = 128 if max_seqlen > 128 and total_tokens >= LONG * num_sequences else 64
    return tile, max_seqlen > tile


Key = tuple[str, str, int]
"""Kernel, operands ("16x64": bits of an element, and what head_dim is at most), tile."""
Table = dict[Key, AttentionConfig]


def _wider(table: Table, own: Table) -> Table:
    """`table`, and its rows for head_dim above 64 again but where that has its own."""
    wide = {(kernel, operands.replace("x64", "x128"), tile): row for (kernel, operands, tile), row in table.items()}
    return wide | table | own


_WGMMA_64: Table = {
    ("forward", "16x64", 16): AttentionConfig(16, 4, heads=4),
    ("forward", "16x64", 32): AttentionConfig(32, 4, heads=2),
    ("forward", "16x64", 64): AttentionConfig(64, 4, 2),
    ("forward", "16x64", 128): AttentionConfig(64, 8, 2),
    ("in_one", "16x64", 16): AttentionConfig(16, 4, heads=4),
    ("in_one", "16x64", 32): AttentionConfig(32, 4, heads=2),
    ("in_one", "16x64", 64): AttentionConfig(64, 4),
    ("in_one", "16x64", 128): AttentionConfig(64, 4),
    ("rows", "16x64", 64): AttentionConfig(64, 4, 2),
    ("rows", "16x64", 128): AttentionConfig(64, 8, 2),
    ("columns", "16x64", 64): AttentionConfig(32, 4, 2),
    ("columns", "16x64", 128): AttentionConfig(32, 8, 2),
}
"""16 bits; products of four warps at once."""
_WGMMA = _wider(_WGMMA_64, {("columns", "16x128", 64): AttentionConfig(32, 8, 2)})
_WGMMA_AHEAD: Table = {
    key: replace(_WGMMA[key], stages=3)
    for key in (
        ("forward", "16x64", 128), ("rows", "16x64", 64), ("rows", "16x64", 128), ("columns", "16x64", 128),
        ("forward", "16x128", 128), ("rows", "16x128", 128), ("columns", "16x128", 128),
    )
}  # fmt: skip
"""Three stages where a multiprocessor holds as many programs with them as with two, whose loops wait for each block
right after they have asked for it."""

_MMA: Table = _WGMMA | {
    ("forward", "16x64", 32): AttentionConfig(32, 4),
    ("forward", "16x64", 64): AttentionConfig(64, 8, 2),
    ("rows", "16x64", 64): AttentionConfig(32, 4),
    ("rows", "16x64", 128): AttentionConfig(32, 8, 2),
    ("columns", "16x64", 64): AttentionConfig(32, 4),
    ("forward", "16x128", 64): AttentionConfig(32, 4, 2),
    ("forward", "16x128", 128): AttentionConfig(32, 8),
    ("in_one", "16x128", 64): AttentionConfig(64, 8),
    ("in_one", "16x128", 128): AttentionConfig(64, 8),
    ("rows", "16x128", 64): AttentionConfig(64, 8, 2),
    ("rows", "16x128", 128): AttentionConfig(32, 8),
    ("columns", "16x128", 128): AttentionConfig(16, 8),
}
"""The same by products of one warp, which holds its operands in registers."""

_TF32X3: Table = {
    ("forward", "32x64", 16): AttentionConfig(16, 4, 2, heads=4),
    ("forward", "32x64", 32): AttentionConfig(32, 4, 2, heads=2),
    ("forward", "32x64", 64): AttentionConfig(32, 4),
    ("forward", "32x64", 128): AttentionConfig(64, 8),
    ("in_one", "32x64", 16): AttentionConfig(16, 4),
    ("in_one", "32x64", 32): AttentionConfig(32, 4),
    ("in_one", "32x64", 64): AttentionConfig(32, 4),
    ("in_one", "32x64", 128): AttentionConfig(32, 4),
    ("rows", "32x64", 64): AttentionConfig(32, 4, 2),
    ("rows", "32x64", 128): AttentionConfig(64, 8, 2),
    ("columns", "32x64", 64): AttentionConfig(16, 4),
    ("columns", "32x64", 128): AttentionConfig(32, 8, 2),
}
"""float32, each product of three TF32 ones, four warps at once."""


def _split(kernel: str, operands: str, rows: int, config: AttentionConfig) -> Table:
    """`rows` a program, whatever the tile."""
    return {(kernel, operands, tile): replace(config, split=max(tile // rows, 1)) for tile in TILES}


_TF32X3_WIDE = (
    _split("forward", "32x128", 16, AttentionConfig(16, 8))
    | _split("in_one", "32x128", 128, AttentionConfig(16, 8))
    | _split("rows", "32x128", 16, AttentionConfig(16, 8))
    | _split("columns", "32x128", 16, AttentionConfig(16, 8))
)
_TF32X3_MMA = (
    _split("forward", "32x64", 32, AttentionConfig(16, 4))
    | _split("in_one", "32x64", 128, AttentionConfig(32, 4))
    | {("in_one", "32x64", 16): AttentionConfig(16, 4)}
    | _split("rows", "32x64", 16, AttentionConfig(16, 4))
    | _split("columns", "32x64", 16, AttentionConfig(16, 4))
)
"""The same by products of one warp, or of wide heads: no more than 32 or 16 rows fit a program's registers."""

_MFMA: Table = {
    ("forward", "16x64", 16): AttentionConfig(16, 4, heads=2),
    ("forward", "16x64", 32): AttentionConfig(16, 4),
    ("forward", "16x64", 64): AttentionConfig(16, 4, 2),
    ("forward", "16x64", 128): AttentionConfig(16, 8, 2),
    ("in_one", "16x64", 16): AttentionConfig(16, 4, heads=2),
    ("in_one", "16x64", 32): AttentionConfig(32, 4),
    ("in_one", "16x64", 64): AttentionConfig(32, 4),
    ("in_one", "16x64", 128): AttentionConfig(32, 4),
    ("rows", "16x64", 64): AttentionConfig(16, 4, 2),
    ("rows", "16x64", 128): AttentionConfig(16, 8, 2),
    ("columns", "16x64", 64): AttentionConfig(16, 4, 2),
    ("columns", "16x64", 128): AttentionConfig(16, 8, 2),
    ("forward", "32x64", 16): AttentionConfig(16, 4),
    ("forward", "32x64", 32): AttentionConfig(16, 4),
    ("forward", "32x64", 64): AttentionConfig(16, 8),
    ("forward", "32x64", 128): AttentionConfig(16, 8),
    ("in_one", "32x64", 16): AttentionConfig(16, 4),
    ("in_one", "32x64", 32): AttentionConfig(32, 4),
    ("in_one", "32x64", 64): AttentionConfig(32, 4),
    ("in_one", "32x64", 128): AttentionConfig(32, 4),
    ("rows", "32x64", 64): AttentionConfig(16, 8),
    ("rows", "32x64", 128): AttentionConfig(16, 8),
    ("columns", "32x64", 64): AttentionConfig(16, 8),
    ("columns", "32x64", 128): AttentionConfig(16, 8),
}
"""AMD's matrix cores, of both widths; the same rows for head_dim above 64."""

_TCGEN05: Table = _WGMMA | {
    ("rows", "16x128", 64): AttentionConfig(32, 4, 2),
    ("rows", "16x128", 128): AttentionConfig(32, 8, 2),
    ("columns", "16x128", 64): AttentionConfig(32, 4, 2),
    ("forward", "16x128", 64): AttentionConfig(64, 8, 2),
}
"""The same where sums lie in tensor memory."""

ATTENTION: dict[str, Table] = {
    "sm_80": _MMA | _TF32X3_MMA | _TF32X3_WIDE | {("forward", "16x128", 64): AttentionConfig(64, 8, 2)},
    "sm_90": _WGMMA | _WGMMA_AHEAD | _TF32X3 | _TF32X3_WIDE,
    "sm_100": _TCGEN05 | _TF32X3_MMA | _TF32X3_WIDE,
    "sm_120": _MMA
    | _TF32X3_MMA
    | _TF32X3_WIDE
    | _split("rows", "32x64", 32, AttentionConfig(16, 8))
    | _split("rows", "32x128", 16, AttentionConfig(32, 8))
    | _split("columns", "32x128", 16, AttentionConfig(32, 8))
    | {
        ("forward", "16x64", 16): AttentionConfig(16, 4, heads=2),
    },
    "gfx942": _wider(_MFMA, {}),
}
ATTENTION_DROPOUT: dict[str, Table] = {
    "sm_90": {("rows", "16x64", 64): AttentionConfig(32, 4, 3)},
    "sm_100": {
        ("forward", "16x64", 64): AttentionConfig(64, 4),
        ("rows", "16x64", 128): AttentionConfig(16, 8, 2),
    },
}
"""Where dropout asks for other blocks than the tables above."""


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
    operands = f"{8 * dtype.itemsize}x{64 if head_block <= 64 else 128}"
    family, key = _family(architecture(device)), (kernel, operands, tile)
    dropped = ATTENTION_DROPOUT.get(family, {}) if dropout else {}
    return _tuned(device, ("attention", *key, dropout)) or dropped.get(key) or ATTENTION[family][key]


ROWS: dict[str, tuple[RowConfig, RowConfig]] = {
    # rows of up to 1024 columns, and wider ones
    "layer_norm_forward": (RowConfig(2, 4), RowConfig(1, 8)),
    "layer_norm_backward": (RowConfig(2, 4, stages=3), RowConfig(1, 8, stages=3)),
    "embedding_forward": (RowConfig(2, 4), RowConfig(1, 8)),
    "embedding_backward": (RowConfig(2, 4, stages=2), RowConfig(1, 8, stages=2)),
    "gelu_forward": (RowConfig(2, 4, block=1024), RowConfig(2, 4, block=1024)),
    "gelu_backward": (RowConfig(2, 4, block=1024, stages=3), RowConfig(2, 4, block=1024, stages=3)),
}


def row_config(kernel: str, device: torch.device, size: int) -> RowConfig:
    """How a kernel that works on rows of `size` columns is launched."""
    wide = size > 1024
    return _tuned(device, ("rows", kernel, wide)) or ROWS[kernel][wide]


LINEAR: dict[str, tuple[LinearConfig, LinearConfig]] = {
    # 16 bits, float32. One row whatever the sizes: results must not depend on the number of rows.
    "sm_80": (LinearConfig(128, 128, 32, 8, 3), LinearConfig(64, 64, 32, 8, 2)),
    "sm_90": (LinearConfig(128, 128, 64, 8, 4), LinearConfig(64, 64, 32, 8, 2)),
    "sm_100": (LinearConfig(128, 128, 64, 8, 4), LinearConfig(64, 64, 32, 8, 2)),
    "sm_120": (LinearConfig(128, 128, 64, 8, 3), LinearConfig(64, 64, 16, 8, 2)),
    "gfx942": (LinearConfig(128, 64, 32, 8, 2, False), LinearConfig(64, 64, 16, 8, 2, False)),
}


def linear_config(device: torch.device, dtype: torch.dtype, gelu: bool) -> LinearConfig:
    """The row of the table for a linear layer, with or without GELU in its epilogue."""
    bits = 8 * dtype.itemsize
    return _tuned(device, ("linear", bits, gelu)) or LINEAR[_family(architecture(device))][bits == 32]


def fuses_gelu(device: torch.device, dtype: torch.dtype, rows: int) -> bool:
    """Whether linear1 takes GELU into its epilogue: where it was measured to be faster than cuBLAS and another pass."""
    least = FUSED_GELU.get(architecture(device))
    return least is not None and dtype != torch.float32 and rows >= least


TUNED_FILE = Path(__file__).with_name("tuned.json")
"""Rows that `python -m bench.tune` measured on some GPU, by architecture, with where and when. There need be none."""
Entry = tuple[str | int | bool, ...]
"""A row of the tables: ("attention", kernel, operands, tile, dropout), ("rows", kernel, wide) or ("linear", bits,
gelu)."""
_ROW: dict[str | int | bool, type] = {"attention": AttentionConfig, "rows": RowConfig, "linear": LinearConfig}
TUNED: dict[str, dict[Entry, Any]] = {}
"""They take the place of the rows above."""
FUSED_GELU: dict[str, int] = {}
"""Rows of x from which linear1 takes GELU into its epilogue, in 16 bits."""


def _tuned(device: torch.device, entry: Entry) -> Any:
    return TUNED.get(architecture(device), {}).get(entry)


def load_tuned(path: Path) -> None:
    """Put the rows of a file in place of those above.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        for name, found in json.loads(path.read_text(encoding="utf-8")).items():
            rows = {tuple(entry): _ROW[entry[0]](**row) for entry, row in found["rows"]}
            TUNED[name] = rows
            if found["fused_gelu"] is not None:
                FUSED_GELU[name] = int(found["fused_gelu"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be as `python -m bench.tune` writes it; remove or repair it: {error}") from error


if TUNED_FILE.exists():
    load_tuned(TUNED_FILE)
