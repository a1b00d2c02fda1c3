"""`erniem-fast serve`: a process, its address, its end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import assert_one_line, run
from helpers.paths import ROOT
from helpers.processes import PATIENCE, is_there, wait_until
from safetensors.torch import load_file, save_file

JSON = {"Content-Type": "application/json"}
HEAD = (
    b"POST /embed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--port", "70000"], ["--port '70000'", "at most 65535"]),
        (["--port", "http"], ["--port 'http'"]),
        (["--max-client-batch-size", "0"], ["--max-client-batch-size '0'", "at least 1"]),
        (["--drain-seconds", "-1"], ["--drain-seconds '-1'", "at least 0"]),
        (["--max-wait-ms", "nan"], ["--max-wait-ms 'nan'"]),
        (["--api-key", ""], ["--api-key", "expected at least one character"]),
        (["--dtype", "float7"], ["--dtype 'float7'", "expected one of"]),
        (["--device", "tpu"], ["--device 'tpu'"]),
        (["--host", "no.such.host.invalid", "--port", "0"], ["--host 'no.such.host.invalid'"]),
    ],
)
def test_bad_options(checkpoint: Path, options: list[str], parts: list[str]) -> None:
    assert_one_line(run("serve", "--model", checkpoint, *options), *parts)


def test_a_port_that_is_taken(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_one_line(
            run("serve", "--model", checkpoint, "--port", port), f"--port {port}", "expected a free address"
        )


@pytest.mark.slow
def test_no_such_model(tmp_path: Path) -> None:
    assert_one_line(run("serve", "--model", tmp_path / "none", "--port", 0), "none", "no such folder")


@pytest.mark.slow
def test_a_model_that_can_not_compute(save: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "norm" in name)
    save_file(weights | {name: weights[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    assert_one_line(run("serve", "--model", folder, "--port", 0), f"--model '{folder}'", "finite vectors")


def test_what_is_not_installed_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("erniem_fast.inference.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert_one_line(run("serve", "--model", checkpoint), "fastapi", "pip install 'erniem_fast[serve]'")


@pytest.fixture
def start(checkpoint: Path) -> Iterator[Callable[..., tuple[subprocess.Popen, int]]]:
    """Start a server: its process and its port, or 0 where that is not waited for."""
    processes = []

    def begin(*options: str, ready: bool = True, **environment: str) -> tuple[subprocess.Popen, int]:
        command = [sys.executable, "-m", "erniem_fast.cli.main", "serve", "--model", str(checkpoint), "--port", "0"]
        process = subprocess.Popen(
            [*command, *options], cwd=checkpoint, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip
        processes.append(process)
        assert process.stderr
        if not ready:
            return process, 0
        for line in process.stderr:
            assert "Loading weights" not in line
            if line.startswith("Serving "):
                break
        assert line.startswith(f"Serving {'nickname' if 'nickname' in options else checkpoint} (")
        return process, int(line.rsplit(":", 1)[1])

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def ask(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", content, JSON | headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def send_half(port: int) -> tuple[socket.socket, bytes]:
    """A connection on which half a request was sent, and the other half."""
    content = b'{"inputs": "the last request"}'
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(HEAD % len(content) + content[:10])
    return connection, content[10:]


def model_of(process: subprocess.Popen) -> int | None:
    """Number of the process that computes; None: there is none yet."""
    for child in map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None


def ignores_interrupts(pid: int) -> bool:
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)


with_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")


@pytest.mark.slow
@with_proc
@pytest.mark.parametrize("busy", [False, True])
def test_a_model_that_is_killed_ends_the_server(start: Callable[..., tuple], busy: bool) -> None:
    process, port = start()
    model = model_of(process)
    assert ask(port, "/embed", {"inputs": "a"})[0] == 200
    os.kill(model, signal.SIGSTOP)
    if busy:
        connection, rest = send_half(port)
        connection.sendall(rest)
        assert ask(port, "/tokenize", {"inputs": "a"})[0] == 200  # by now the other is known to be under way
    os.kill(model, signal.SIGKILL)
    assert process.wait(PATIENCE) == 1
    ended = "the process of the model ended with exit code -9"
    lines = [f"A call of the model failed: {ended}"] * busy + [f"Error: {ended}"]
    assert process.stderr.read().splitlines() == lines
    if busy:
        with connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 424")


@pytest.mark.slow
@with_proc
def test_a_model_that_is_killed_while_it_loads(start: Callable[..., tuple]) -> None:
    process, _ = start(ready=False)
    wait_until(lambda: model_of(process))
    os.kill(model_of(process), signal.SIGKILL)
    assert process.wait(PATIENCE) == 1
    said = process.stderr.read()
    assert said.splitlines()[-1] == "Error: the process of the model ended with exit code -9"
    assert "Traceback" not in said


@pytest.mark.slow
@with_proc
def test_a_killed_server_leaves_no_model_behind(start: Callable[..., tuple]) -> None:
    process, _ = start()
    model = model_of(process)
    process.kill()
    wait_until(lambda: not is_there(model))


@pytest.mark.slow
@with_proc
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_loads(start: Callable[..., tuple], number: int, code: int) -> None:
    process, _ = start(ready=False)
    wait_until(lambda: model_of(process) and not ignores_interrupts(process.pid))
    model = model_of(process)
    os.killpg(process.pid, number)
    assert process.wait(PATIENCE) == code
    said = process.stderr.read()
    assert "Traceback" not in said
    assert "Error" not in said
    assert not is_there(model)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_requests_under_way_are_answered_before_the_end(start: Callable[..., tuple], how: str) -> None:
    process, port = start("--served-model-name", "nickname", ERNIEM_FAST_API_KEY="secret")
    key = {"Authorization": "Bearer secret"}
    connection, rest = send_half(port)
    assert ask(port, "/embed", {"inputs": "a"})[0] == 401
    assert ask(port, "/embed", {"inputs": "a"}, **key)[0] == 200  # by now the other is known to be under way
    assert json.loads(ask(port, "/v1/models", **key)[1])["data"][0]["id"] == "nickname"
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:  # which a terminal sends to every process of the group
        os.killpg(process.pid, signal.SIGINT)
    while ask(port, "/health")[0] != 503:
        pass
    assert ask(port, "/embed", {"inputs": "late"}, **key)[0] == 503
    connection.sendall(rest)
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(json.loads(answer.split(b"\r\n\r\n", 1)[1])[0]) == 32
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a second signal", "no time"])
def test_a_request_that_does_not_end_is_given_up(start: Callable[..., tuple], how: str) -> None:
    process, port = start("--drain-seconds", "0" if how == "no time" else "1000")
    connection, _ = send_half(port)
    assert ask(port, "/embed", {"inputs": "a"})[0] == 200
    process.send_signal(signal.SIGTERM)
    if how == "a second signal":
        while ask(port, "/health")[0] != 503:
            pass
        process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 1
    said = process.stderr.read()
    assert "1 requests were not finished" in said
    assert how == "a second signal" or "Traceback" not in said
    assert connection.recv(65536).startswith(b"HTTP/1.1 503")
    connection.close()
