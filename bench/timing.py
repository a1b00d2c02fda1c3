"""How long things take: providers in turns, on the device and on the host, and the machine's own ceilings."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter

import torch

FLUSHED_BYTES = 256 * 2**20
"""Written between rounds: more than any GPU's L2 cache holds."""
CYCLES_PER_S = 2e9
"""Of a GPU, about: how long it is kept busy while the host fills its queue."""
LONGEST_WAIT_S = 0.05
MIN_ROUNDS, MAX_ROUNDS = 5, 50
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "clocks_event_reasons.active")


@dataclass(frozen=True)
class Times:
    """Of one provider, a round each.

    Attributes:
        device_s: seconds from the first kernel's begin to the last one's end, with a queue that is full when it begins
            and a cache that holds nothing of the operands. On a CPU, or not cold: as `wall_s`.
        host_s: seconds until the call returns, with a queue that is empty when it begins.
        wall_s: seconds from then until the device is done.
    """

    device_s: list[float] = field(default_factory=list)
    host_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turns(
    runs: Mapping[str, Callable[[], object]], device: str, seconds: float, cold: bool = True
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time providers in turns, so that what else happens to the machine falls on all of them.

    Args:
        runs: by name; each is called twice before, not timed (once in a dry run).
        device: "cpu" or "cuda".
        seconds: that all rounds together should take about; 0: a dry run of two rounds.
        cold: whether to take the time on the device alone, by itself and with a flushed cache; else that is `wall_s`.

    Returns:
        The times, and the messages of what raised. A provider that raises is left out from there on.
    """
    failures: dict[str, str] = {}

    def attempt(name: str, function: Callable[[], float]) -> float:
        try:
            return function()
        except Exception as error:  # whatever it is, the others go on
            failures[name] = message(error)
            return 0.0

    walls = {}
    for name, run in runs.items():
        for _ in range(2 if seconds else 1):
            walls[name] = attempt(name, partial(_warm_up, run, device))
    walls = {name: wall for name, wall in walls.items() if name not in failures}
    times = {name: Times() for name in walls}
    fewest = MIN_ROUNDS if seconds else 2
    rounds = min(MAX_ROUNDS, max(fewest, int(seconds / ((1 + cold) * sum(walls.values()) + 1e-4))))
    flushed = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device=device) if device == "cuda" and cold else None
    for _ in range(rounds):
        for name, taken in list(times.items()):

            def one_round(run: Callable[[], object] = runs[name], taken: Times = taken) -> float:
                host, wall = _wall(run, device)
                taken.host_s.append(host)
                taken.wall_s.append(wall)
                taken.device_s.append(wall if flushed is None else _device(run, flushed, host))
                return wall

            attempt(name, one_round)
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


def _warm_up(run: Callable[[], object], device: str) -> float:
    return _wall(run, device)[1]


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
    """One line that says what was raised."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a product of two square matrices, as PyTorch computes it."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median(lambda: a @ b, device)


def copy_rate(device: str, size: int) -> float:
    """Bytes per second, read and written, of a copy of `size` bytes on the device."""
    source = torch.ones(size // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median(lambda: target.copy_(source), device)


def _median(run: Callable[[], object], device: str) -> float:
    times, failures = in_turns({"": run}, device, 0.5)
    if failures:
        raise RuntimeError(failures[""])
    return median(times[""].device_s)


def ceilings(device: str, dtype: torch.dtype, tiny: bool) -> dict[str, float]:
    """What this machine reaches now."""
    matrix = matrix_rate(device, dtype, 128 if tiny else 8192)
    copy = copy_rate(device, 2**20 if tiny else 2**30)
    return {"matrix_tflops": matrix / 1e12, "copy_gbps": copy / 1e9}


def nvidia_smi(*fields: str) -> dict[str, str] | None:
    """What the tool says of the first GPU; None without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else None
