"""`erniem-fast serve` under load, one text a request: by closed loop, then by open loop at shares of its capacity.

Server and generator are two processes and share the cores of the machine.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.engine.environment import ROOT
from bench.engine.registry import Benchmark, Case
from bench.engine.results import Measured

from .setup import needs_package
from .texts import TINY_SHAPE, TextInputs, ernie_m, needs_own_dtype, texts_shape

PROGRAM = Path(__file__).with_name("load.py")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
CLIENTS = (32, 128)
"""Clients that ask at once."""
OVERLOAD = 1.2
"""Requests of the open loop that finds the capacity, by what the better number of clients gets answered. Those that
come whether or not earlier ones were answered cost a server more: what it then answers is its capacity."""
LEVELS = {0.1: 20.0, 0.5: 15.0, 0.8: 60.0, 1.0: 15.0}
"""Seconds of open loop by share of the capacity."""
CAPACITY_SECONDS, TINY_SECONDS, START_SECONDS = 8.0, 1.0, 120.0
SEED = 13
NEEDED = ("aiohttp", "fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class Answers:
    """What the generator tells.

    Attributes:
        latency_s: (requests,) seconds from when each was due to its answer, failed ones included.
        late_s: (requests,) seconds from when each was due until it was sent.
        failures: number of requests by status, those with status 200 left out.
        seconds: until the last answer.
        generator_cores: processor seconds of the generator a second.
        server_cores: those of the server.
    """

    latency_s: np.ndarray
    late_s: np.ndarray
    failures: dict[str, int]
    seconds: float
    generator_cores: float
    server_cores: float | None

    @property
    def answered_per_s(self) -> float:
        return (len(self.latency_s) - sum(self.failures.values())) / self.seconds


class Server:
    """A server that is ready.

    Args:
        process: of the server.
        url: of the route that embeds.
        texts: one a request, in turn.
    """

    def __init__(self, process: "subprocess.Popen[str]", url: str, texts: Sequence[str]) -> None:
        self.process, self.url, self.texts = process, url, list(texts)

    def answers(self, seconds: float, **kind: float) -> Answers:
        """Answers to `clients=` of closed loop, or to `rate=` requests a second of open loop."""
        asked = {"url": self.url, "texts": self.texts, "seconds": seconds, "seed": SEED, **kind}
        before = self._cpu_seconds()
        done = subprocess.run(
            [sys.executable, PROGRAM], input=json.dumps(asked), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{PROGRAM.name} ended: {done.stderr.strip()[-300:]}")
        after, found = self._cpu_seconds(), json.loads(done.stdout)
        if not found["requests"]:
            raise RuntimeError(f"no request in {seconds:g} s: {kind}")
        due, sent, end = np.array([times for *times, _ in found["requests"]]).T
        statuses = Counter(str(status) for *_, status in found["requests"])
        del statuses["200"]
        cores = None if before is None or after is None else (after - before) / found["seconds"]
        took = found["seconds"]
        return Answers(end - due, sent - due, dict(statuses), took, found["cpu_seconds"] / took, cores)

    def _cpu_seconds(self) -> float | None:
        """Processor seconds of the server so far, that of its model's process included; None outside Linux."""
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8")
            return sum(map(_cpu_seconds, [self.process.pid, *map(int, children.split())]))
        except OSError:
            return None


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


@contextmanager
def serving(folder: Path, dtype: str, texts: Sequence[str]) -> Iterator[Server]:
    """Start a server on a free port of 127.0.0.1; it ends with the block.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    command = [sys.executable, "-m", "erniem_fast.cli.main", "serve", "--model", str(folder)]
    command += ["--port", "0", "--dtype", dtype, "--device", "cpu"]
    variables = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as messages:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=messages, text=True)
        try:
            end = monotonic() + START_SECONDS
            while (found := ADDRESS.search(_text(messages))) is None:
                if process.poll() is not None or monotonic() > end:
                    raise RuntimeError(f"the server is not ready: {_text(messages).strip()[-300:]}")
                sleep(0.2)
            yield Server(process, f"{found[0]}/embed", texts)
        finally:
            process.terminate()
            process.wait()


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def measure(case: Case) -> Measured:
    """Rows of closed loop, then of open loop at each share of the capacity."""
    about = {"case": case.name, "provider": "all"}
    for needs in (needs_own_dtype, *map(needs_package, NEEDED)):
        if reason := needs(case.shape, case.setting):
            return Measured(skipped=[about | {"reason": reason}])
    inputs = TextInputs(ernie_m, case.shape, case.setting)
    rows: list[dict[str, Any]] = []

    def add(provider: str, answers: Answers, rate: float) -> None:
        rows.append({"case": case.name, "provider": provider, **case.fields, **inputs.facts} | row(answers, rate))

    longest = TINY_SECONDS if case.setting.tiny else math.inf
    with serving(inputs.folder, case.setting.dtype_name, inputs.texts) as server:
        seconds, best = min(CAPACITY_SECONDS, longest), 0.0
        server.answers(seconds / 2, clients=CLIENTS[0])  # warms up
        for number in CLIENTS:
            answers = server.answers(seconds, clients=number)
            add(f"{number} clients", answers, answers.answered_per_s)
            best = max(best, answers.answered_per_s)
        answers = server.answers(seconds, rate=OVERLOAD * best)
        add("overload", answers, OVERLOAD * best)
        capacity = answers.answered_per_s
        for share, seconds in tqdm(LEVELS.items(), desc="open loop", leave=False):
            rate = share * capacity
            add(level(share), server.answers(min(seconds, longest), rate=rate), rate)
    base = next(one["time_s"] for one in rows if one["provider"] == level(min(LEVELS)))
    return Measured(rows=[one | {"ratio": one["p99_s"] / base} for one in rows])


def level(share: float) -> str:
    """Name of a level of open loop."""
    return f"{share:.0%} of capacity"


def row(answers: Answers, rate: float) -> dict[str, Any]:
    """Figures of one load."""
    latency = answers.latency_s
    low, p90, p99 = (float(np.percentile(latency, percent)) for percent in (10, 90, 99))
    return {
        "rate_per_s": rate, "answered_per_s": answers.answered_per_s, "requests": len(latency),
        "failed": sum(answers.failures.values()), "failures": answers.failures, "seconds": answers.seconds,
        "time_s": float(median(latency)),
        "min_s": float(latency.min()), "p10_s": low, "p90_s": p90, "p99_s": p99, "max_s": float(latency.max()),
        "host_s": float(median(answers.late_s)), "late_p99_s": float(np.percentile(answers.late_s, 99)),
        "generator_cores": answers.generator_cores, "server_cores": answers.server_cores,
    }  # fmt: skip


SERVER = Benchmark(
    "server", partial(TextInputs, ernie_m),
    (texts_shape(5_000, bfloat16=2, float32=2),), (TINY_SHAPE,), measure=measure,
)  # fmt: skip
