"""Tiles, warps and pipeline stages of every kernel: literal tables, an architecture at a time.

The tables were chosen by what compiles without spilling a register (`python -m bench.tools.compile_kernels` checks).
None was tuned on a GPU yet; tuned rows are in tuned.json, and come before these. `configs.py` has the look-ups.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionConfig:
    """Launch configuration of an attention kernel.

    Attributes:
        block_m: rows (queries) of a block of scores.
        block_n: columns (keys) of a block of scores.
        num_warps: warps a program.
        num_stages: stages of the software pipeline.
        heads_per_tile: heads stacked in one tile; more than 1 only where every sequence fits the tile.
        max_registers: most registers a thread, so that more programs run on a multiprocessor; 0: no cap.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int = 1
    heads_per_tile: int = 1
    max_registers: int = 0


@dataclass(frozen=True)
class RowConfig:
    """Launch configuration of a kernel that works on rows.

    Attributes:
        block_m: rows at a time.
        num_warps: warps a program.
        max_programs: most programs of a backward pass, each of which leaves one row of partial sums for each of its
            block_m rows at a time.
        min_rows: least rows of such a program.
        block_n: columns a program; 0: all.
        num_stages: stages of the software pipeline of a backward pass.
    """

    block_m: int
    num_warps: int
    max_programs: int = 528
    min_rows: int = 1
    block_n: int = 0
    num_stages: int = 1


@dataclass(frozen=True)
class LinearConfig:
    """Launch configuration of a linear layer's kernel.

    Attributes:
        block_m: rows of a tile of the result.
        block_n: columns of a tile of the result.
        block_k: step along in_features.
        num_warps: warps a program.
        num_stages: stages of the software pipeline.
        flatten: True if the pipeline runs on from one tile into the next.
        max_registers: most registers a thread; 0: no cap.
        programs: programs a multiprocessor, so that one's epilogue hides behind another's products.
        parts: 1, or 2 for an epilogue that takes one half of a tile's columns after the other.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    flatten: bool = True
    max_registers: int = 0
    programs: int = 1
    parts: int = 1


ROWS: dict[str, tuple[RowConfig, RowConfig]] = {
    # on every architecture; rows of up to 1024 columns, each within a warp, and wider ones, each a program
    "layer_norm_fwd": (RowConfig(2, 1), RowConfig(1, 8)),
    "layer_norm_bwd": (RowConfig(1, 1, 1056, 16, num_stages=2), RowConfig(1, 8, num_stages=2)),
    "embedding_fwd": (RowConfig(2, 1), RowConfig(1, 8)),
    "embedding_bwd": (RowConfig(1, 1, 1056, 16, num_stages=2), RowConfig(1, 8, num_stages=2)),
    "activation_fwd": (RowConfig(2, 4, block_n=1024), RowConfig(2, 4, block_n=1024)),
    "activation_bwd": (RowConfig(2, 4, block_n=1024, num_stages=3), RowConfig(2, 4, block_n=1024, num_stages=3)),
    "cross_entropy_fwd": (RowConfig(1, 4, block_n=1024), RowConfig(1, 8, block_n=4096)),
}

LINEAR: dict[str, tuple[LinearConfig, LinearConfig]] = {
    # 16 bits, and float32; one row whatever the sizes: results must not depend on the number of rows
    "sm_80": (LinearConfig(128, 128, 32, 8, 3), LinearConfig(64, 64, 32, 8, 2)),
    "sm_90": (LinearConfig(128, 128, 64, 8, 3, False, programs=2), LinearConfig(64, 64, 32, 8, 2)),
    "sm_100": (LinearConfig(128, 128, 64, 8, 4), LinearConfig(64, 64, 32, 8, 2)),
    "sm_120": (LinearConfig(128, 128, 64, 8, 3), LinearConfig(64, 64, 16, 8, 2)),
    "gfx942": (LinearConfig(128, 64, 32, 8, 2, False), LinearConfig(64, 64, 16, 8, 2, False)),
}

AttentionKey = tuple[str, str, int] | tuple[str, str, int, str]
"""Kernel, operands, tile; and "dropout" where a row holds only with dropout, in place of the row above it.

Kernel: "fwd"; "bwd_single_tile" (dQ, dK and dV of sequences of up to block_m = block_n tokens); "bwd_dq" and "bwd_dkdv"
(of longer ones). A program of "fwd" and "bwd_dq" owns block_m rows and walks over columns in steps of block_n; one of
"bwd_dkdv" owns block_n columns and walks over rows in steps of block_m.

Operands: "16x64" is 16 bits and a head_dim of up to 64, "32x128" float32 and a head_dim of up to 128.

Tile, from the longest sequence: up to 16 tokens -> 16, up to 32 -> 32, up to 64 -> 64; longer ones have several tiles
each, of 128 where the mean length is at least `configs.LONG`, else of 64. Several programs share a tile where it is
larger than what one of them owns.
"""

ATTENTION: dict[str, dict[AttentionKey, AttentionConfig]] = {
    # Ampere and Ada: products by one warp, which holds its operands in registers. float32: three TF32 products
    # each; no more than 32 or 16 rows of those fit a program's registers.
    # AttentionConfig(block_m, block_n, num_warps, num_stages)
    "sm_80": {
        # 16 bits, head_dim to 64
        ("fwd", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("fwd", "16x64", 32): AttentionConfig(32, 32, 4),
        ("fwd", "16x64", 64): AttentionConfig(64, 64, 8, 2),
        ("fwd", "16x64", 64, "dropout"): AttentionConfig(64, 64, 8, 2, max_registers=136),
        ("fwd", "16x64", 128): AttentionConfig(128, 64, 8, 2),
        ("bwd_single_tile", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x64", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x64", 64): AttentionConfig(64, 64, 4),
        ("bwd_single_tile", "16x64", 128): AttentionConfig(64, 64, 4),
        ("bwd_dq", "16x64", 64): AttentionConfig(64, 32, 4),
        ("bwd_dq", "16x64", 128): AttentionConfig(128, 32, 8, 2),
        ("bwd_dkdv", "16x64", 64): AttentionConfig(32, 64, 4),
        ("bwd_dkdv", "16x64", 128): AttentionConfig(32, 128, 8, 2),
        # 16 bits, head_dim to 128
        ("fwd", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("fwd", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("fwd", "16x128", 64): AttentionConfig(64, 32, 8, 2),
        ("fwd", "16x128", 64, "dropout"): AttentionConfig(64, 64, 8, 2),
        ("fwd", "16x128", 128): AttentionConfig(128, 32, 8),
        ("bwd_single_tile", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x128", 64): AttentionConfig(64, 64, 8),
        ("bwd_single_tile", "16x128", 128): AttentionConfig(64, 64, 8),
        ("bwd_dq", "16x128", 64): AttentionConfig(64, 64, 8, 2),
        ("bwd_dq", "16x128", 128): AttentionConfig(128, 32, 8),
        ("bwd_dkdv", "16x128", 64): AttentionConfig(32, 64, 8, 2),
        ("bwd_dkdv", "16x128", 128): AttentionConfig(16, 128, 8),
        # float32, head_dim to 64
        ("fwd", "32x64", 16): AttentionConfig(16, 16, 4),
        ("fwd", "32x64", 32): AttentionConfig(32, 16, 4),
        ("fwd", "32x64", 64): AttentionConfig(32, 16, 4),
        ("fwd", "32x64", 64, "dropout"): AttentionConfig(16, 16, 4),
        ("fwd", "32x64", 128): AttentionConfig(32, 16, 4),
        ("bwd_single_tile", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_single_tile", "32x64", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_dq", "32x64", 32): AttentionConfig(16, 16, 4),
        ("bwd_dq", "32x64", 64): AttentionConfig(16, 16, 4),
        ("bwd_dq", "32x64", 128): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 32): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 64): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 128): AttentionConfig(16, 16, 4),
        # float32, head_dim to 128
        ("fwd", "32x128", 16): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 32): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 64): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 128): AttentionConfig(16, 16, 8),
    },
    # Hopper: products by four warps at once. Three stages where a multiprocessor holds as many programs with them as
    # with two, whose loops wait for each block right after they have asked for it.
    # AttentionConfig(block_m, block_n, num_warps, num_stages)
    "sm_90": {
        # 16 bits, head_dim to 64
        ("fwd", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("fwd", "16x64", 32): AttentionConfig(32, 32, 4, heads_per_tile=2, max_registers=80),
        ("fwd", "16x64", 64): AttentionConfig(64, 64, 4, 2),
        ("fwd", "16x64", 128): AttentionConfig(128, 64, 8, 3, max_registers=128),
        ("bwd_single_tile", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x64", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x64", 64): AttentionConfig(64, 64, 4),
        ("bwd_single_tile", "16x64", 64, "dropout"): AttentionConfig(64, 64, 4, max_registers=128),
        ("bwd_single_tile", "16x64", 128): AttentionConfig(64, 64, 4),
        ("bwd_single_tile", "16x64", 128, "dropout"): AttentionConfig(64, 64, 4, max_registers=128),
        ("bwd_dq", "16x64", 64): AttentionConfig(64, 64, 4, 3),
        ("bwd_dq", "16x64", 64, "dropout"): AttentionConfig(64, 32, 4, 3),
        ("bwd_dq", "16x64", 128): AttentionConfig(128, 64, 8, 3),
        ("bwd_dq", "16x64", 128, "dropout"): AttentionConfig(64, 64, 4, 3),
        ("bwd_dkdv", "16x64", 64): AttentionConfig(32, 64, 4, 2),
        # Two programs a tile: three fit a multiprocessor, of 128 columns only one. Each reads all of Q and dO, 8 KB for
        # 32 x 64 scores: at 12 heads and 64 k tokens in sequences of 512, 1.6 GB from L2 a layer instead of 0.8
        # (a predicted limit, not measured).
        ("bwd_dkdv", "16x64", 128): AttentionConfig(32, 64, 4, 2),
        # 16 bits, head_dim to 128
        ("fwd", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("fwd", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("fwd", "16x128", 64): AttentionConfig(64, 64, 4, 2),
        ("fwd", "16x128", 128): AttentionConfig(128, 64, 8, 3),
        ("bwd_single_tile", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x128", 64): AttentionConfig(64, 64, 4),
        ("bwd_single_tile", "16x128", 128): AttentionConfig(64, 64, 4),
        ("bwd_dq", "16x128", 64): AttentionConfig(64, 64, 4, 2),
        ("bwd_dq", "16x128", 128): AttentionConfig(128, 64, 8, 3),
        ("bwd_dkdv", "16x128", 64): AttentionConfig(32, 64, 8, 2),
        ("bwd_dkdv", "16x128", 128): AttentionConfig(32, 128, 8, 3),
        # float32, head_dim to 64
        ("fwd", "32x64", 16): AttentionConfig(16, 16, 4, 2, heads_per_tile=4),
        ("fwd", "32x64", 32): AttentionConfig(32, 32, 4, 2, heads_per_tile=2),
        ("fwd", "32x64", 64): AttentionConfig(64, 32, 4),
        ("fwd", "32x64", 128): AttentionConfig(128, 64, 8),
        ("bwd_single_tile", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_single_tile", "32x64", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "32x64", 64): AttentionConfig(64, 32, 4, 2),
        ("bwd_dq", "32x64", 128): AttentionConfig(128, 64, 8, 2),
        ("bwd_dq", "32x64", 128, "dropout"): AttentionConfig(128, 32, 8, 2),
        ("bwd_dkdv", "32x64", 64): AttentionConfig(16, 64, 4),
        ("bwd_dkdv", "32x64", 128): AttentionConfig(16, 128, 8, 2),
        ("bwd_dkdv", "32x64", 128, "dropout"): AttentionConfig(32, 128, 8, 2),
        # float32, head_dim to 128
        ("fwd", "32x128", 16): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 32): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 64): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 128): AttentionConfig(16, 16, 8),
    },
    # Blackwell (data centre): 16-bit sums lie in tensor memory; float32 as on sm_80.
    # AttentionConfig(block_m, block_n, num_warps, num_stages)
    "sm_100": {
        # 16 bits, head_dim to 64
        ("fwd", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("fwd", "16x64", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("fwd", "16x64", 64): AttentionConfig(64, 64, 4, 2),
        ("fwd", "16x64", 64, "dropout"): AttentionConfig(64, 64, 4),
        ("fwd", "16x64", 128): AttentionConfig(128, 32, 8, 2),
        ("fwd", "16x64", 128, "dropout"): AttentionConfig(128, 64, 8, 2),
        ("bwd_single_tile", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x64", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x64", 64): AttentionConfig(64, 64, 4),
        ("bwd_single_tile", "16x64", 128): AttentionConfig(64, 64, 4),
        ("bwd_dq", "16x64", 64): AttentionConfig(64, 64, 4, 2),
        ("bwd_dq", "16x64", 64, "dropout"): AttentionConfig(64, 32, 4, 2),
        ("bwd_dq", "16x64", 128): AttentionConfig(128, 64, 8, 2),
        ("bwd_dq", "16x64", 128, "dropout"): AttentionConfig(128, 16, 8, 2),
        ("bwd_dkdv", "16x64", 64): AttentionConfig(32, 64, 4, 2),
        ("bwd_dkdv", "16x64", 128): AttentionConfig(32, 128, 8, 2),
        # 16 bits, head_dim to 128
        ("fwd", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("fwd", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("fwd", "16x128", 64): AttentionConfig(64, 64, 8, 2),
        ("fwd", "16x128", 64, "dropout"): AttentionConfig(64, 64, 4),
        ("fwd", "16x128", 128): AttentionConfig(128, 64, 8, 2),
        ("bwd_single_tile", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x128", 64): AttentionConfig(64, 64, 4),
        ("bwd_single_tile", "16x128", 128): AttentionConfig(64, 64, 4),
        ("bwd_dq", "16x128", 64): AttentionConfig(64, 32, 4, 2),
        ("bwd_dq", "16x128", 128): AttentionConfig(128, 32, 8, 2),
        ("bwd_dkdv", "16x128", 64): AttentionConfig(32, 64, 4, 2),
        ("bwd_dkdv", "16x128", 128): AttentionConfig(32, 128, 8, 2),
        # float32, head_dim to 64
        ("fwd", "32x64", 16): AttentionConfig(16, 16, 4),
        ("fwd", "32x64", 32): AttentionConfig(32, 16, 4),
        ("fwd", "32x64", 64): AttentionConfig(32, 16, 4),
        ("fwd", "32x64", 128): AttentionConfig(32, 16, 4),
        ("bwd_single_tile", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_single_tile", "32x64", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_dq", "32x64", 32): AttentionConfig(16, 16, 4),
        ("bwd_dq", "32x64", 64): AttentionConfig(16, 16, 4),
        ("bwd_dq", "32x64", 128): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 32): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 64): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 128): AttentionConfig(16, 16, 4),
        # float32, head_dim to 128
        ("fwd", "32x128", 16): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 32): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 64): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 128): AttentionConfig(16, 16, 8),
    },
    # Blackwell (consumer): products by one warp, as on sm_80.
    # AttentionConfig(block_m, block_n, num_warps, num_stages)
    "sm_120": {
        # 16 bits, head_dim to 64
        ("fwd", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=2),
        ("fwd", "16x64", 32): AttentionConfig(32, 32, 4),
        ("fwd", "16x64", 64): AttentionConfig(64, 64, 8, 2),
        ("fwd", "16x64", 128): AttentionConfig(128, 64, 8, 2),
        ("bwd_single_tile", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x64", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x64", 64): AttentionConfig(64, 64, 4),
        ("bwd_single_tile", "16x64", 128): AttentionConfig(64, 64, 4),
        ("bwd_dq", "16x64", 64): AttentionConfig(64, 32, 4),
        ("bwd_dq", "16x64", 128): AttentionConfig(128, 32, 8, 2),
        ("bwd_dkdv", "16x64", 64): AttentionConfig(32, 64, 4),
        ("bwd_dkdv", "16x64", 128): AttentionConfig(32, 128, 8, 2),
        # 16 bits, head_dim to 128
        ("fwd", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("fwd", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("fwd", "16x128", 64): AttentionConfig(64, 32, 4, 2),
        ("fwd", "16x128", 128): AttentionConfig(128, 32, 8),
        ("bwd_single_tile", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=4),
        ("bwd_single_tile", "16x128", 32): AttentionConfig(32, 32, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x128", 64): AttentionConfig(64, 64, 8),
        ("bwd_single_tile", "16x128", 128): AttentionConfig(64, 64, 8),
        ("bwd_dq", "16x128", 64): AttentionConfig(64, 64, 8, 2),
        ("bwd_dq", "16x128", 128): AttentionConfig(128, 32, 8),
        ("bwd_dkdv", "16x128", 64): AttentionConfig(32, 64, 8, 2),
        ("bwd_dkdv", "16x128", 128): AttentionConfig(16, 128, 8),
        # float32, head_dim to 64
        ("fwd", "32x64", 16): AttentionConfig(16, 16, 4),
        ("fwd", "32x64", 32): AttentionConfig(32, 16, 4),
        ("fwd", "32x64", 64): AttentionConfig(32, 16, 4),
        ("fwd", "32x64", 128): AttentionConfig(32, 16, 4),
        ("bwd_single_tile", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_single_tile", "32x64", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "32x64", 16): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x64", 32): AttentionConfig(32, 16, 8),
        ("bwd_dq", "32x64", 64): AttentionConfig(32, 16, 8),
        ("bwd_dq", "32x64", 128): AttentionConfig(32, 16, 8),
        ("bwd_dkdv", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 32): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 64): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 64, "dropout"): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x64", 128): AttentionConfig(16, 16, 4),
        ("bwd_dkdv", "32x64", 128, "dropout"): AttentionConfig(32, 16, 8),
        # float32, head_dim to 128
        ("fwd", "32x128", 16): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 32): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 64): AttentionConfig(16, 16, 8),
        ("fwd", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 16): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 32): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 64): AttentionConfig(16, 16, 8),
        ("bwd_single_tile", "32x128", 128): AttentionConfig(16, 16, 8),
        ("bwd_dq", "32x128", 16): AttentionConfig(16, 32, 8),
        ("bwd_dq", "32x128", 32): AttentionConfig(16, 32, 8),
        ("bwd_dq", "32x128", 64): AttentionConfig(16, 32, 8),
        ("bwd_dq", "32x128", 128): AttentionConfig(16, 32, 8),
        ("bwd_dkdv", "32x128", 16): AttentionConfig(32, 16, 8),
        ("bwd_dkdv", "32x128", 32): AttentionConfig(32, 16, 8),
        ("bwd_dkdv", "32x128", 32, "dropout"): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 64): AttentionConfig(32, 16, 8),
        ("bwd_dkdv", "32x128", 64, "dropout"): AttentionConfig(16, 16, 8),
        ("bwd_dkdv", "32x128", 128): AttentionConfig(32, 16, 8),
        ("bwd_dkdv", "32x128", 128, "dropout"): AttentionConfig(16, 16, 8),
    },
    # AMD CDNA3: matrix cores for 16 bits and float32 alike.
    # AttentionConfig(block_m, block_n, num_warps, num_stages)
    "gfx942": {
        # 16 bits, head_dim to 64
        ("fwd", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=2),
        ("fwd", "16x64", 32): AttentionConfig(32, 16, 4),
        ("fwd", "16x64", 64): AttentionConfig(64, 16, 4, 2),
        ("fwd", "16x64", 128): AttentionConfig(128, 16, 8, 2),
        ("bwd_single_tile", "16x64", 16): AttentionConfig(16, 16, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x64", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "16x64", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "16x64", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "16x64", 64): AttentionConfig(64, 16, 4, 2),
        ("bwd_dq", "16x64", 128): AttentionConfig(128, 16, 8, 2),
        ("bwd_dkdv", "16x64", 64): AttentionConfig(16, 64, 4, 2),
        ("bwd_dkdv", "16x64", 128): AttentionConfig(16, 128, 8, 2),
        # 16 bits, head_dim to 128
        ("fwd", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=2),
        ("fwd", "16x128", 32): AttentionConfig(32, 16, 4),
        ("fwd", "16x128", 64): AttentionConfig(64, 16, 4, 2),
        ("fwd", "16x128", 128): AttentionConfig(128, 16, 8, 2),
        ("bwd_single_tile", "16x128", 16): AttentionConfig(16, 16, 4, heads_per_tile=2),
        ("bwd_single_tile", "16x128", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "16x128", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "16x128", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "16x128", 64): AttentionConfig(64, 16, 4, 2),
        ("bwd_dq", "16x128", 128): AttentionConfig(128, 16, 8, 2),
        ("bwd_dkdv", "16x128", 64): AttentionConfig(16, 64, 4, 2),
        ("bwd_dkdv", "16x128", 128): AttentionConfig(16, 128, 8, 2),
        # float32, head_dim to 64
        ("fwd", "32x64", 16): AttentionConfig(16, 16, 4),
        ("fwd", "32x64", 32): AttentionConfig(32, 16, 4),
        ("fwd", "32x64", 64): AttentionConfig(64, 16, 8),
        ("fwd", "32x64", 128): AttentionConfig(128, 16, 8),
        ("bwd_single_tile", "32x64", 16): AttentionConfig(16, 16, 4),
        ("bwd_single_tile", "32x64", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x64", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "32x64", 64): AttentionConfig(64, 16, 8),
        ("bwd_dq", "32x64", 128): AttentionConfig(128, 16, 8),
        ("bwd_dkdv", "32x64", 64): AttentionConfig(16, 64, 8),
        ("bwd_dkdv", "32x64", 128): AttentionConfig(16, 128, 8),
        # float32, head_dim to 128
        ("fwd", "32x128", 16): AttentionConfig(16, 16, 4),
        ("fwd", "32x128", 32): AttentionConfig(32, 16, 4),
        ("fwd", "32x128", 64): AttentionConfig(64, 16, 8),
        ("fwd", "32x128", 128): AttentionConfig(128, 16, 8),
        ("bwd_single_tile", "32x128", 16): AttentionConfig(16, 16, 4),
        ("bwd_single_tile", "32x128", 32): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x128", 64): AttentionConfig(32, 32, 4),
        ("bwd_single_tile", "32x128", 128): AttentionConfig(32, 32, 4),
        ("bwd_dq", "32x128", 64): AttentionConfig(64, 16, 8),
        ("bwd_dq", "32x128", 128): AttentionConfig(128, 16, 8),
        ("bwd_dkdv", "32x128", 64): AttentionConfig(16, 64, 8),
        ("bwd_dkdv", "32x128", 128): AttentionConfig(16, 128, 8),
    },
}
