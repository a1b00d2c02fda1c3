"""The tables of launch configurations: a row for every batch, and rows that the kernels can take."""

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from erniem_fast.kernels import configs, tables

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", tables.ATTENTION)
def test_every_batch_has_rows_whose_blocks_fit_its_tile(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "architecture", lambda _: architecture)
    lengths = (1, 16, 17, 32, 33, 64, 65, 128, 200, 512)
    forced = (0, configs.INVARIANT_TILE)
    dtypes = (torch.float32, torch.bfloat16)
    for longest, mean, block_m, *operands in product(lengths, (20, 400), forced, dtypes, (16, 64, 128), (False, True)):
        tile, listed = configs.attention_tile(longest, 10 * mean, 10, block_m)

        def config(kernel: str) -> configs.AttentionConfig:
            return configs.attention_config(kernel, CPU, tile, *operands)  # noqa: B023

        forward, single = config("fwd"), config("bwd_single_tile")
        assert tile % forward.block_m == 0
        assert single.block_m == single.block_n <= tile
        assert not listed or forward.heads_per_tile == single.heads_per_tile == 1
        if listed or longest > single.block_m:
            rows, columns = config("bwd_dq"), config("bwd_dkdv")
            assert tile % rows.block_m == tile % columns.block_n == 0
            assert single.heads_per_tile == rows.heads_per_tile == columns.heads_per_tile == 1


@pytest.mark.parametrize(
    ("name", "tabulated"),
    [("sm_86", "sm_80"), ("sm_89", "sm_80"), ("sm_103", "sm_100"), ("sm_121", "sm_120"), ("gfx90a", "gfx942")],
)
def test_other_gpus_take_the_rows_of_their_family(name: str, tabulated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(architecture: str) -> list[object]:
        monkeypatch.setattr(configs, "architecture", lambda _: architecture)
        return [
            configs.attention_config("fwd", CPU, 128, torch.bfloat16, 128, False),
            configs.attention_config("bwd_dkdv", CPU, 64, torch.float32, 64, True),
            configs.linear_config(CPU, torch.bfloat16, False),
        ]

    assert rows(name) == rows(tabulated)


def test_dropout_has_rows_of_its_own_where_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [(name, *key) for name, table in tables.ATTENTION.items() for key in table if len(key) == 4]
    assert own
    for name, kernel, operands, tile, _ in own:
        monkeypatch.setattr(configs, "architecture", lambda _, name=name: name)
        dtype = torch.float32 if operands.startswith("32") else torch.bfloat16
        head_block = int(operands.partition("x")[2])
        without, dropped = (
            configs.attention_config(kernel, CPU, tile, dtype, head_block, dropout) for dropout in (False, True)
        )
        assert without == tables.ATTENTION[name][kernel, operands, tile]
        assert dropped == tables.ATTENTION[name][kernel, operands, tile, "dropout"] != without


@pytest.mark.parametrize(
    ("longest", "mean", "expected"),
    [
        (1, 1, (16, False)), (16, 9, (16, False)), (17, 9, (32, False)), (33, 9, (64, False)), (64, 64, (64, False)),
        (65, 65, (64, True)), (128, 128, (64, True)), (500, 191, (64, True)), (500, 192, (128, True)),
    ],
)  # fmt: skip
def test_the_tile_follows_the_lengths(longest: int, mean: int, expected: tuple[int, bool]) -> None:
    assert configs.attention_tile(longest, 10 * mean, 10) == expected
    assert configs.attention_tile(longest, 10 * mean, 10, 32) == (32, True)
