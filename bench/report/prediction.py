"""Times on an H200 that follow from the counted machine code: a prediction, no measurement.

A sub-partition, a quarter of a multiprocessor, is a closed queueing network. The warps that it holds at once go round
between its pipes, its share of the memory, and a wait of LATENCY for each read that needs the one before it. A warp
takes of each pipe the cycles of its whole program, all trips of the loops included. Mean value analysis (Reiser and
Lavenberg, J. ACM 27 (2), 1980) says how many warps finish a cycle; the time is that of all warps at this rate. Nothing
is fitted. Left out: bank conflicts, dependencies between instructions, the L2 cache, launches, programs without work,
and a last round that does not fill the GPU.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bench.engine.shapes import BACKWARD, BASE, BOTH, FORWARD
from bench.engine.work import Work
from bench.ops.activation import activation_work
from bench.ops.embedding import embedding_work
from bench.ops.layer_norm import layer_norm_work
from erniem_fast.kernels.configs import attention_tile

from .counts import PIPES, TOKENS, Count

MULTIPROCESSORS, CLOCK, COPY = 132, 1.755e9, 4.3e12
"""Of an H200: multiprocessors, Hz under load, bytes a second of a copy (read and written)."""
LATENCY = 800
"""Cycles of a read of memory."""
READS = {"attn": 4, "embedding": 2}
"""Reads of a program that wait for each other: tile list, offsets, Q, K and V; ids, rows. Elsewhere 1."""
ATTENTION_OPERANDS = {"attn_fwd": 4, "attn_bwd_single_tile": 7, "attn_bwd_dq": 6, "attn_bwd_dkdv": 6}
"""Tensors of (total_tokens, hidden_size) that a kernel reads or writes, at best."""
ROW_KERNELS = {"add+layer-norm": "layer_norm", "embedding+layer-norm": "embedding", "bias+gelu": "activation"}
ASSUMPTIONS = f"""H200 with {MULTIPROCESSORS} multiprocessors at {CLOCK / 1e9:g} GHz and {COPY / 1e12:g} TB/s in a copy;
{LATENCY} cycles for a read of memory, of which an attention program has {READS["attn"]} that wait for each other. Cycles
of a sub-partition: an instruction issued 1, FP32 1, IMAD 2, ALU 2, MUFU 8, HGMMA 64 x N x 16 N / 2; shared memory 128
bytes a cycle and multiprocessor"""


class Bar(NamedTuple):
    """A number to reach, at most or at least."""

    what: str
    value: float
    bar: float
    least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.least else self.value <= self.bar


class Load(NamedTuple):
    """What a launch asks of the GPU.

    Attributes:
        warps: warps in all.
        resident: warps that a sub-partition holds at once.
        cycles: cycles of all warps by pipe.
        reads: reads of memory that wait for each other.
        ahead: True if a loop reads ahead of what it computes.
    """

    warps: int
    resident: int
    cycles: list[float]
    reads: int
    ahead: bool

    def seconds(self, moved: float) -> float:
        """Time of the launch, which moves so many bytes."""
        partitions = 4 * MULTIPROCESSORS
        memory = moved / COPY * CLOCK * partitions / self.warps
        demands = [cycles / self.warps for cycles in self.cycles] + [0.0 if self.ahead else memory]
        queues, rate = [0.0] * len(demands), 0.0
        for inside in range(1, self.resident + 1):
            stays = [demand * (1 + queue) for demand, queue in zip(demands, queues, strict=True)]
            rate = inside / (LATENCY * self.reads + sum(stays))
            queues = [rate * stay for stay in stays]
        return self.warps * max(1 / rate, memory) / (partitions * CLOCK)


def load_of(parts: Sequence[Count], programs: Iterable[tuple[int, Sequence[int]]]) -> Load:
    """The load of a kernel. programs: (number of programs, trips of each of its loops)."""
    *loops, outside = parts
    cycles, number, ahead = [0.0] * len(PIPES), 0, False
    for some, trips in programs:
        for part, times in [(outside, 1), *zip(loops, trips, strict=True)]:
            more = [some * times * outside.warps * one for one in part.cycles]
            cycles = [sum(pair) for pair in zip(cycles, more, strict=True)]
        number += some
        ahead |= max(trips, default=0) > 1
    reads = READS.get(outside.kernel.partition("_")[0], 1)
    resident = max(1, outside.programs * outside.warps // 4)
    return Load(number * outside.warps, resident, cycles, reads, ahead)


class Model:
    """Predictions from a table of counts: base width, 64 k tokens, bfloat16."""

    def __init__(self, counts: Iterable[Count]) -> None:
        self.kernels: dict[tuple[str, str], list[Count]] = {}
        for one in counts:
            self.kernels.setdefault((one.kernel, one.case), []).append(one)

    def of_rows(self, kernel: str, case: str) -> Load:
        """The load of a kernel on TOKENS rows, by the grid that it is launched with."""
        parts = self.kernels[kernel, case]
        one, size = parts[-1], int(case.split()[0][1:])
        trips = -(-TOKENS * -(-size // one.columns) // (one.grid * one.rows))
        return load_of(parts, [(one.grid, [trips] * (len(parts) - 1))])

    def row_issues(self, kernel: str, case: str) -> float:
        """Instructions of all warps a row."""
        return self.of_rows(kernel, case).cycles[0] / TOKENS

    def rows(self, operation: str, passes: str, dropout: bool, work: Callable[[str], Work]) -> float:
        """Seconds of an operation on rows whose work, of each of the passes, is `work`."""
        if passes == BOTH:
            forward, backward = (self.of_rows(*self._rows(operation, one, dropout)) for one in (FORWARD, BACKWARD))
            moved = work(BACKWARD).bytes
            return forward.seconds(work(BOTH).bytes - moved) + backward.seconds(moved)
        kernel, case = self._rows(operation, passes, dropout)
        unsaved = f"{case} unsaved"
        case = unsaved if passes == FORWARD and (kernel, unsaved) in self.kernels else case
        return self.of_rows(kernel, case).seconds(work(passes).bytes)

    def _rows(self, operation: str, passes: str, dropout: bool) -> tuple[str, str]:
        name, size = ROW_KERNELS[operation], BASE.hidden_size if "layer-norm" in operation else BASE.intermediate_size
        return f"{name}_{'fwd' if passes == FORWARD else 'bwd'}_kernel", f"n{size}" + " dropout" * dropout

    def attention(self, lengths: Sequence[int], passes: str, dropout: bool = False) -> float:
        """Seconds of attention."""
        if passes == BOTH:
            return sum(self.attention(lengths, one, dropout) for one in (FORWARD, BACKWARD))
        tile, listed = attention_tile(max(lengths), sum(lengths), len(lengths))
        case = f"d64 tile {tile}" + " list" * listed + " dropout" * dropout
        start = "attn_fwd" if passes == FORWARD else "attn_bwd"
        found = {
            name: parts for (name, of), parts in self.kernels.items() if of == case and name.startswith(start)
        }  # fmt: skip
        if not found:
            raise KeyError(case)
        single = max((parts[-1].rows for name, parts in found.items() if "single_tile" in name), default=0)
        seconds = 0.0
        for name, parts in found.items():
            one = parts[-1]
            own, step = (one.columns, one.rows) if "dkdv" in name else (one.rows, one.columns)
            programs = []
            for length, number in Counter(lengths).items():
                if (length <= single) == ("single_tile" in name):
                    number *= -(-length // own) * -(-BASE.num_heads // max(1, one.heads))
                    trips = [-(-length // step)] if step else []
                    if len(parts) == 3:  # the second loop is for columns that do not fill a block
                        trips = [length // step, int(length % step > 0)]
                    programs.append((number, trips[: len(parts) - 1]))
            if programs:
                tokens = sum(length for length in lengths if (length <= single) == ("single_tile" in name))
                moved = ATTENTION_OPERANDS[name.removesuffix("_kernel")] * tokens * BASE.hidden_size * 2
                seconds += load_of(parts, programs).seconds(moved)
        return seconds

    def copy_share(self, operation: str, passes: str = FORWARD) -> float:
        """Predicted share of the copy's rate of an operation on rows, without dropout."""
        hidden, inner = BASE.hidden_size, BASE.intermediate_size
        works: dict[str, Callable[[str], Work]] = {
            "add+layer-norm": lambda passes: layer_norm_work(TOKENS, hidden, 2, passes, False),
            "bias+gelu": lambda passes: activation_work(TOKENS, inner, 2, passes),
            "embedding+layer-norm": lambda passes: embedding_work(
                TOKENS, TOKENS, 256, BASE.vocab_size, hidden, 2, passes
            ),
        }
        work = works[operation]
        return work(passes).bytes / COPY / self.rows(operation, passes, False, work)

    def dropout_factor(self, length: int, passes: str) -> float:
        """Predicted time of attention with dropout over the time without."""
        lengths = [length] * (TOKENS // length)
        with_dropout, without = (self.attention(lengths, passes, dropout) for dropout in (True, False))
        return with_dropout / without

    def bars(self) -> list[Bar]:
        return []
