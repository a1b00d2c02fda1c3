"""Timing: providers in turns, on the device and on the host, and the machine's own ceilings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter

import torch

FLUSHED_BYTES = 256 * 2**20
"""Bytes written between rounds: more than any GPU's L2 cache holds."""
CYCLES_PER_S = 2e9
"""Clock rate of a GPU, about: it is kept busy for some cycles while the host fills its queue."""
LONGEST_WAIT_S = 0.05
MIN_ROUNDS, MAX_ROUNDS = 4, 50


@dataclass(frozen=True)
class Times:
    """Times of one provider, one entry a round.

    Attributes:
        device_s: seconds from the begin of the first kernel to the end of the last, with a full queue at the begin and
            a cache that holds none of the operands. On a CPU, or where not cold: as `wall_s`.
        host_s: seconds until the call returns, with an empty queue at the begin.
        wall_s: seconds from the same begin until the device is done.
    """

    device_s: list[float] = field(default_factory=list)
    host_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    device: str,
    seconds: float,
    cold: bool = True,
    rounds: int | None = None,
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time providers in turns, so that a disturbance of the machine falls on all of them.

    Args:
        runs: calls by name. Each is called before, not timed: twice on a GPU, once on a CPU and in a dry run. With
            `rounds` none is.
        device: "cpu" or "cuda".
        seconds: about how long all rounds together should take; 0: a dry run of two rounds.
        cold: True to time the device alone with a flushed cache; else `device_s` is `wall_s`.
        rounds: so many rounds, however long they take.

    Returns:
        The times, and the messages of providers that raised. Such a provider is left out from there on.
    """
    failures: dict[str, str] = {}

    def attempt(name: str, function: Callable[[], float]) -> float:
        try:
            return function()
        except Exception as error:  # whatever one provider raises, the others go on
            failures[name] = message(error)
            return 0.0

    def warm_up(run: Callable[[], object]) -> float:
        return _wall(run, device)[1]

    walls = dict.fromkeys(runs, 0.0)
    for name, run in runs.items() if rounds is None else ():
        for _ in range(2 if seconds and device == "cuda" else 1):
            walls[name] = attempt(name, partial(warm_up, run))
    walls = {name: wall for name, wall in walls.items() if name not in failures}
    times = {name: Times() for name in walls}
    if rounds is None:
        fewest = MIN_ROUNDS if seconds else 2
        rounds = min(MAX_ROUNDS, max(fewest, int(seconds / ((1 + cold) * sum(walls.values()) + 1e-4))))
    flushed = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device=device) if device == "cuda" and cold else None

    def one_round(run: Callable[[], object], taken: Times) -> float:
        host, wall = _wall(run, device)
        taken.host_s.append(host)
        taken.wall_s.append(wall)
        taken.device_s.append(wall if flushed is None else _device(run, flushed, host))
        return wall

    for _ in range(rounds):
        for name, taken in list(times.items()):
            attempt(name, partial(one_round, runs[name], taken))
            if name in failures:
                del times[name]
    return times, failures


def _wall(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds until the call returns, and until the device is done."""
    synchronize(device)
    begin = perf_counter()
    run()
    host = perf_counter() - begin
    synchronize(device)
    return host, perf_counter() - begin


def _device(run: Callable[[], object], flushed: torch.Tensor, host_s: float) -> float:
    """Seconds on the device, which waits until the host has launched everything."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flushed.zero_()
    torch.cuda._sleep(int(min(2 * host_s, LONGEST_WAIT_S) * CYCLES_PER_S))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def message(error: BaseException) -> str:
    """Type and text of an error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def ceilings(device: str, tiny: bool) -> dict[str, float]:
    """Rates that PyTorch reaches on this machine now: a matrix product in TFLOP/s, a copy in GB/s.

    The product is of two square matrices (bfloat16 of 8192 rows on a GPU, float32 of 2048 on a CPU); a copy of 1 GiB
    (CPU: 256 MiB) counts the bytes that are read and those that are written.
    """
    dtype, size, nbytes = (torch.float32, 2048, 2**28) if device == "cpu" else (torch.bfloat16, 8192, 2**30)
    if tiny:
        size, nbytes = 128, 2**20
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.ones(nbytes // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    runs = {"matrix": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times, failures = in_turns(runs, device, 0.0 if tiny else 1.0)
    if failures:
        raise RuntimeError("; ".join(failures.values()))
    matrix, copy = (median(times[name].device_s) for name in runs)
    return {"matrix_tflops": 2 * size**3 / matrix / 1e12, "copy_gbps": 2 * nbytes / copy / 1e9}
