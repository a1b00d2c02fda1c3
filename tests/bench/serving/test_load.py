"""The generator of load: open loop does not wait for answers, closed loop does; every failure is counted."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT

from bench.serving import server
from bench.serving.server import PROGRAM, Answers, Server, row

pytest.importorskip("aiohttp")


class Slow(BaseHTTPRequestHandler):
    """Takes 0.2 s for every text, and fails on "bad"."""

    protocol_version = "HTTP/1.1"
    asked: list[Any]
    under_way: list[int]
    lock = threading.Lock()

    def do_POST(self) -> None:
        found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.asked.append(found)
            self.under_way.append(self.under_way[-1] + 1)
        time.sleep(0.2)
        with self.lock:
            self.under_way.append(self.under_way[-1] - 1)
        self.send_response(429 if found["inputs"] == "bad" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Slow.asked, Slow.under_way = [], [0]
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as slow:
        thread = threading.Thread(target=slow.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{slow.server_address[1]}/embed"
        slow.shutdown()
        thread.join()


@pytest.fixture
def process() -> Iterator[Any]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as one:
        yield one
        one.communicate("\n")


@pytest.mark.slow
def test_open_loop_sends_while_earlier_requests_wait(address: str, process: Any) -> None:
    answers = Server(process, address, ["one", "bad"]).answers(1.0, rate=40.0)
    assert max(Slow.under_way) > 1
    assert 15 < len(answers.latency_s) < 80
    assert [one["inputs"] for one in Slow.asked].count("one") == -(-len(Slow.asked) // 2)
    assert answers.failures == {"429": len(Slow.asked) // 2}
    assert answers.latency_s.min() >= 0.2
    assert answers.late_s.min() >= 0


@pytest.mark.slow
def test_arrivals_are_the_same_every_time(address: str) -> None:
    asked = {"url": address, "texts": ["a"], "seconds": 0.5, "seed": 1, "rate": 20}
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, PROGRAM], input=json.dumps(asked), capture_output=True, text=True, check=True
        )
        found.append(sorted(one[0] for one in json.loads(done.stdout)["requests"]))
    assert found[0] == found[1]
    gaps = [two - one for one, two in zip(found[0], found[0][1:], strict=False)]
    assert max(gaps) > 2 * min(gaps), "arrivals of a Poisson process are not evenly spaced"


@pytest.mark.slow
def test_closed_loop_has_so_many_requests_under_way(address: str, process: Any) -> None:
    answers = Server(process, address, ["one"]).answers(0.5, clients=3)
    assert max(Slow.under_way) == 3
    assert 3 <= len(answers.latency_s) <= 9
    assert answers.failures == {}
    assert answers.answered_per_s == len(answers.latency_s) / answers.seconds


def test_a_server_that_is_gone_is_a_failure_of_every_request(process: Any) -> None:
    answers = Server(process, "http://127.0.0.1:9/embed", ["one"]).answers(0.3, rate=30.0)
    assert answers.failures == {"ClientConnectorError": len(answers.latency_s)}
    assert answers.answered_per_s == 0


def test_figures_of_a_load() -> None:
    import numpy as np

    latency = np.arange(1, 102) / 100
    found = row(Answers(latency, latency / 10, {"429": 1}, 2.0, 0.5, None), 50.0)
    assert (found["time_s"], found["p90_s"], found["p99_s"], found["max_s"]) == pytest.approx((0.51, 0.91, 1.0, 1.01))
    assert (found["requests"], found["failed"], found["answered_per_s"]) == (101, 1, 50.0)
    assert found["late_p99_s"] == pytest.approx(0.1)


def test_the_programs_of_other_processes_import_nothing_of_this_project() -> None:
    for name in ("load.py", "peer.py"):
        text = (ROOT / "bench" / "serving" / name).read_text("utf-8")
        assert "bench." not in text.replace("bench.run", "")
        assert "erniem_fast" not in text
    assert Path(PROGRAM).exists()


def test_a_latency_counts_from_when_a_request_was_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Any
) -> None:
    told = {"requests": [[0.0, 0.5, 1.0, 200], [1.0, 1.0, 1.5, "TimeoutError"]], "seconds": 2.0, "cpu_seconds": 0.5}
    (tmp_path / "load.py").write_text(f"print({json.dumps(told)!r})", encoding="utf-8")
    monkeypatch.setattr(server, "PROGRAM", tmp_path / "load.py")
    answers = Server(process, "", []).answers(2.0, rate=1.0)
    assert (answers.latency_s.tolist(), answers.late_s.tolist()) == ([1.0, 0.5], [0.5, 0.0])
    assert (answers.failures, answers.answered_per_s, answers.generator_cores) == ({"TimeoutError": 1}, 0.5, 0.25)
