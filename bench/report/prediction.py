"""Times on an H200 that follow from the counted machine code: predictions, no measurements.

A sub-partition, a quarter of a multiprocessor, is a closed queueing network. The warps that it holds at once go round
between its pipes, its share of the memory, and a wait of LATENCY for each read that needs the one before it; where a
loop reads ahead, the memory works beside the network. A warp takes of each pipe the cycles of its whole program. Mean
value analysis (Reiser and Lavenberg, J. ACM 27 (2), 1980) says how many warps finish in a cycle; nothing is fitted.
Left out: bank conflicts, dependencies between instructions, L2, launches, programs without work, and a last round that
does not fill the GPU.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from bench.engine.shapes import BACKWARD, BASE, BOTH, FORWARD, lengths_of
from bench.engine.work import Work
from bench.ops.activation import activation_work
from bench.ops.embedding import embedding_work
from bench.ops.layer_norm import layer_norm_work
from erniem_fast.kernels.configs import attention_tile

from .counts import PIPES, TOKENS, Count

ITEMSIZE = 2
MULTIPROCESSORS, CLOCK, COPY, MATRIX = 132, 1.755e9, 4.3e12, 790e12
"""Of an H200: multiprocessors, Hz under load, and what PyTorch reaches in a copy (bytes a second, read and written) and
in a matrix product (FLOPs a second)."""
LATENCY = 800
"""Cycles of a read of memory."""
READS = {"attn": 3, "embedding": 2}
"""Reads of a program that wait for each other: tile list or offsets, Q, K and V; ids, rows. Elsewhere 1."""
ATTENTION_OPERANDS = {"attn_fwd": 4, "attn_bwd_single_tile": 7, "attn_bwd_dq": 6, "attn_bwd_dkdv": 6}
"""Tensors of (total_tokens, hidden_size) that a kernel reads or writes."""


class Rows(NamedTuple):
    """An operation on rows: start of its kernels' names, columns, and its least work by passes and dropout."""

    kernels: str
    size: int
    work: Callable[[str, bool], Work]


_HIDDEN, _INNER = BASE.hidden_size, BASE.intermediate_size
_TABLES = (max(lengths_of("pairs")), BASE.vocab_size)
ROWS = {
    "add+layer-norm": Rows("layer_norm", _HIDDEN, lambda *by: layer_norm_work(TOKENS, _HIDDEN, ITEMSIZE, *by)),
    "bias+gelu": Rows("activation", _INNER, lambda passes, _: activation_work(TOKENS, _INNER, ITEMSIZE, passes)),
    "embedding+layer-norm": Rows(
        "embedding", _HIDDEN, lambda passes, _: embedding_work(TOKENS, TOKENS, *_TABLES, _HIDDEN, ITEMSIZE, passes)
    ),
}


class Bar(NamedTuple):
    """A number to reach, at most or at least."""

    what: str
    value: float
    bar: float
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.least else self.value <= self.bar


def seconds_of(parts: Sequence[Count], programs: Iterable[tuple[int, Sequence[int]]], moved: float) -> float:
    """Time of a launch.

    Args:
        parts: counts of the kernel.
        programs: (number of programs, trips of each of the kernel's loops).
        moved: bytes across memory.
    """
    *loops, outside = parts
    cycles, number, ahead, partitions = [0] * len(PIPES), 0, False, 4 * MULTIPROCESSORS
    for some, trips in programs:
        for part, times in [(outside, 1), *zip(loops, trips, strict=True)]:
            cycles = [total + some * times * part[pipe] for total, pipe in zip(cycles, PIPES, strict=True)]
        number, ahead = number + some, ahead or max(trips, default=0) > 1
    memory = moved / COPY * CLOCK * partitions / (number * outside["warps"])
    demands = [of_pipe / number for of_pipe in cycles] + [0.0 if ahead else memory]
    wait = LATENCY * READS.get(outside.kernel.partition("_")[0], 1)
    queues, a_warp = [0.0] * len(demands), 0.0
    for inside in range(1, max(1, outside["programs"] * outside["warps"] // 4) + 1):
        stays = [demand * (1 + queue) for demand, queue in zip(demands, queues, strict=True)]
        a_warp = (wait + sum(stays)) / inside
        queues = [stay / a_warp for stay in stays]
    return number * outside["warps"] * max(a_warp, memory) / (partitions * CLOCK)


def attention_programs(parts: Sequence[Count], lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(number of programs, trips of each of their loops) of an attention kernel, for each length."""
    *loops, one = parts
    own, step = (one[name] for name in (("columns", "rows") if "dkdv" in one.kernel else ("rows", "columns")))
    for length, number in Counter(lengths).items():
        trips = [math.ceil(length / step) for _ in loops]
        if len(loops) == 2:  # the second is for columns that do not fill a block
            trips = [length // step, int(length % step > 0)]
        yield number * math.ceil(length / own) * math.ceil(BASE.num_heads / one["heads"]), trips


class Model:
    """Predictions from a table of counts: base width, 64 k tokens, bfloat16."""

    def __init__(self, counts: Iterable[Count]) -> None:
        self.kernels: dict[tuple[str, str], list[Count]] = {}
        for one in counts:
            self.kernels.setdefault((one.kernel.removesuffix("_kernel"), one.case), []).append(one)

    def rows(self, operation: str, passes: str = FORWARD, dropout: bool = False) -> float:
        """Seconds of an operation on TOKENS rows; forward alone keeps nothing for backward."""
        kernels, size, work = ROWS[operation]
        moved, seconds = {BACKWARD: work(BACKWARD, dropout).bytes}, 0.0
        moved[FORWARD] = work(passes, dropout).bytes - moved[BACKWARD] * (passes == BOTH)
        for one in (FORWARD, BACKWARD) if passes == BOTH else (passes,):
            kernel, case = f"{kernels}_{'fwd' if one == FORWARD else 'bwd'}", f"n{size}" + " dropout" * dropout
            unsaved = f"{case} unsaved" if passes == FORWARD else case
            *loops, outside = self.kernels.get((kernel, unsaved)) or self.kernels[kernel, case]
            at_once = outside["grid"] * outside["rows"] / math.ceil(size / outside["columns"])
            programs = [(outside["grid"], [math.ceil(TOKENS / at_once)] * len(loops))]
            seconds += seconds_of([*loops, outside], programs, moved[one])
        return seconds

    def attention(self, lengths: Sequence[int], passes: str, dropout: bool = False) -> float:
        """Seconds of attention."""
        if passes == BOTH:
            return sum(self.attention(lengths, one, dropout) for one in (FORWARD, BACKWARD))
        tile, listed = attention_tile(max(lengths), sum(lengths), len(lengths))
        case = f"d64 tile {tile}" + " list" * listed + " dropout" * dropout
        start = "attn_fwd" if passes == FORWARD else "attn_bwd"
        found = {name: parts for (name, of), parts in self.kernels.items() if of == case and name.startswith(start)}
        single = max((parts[-1]["rows"] for name, parts in found.items() if "single_tile" in name), default=0)
        seconds = 0.0
        for name, parts in found.items():
            own = [length for length in lengths if (length <= single) == ("single_tile" in name)]
            moved = ATTENTION_OPERANDS[name] * sum(own) * BASE.hidden_size * ITEMSIZE
            seconds += seconds_of(parts, attention_programs(parts, own), moved) if own else 0.0
        return seconds

    def mlp(self, passes: str, flops: int) -> float:
        """Seconds of the feed-forward block, GELU in a pass of its own."""
        return flops / MATRIX + self.rows("bias+gelu", passes)

    def encoder(self, lengths: Sequence[int], products: int) -> float:
        """Seconds of base's forward pass, whose linear layers take so many FLOPs."""
        layer = self.attention(lengths, FORWARD) + 2 * self.rows("add+layer-norm") + self.rows("bias+gelu")
        return products / MATRIX + BASE.num_layers * layer + self.rows("embedding+layer-norm")

    def dropout_factor(self, length: int, passes: str) -> float:
        """Time of attention with dropout over the time without."""
        with_dropout, without = (
            self.attention([length] * (TOKENS // length), passes, dropout) for dropout in (True, False)
        )
        return with_dropout / without

    def issues(self, kernel: str, size: int, elements: int) -> float:
        """Instructions of a thread for some elements of rows of `size` columns, in the loop if there is one."""
        part = self.kernels[kernel, f"n{size}"][0]
        return part["issue"] * elements * 32 * part["warps"] / (part["rows"] * min(part["columns"], size))

    def l2(self) -> Iterator[tuple[str, float, float]]:
        """(what, bytes, seconds): operands that programs ask of L2 over and over, and the time that L2 has for them."""
        inner, hidden = BASE.intermediate_size, BASE.hidden_size
        tile = self.kernels["linear_fwd", f"n{inner} gelu"][-1]
        for rows, columns in {(tile["rows"], tile["columns"]), (128, 256)}:
            asked = TOKENS / rows * inner / columns * (rows + columns) * hidden * ITEMSIZE
            yield f"linear1, tiles {rows} x {columns}", asked, 2 * TOKENS * hidden * inner / MATRIX
        for own in {self.kernels["attn_bwd_dkdv", "d64 tile 128 list"][-1]["columns"], 128}:
            asked = TOKENS * 512 / own * 2 * hidden * ITEMSIZE  # Q and dO for each block of columns
            yield f"attention backward, 512, {own} columns a program", asked, self.attention([512] * 128, BACKWARD)

    def bars(self) -> Iterator[Bar]:
        """Numbers to reach."""
        long, inner = "d64 tile 128 list", BASE.intermediate_size
        forward, dropped = (self.kernels["attn_fwd", long + end][0] for end in ("", " dropout"))
        columns = self.kernels["attn_bwd_dkdv", f"{long} dropout"][0]
        single = self.kernels["attn_bwd_single_tile", "d64 tile 64 list dropout"][-1]
        linear = self.kernels["linear_fwd", f"n{inner} gelu"][-1]
        yield Bar("attention forward, 128 rows: instructions a trip", forward["issue"], 300)
        yield Bar("attention forward, 128 rows, dropout: instructions a trip", dropped["issue"], 505)
        yield Bar("attention forward, 128 rows, dropout: programs", dropped["programs"], 2, True)
        yield Bar("attention backward, columns, dropout: instructions a trip", columns["issue"], 410)
        yield Bar("attention backward, columns, dropout: programs", columns["programs"], 3, True)
        yield Bar("attention backward, single tile, dropout: programs", single["programs"], 3, True)
        yield Bar("the same: instructions", single["issue"], 1450 if single["programs"] > 3 else 1415)
        yield Bar("linear1 and GELU: registers", linear["registers"], 104)
        yield Bar("linear1 and GELU: programs", linear["programs"], 2, True)
        yield Bar("GELU forward: instructions for 16 elements", self.issues("activation_fwd", inner, 16), 275)
        yield Bar("GELU backward: instructions for 16 elements", self.issues("activation_bwd", inner, 16), 460)
        yield Bar("add+layer-norm forward: instructions a row", self.issues("layer_norm_fwd", _HIDDEN, 24), 560)
        yield Bar("embedding forward: instructions a row", self.issues("embedding_fwd", _HIDDEN, 24), 420)
        for name, rows in ROWS.items():
            share = rows.work(FORWARD, False).bytes / COPY / self.rows(name)
            yield Bar(f"{name} forward: predicted share of copy rate", share, 0.9, True)
        for length, passes, most in ((512, FORWARD, 1.4), (128, BACKWARD, 1.25)):
            yield Bar(
                f"attention {passes}, {length}: predicted dropout factor", self.dropout_factor(length, passes), most
            )
