"""Launch configurations of the kernels, looked up in plain tables: no autotuning at run time.

Rows that `python -m bench.tools.tune` measured on a GPU (tuned.json, if there is one) come before those of tables.py.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch

from .tables import ATTENTION, LINEAR, ROWS, AttentionConfig, LinearConfig, RowConfig

__all__ = [
    "FUSED_GELU", "INVARIANT_TILE", "LONG", "TILES", "TUNED", "TUNED_FILE", "WHOLE", "AttentionConfig", "Entry",
    "LinearConfig", "RowConfig", "architecture", "attention_config", "attention_tile", "fuses_gelu", "linear_config",
    "load_tuned", "row_config",
]  # fmt: skip

TILES = (16, 32, 64, 128)
"""Sizes of attention tiles."""
LONG = 192
"""Mean length from which tiles of 128 rows are filled well enough."""
WHOLE = 450
"""Mean length from which blocks of columns that need no mask have a loop of their own."""
INVARIANT_TILE = 64
"""Tile size for results that must not depend on the rest of the batch."""
_OPERANDS = {(False, False): "16x64", (False, True): "16x128", (True, False): "32x64", (True, True): "32x128"}
"""Bits of an operand and width of a block of heads, by whether they are more than 16 and 64."""


@functools.cache
def architecture(device: torch.device) -> str:
    """Name of a GPU's architecture, such as "sm_90" or "gfx942"; "sm_90" for other devices."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _family(name: str) -> str:
    """The tabulated architecture whose rows a GPU takes."""
    if name in ATTENTION:
        return name
    if name.startswith("gfx"):
        return "gfx942"
    return {"10": "sm_100", "12": "sm_120"}.get(name.removeprefix("sm_")[:-1], "sm_80")


def attention_tile(max_seqlen: int, total_tokens: int, num_sequences: int, block_m: int = 0) -> tuple[int, bool]:
    """(rows of an attention tile, True if the tiles are listed because a sequence may have several).

    Args:
        max_seqlen: tokens in the longest sequence.
        total_tokens: tokens in all.
        num_sequences: number of sequences.
        block_m: size of the tile, one of TILES, listed whatever the lengths; 0: the smallest tile that holds the
            longest sequence, else one of several a sequence.
    """
    if block_m:
        return block_m, True
    for tile in TILES[:-1]:
        if max_seqlen <= tile:
            return tile, False
    tile = 128 if max_seqlen > 128 and total_tokens >= LONG * num_sequences else 64
    return tile, max_seqlen > tile


def attention_config(
    kernel: str, device: torch.device, tile: int, dtype: torch.dtype, head_block: int, dropout: bool
) -> AttentionConfig:
    """Configuration of an attention kernel.

    Args:
        kernel: "fwd", "bwd_single_tile", "bwd_dq" or "bwd_dkdv".
        device: of the operands.
        tile: rows of a tile.
        dtype: of the operands.
        head_block: head_dim, rounded up to a power of two.
        dropout: True if probabilities are dropped.
    """
    name, operands = architecture(device), _OPERANDS[dtype.itemsize > 2, head_block > 64]
    table, key = ATTENTION[_family(name)], (kernel, operands, tile)
    dropped = table.get((*key, "dropout")) if dropout else None
    return _tuned(name, "attention", *key, dropout) or dropped or table[key]


def row_config(kernel: str, device: torch.device, size: int) -> RowConfig:
    """Configuration of a kernel that works on rows of `size` columns, such as "layer_norm_fwd"."""
    wide = size > 1024
    return _tuned(architecture(device), "rows", kernel, wide) or ROWS[kernel][wide]


def linear_config(device: torch.device, dtype: torch.dtype, gelu: bool) -> LinearConfig:
    """Configuration of a linear layer's kernel, with or without GELU in its epilogue."""
    bits = 8 * dtype.itemsize
    name = architecture(device)
    return _tuned(name, "linear", bits, gelu) or LINEAR[_family(name)][bits == 32]


def fuses_gelu(device: torch.device, dtype: torch.dtype, rows: int) -> bool:
    """True if GELU in linear1's epilogue was measured to be faster than cuBLAS and another pass."""
    least = FUSED_GELU.get(architecture(device))
    return least is not None and dtype != torch.float32 and rows >= least


TUNED_FILE = Path(__file__).with_name("tuned.json")
"""Rows that were measured on some GPU, by architecture, with where and when. There need be none."""
Entry = tuple[str | int | bool, ...]
"""Name of a row: ("attention", kernel, operands, tile, dropout), ("rows", kernel, wide) or ("linear", bits, gelu)."""
TUNED: dict[str, dict[Entry, Any]] = {}
"""Measured rows by architecture and name; they come before the tables."""
FUSED_GELU: dict[str, int] = {}
"""Rows of x, by architecture, from which linear1 takes GELU into its epilogue, in 16 bits."""
_ROW: dict[str | int | bool, type] = {"attention": AttentionConfig, "rows": RowConfig, "linear": LinearConfig}


def _tuned(name: str, *entry: str | int | bool) -> Any:
    measured = TUNED.get(name)
    return None if measured is None else measured.get(entry)


def load_tuned(path: Path) -> None:
    """Read a file that `python -m bench.tools.tune` wrote into TUNED and FUSED_GELU.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        for name, found in json.loads(path.read_text(encoding="utf-8")).items():
            TUNED[name] = {tuple(entry): _ROW[entry[0]](**row) for entry, row in found["rows"]}
            if found["fused_gelu"] is not None:
                FUSED_GELU[name] = int(found["fused_gelu"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must be as `python -m bench.tools.tune` writes it; remove or repair it: {error}"
        ) from error


if TUNED_FILE.exists():
    load_tuned(TUNED_FILE)
