"""Ends of a command: by signals, and where stderr or stdout cannot be written."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.command_line import TEXTS, run_embed
from helpers.paths import ROOT
from helpers.processes import PATIENCE

from erniem_fast.cli import job
from erniem_fast.cli.main import app

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Unwritable(io.TextIOBase):
    """A stream whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


class UnwritableOnFlush(io.TextIOBase):
    """A stream that buffers what it is given, and has no room for it."""

    def write(self, text):
        return len(text)

    def flush(self):
        raise OSError(28, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Unwritable, UnwritableOnFlush, closed, lambda: None])
def test_vectors_are_written_whatever_stderr_is(checkpoint, texts, tmp_path, monkeypatch, stream):
    out = tmp_path / "v.npy"
    arguments = ["embed", str(texts), "--model", str(checkpoint), "--out", str(out)]
    monkeypatch.setattr(sys, "stderr", stream())
    with pytest.raises(SystemExit) as end:
        app(arguments)
    assert end.value.code == 0
    assert np.load(out).shape == (len(TEXTS), 32)
    with pytest.raises(SystemExit) as end:
        app([*arguments, "--dtype", "int4"])
    assert end.value.code == 2


def test_a_reader_that_leaves_ends_the_report(checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Unwritable())
    with pytest.raises(SystemExit) as end:
        app(["verify", "--model", str(checkpoint)])
    assert end.value.code == 1


def test_a_full_disk_behind_the_report_is_one_line(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", UnwritableOnFlush())
    with pytest.raises(SystemExit) as end:
        app(["verify", "--model", str(checkpoint)])
    assert end.value.code == 1
    assert capsys.readouterr().err == "Error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_nothing_behind(checkpoint, texts, tmp_path, monkeypatch, number):
    # Whatever this process was started with, nohup and test runners among them.
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)

    def interrupted(*args, **kwargs):
        assert len(list(tmp_path.iterdir())) == 2  # the texts and the folder of what is unfinished
        signal.raise_signal(number)
        raise AssertionError("the signal did not end the work")

    monkeypatch.setattr(job, "stream", interrupted)
    try:
        result = run_embed(texts, checkpoint, tmp_path / "v.npy")
        assert signal.getsignal(number) is default
    finally:
        signal.signal(number, before)
    assert result.exit_code == 128 + number
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


def test_an_ignored_signal_stays_ignored(checkpoint, texts, tmp_path, monkeypatch):
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stream = job.stream
        monkeypatch.setattr(job, "stream", lambda *args, **kwargs: signal.raise_signal(1) or stream(*args, **kwargs))
        assert run_embed(texts, checkpoint, tmp_path / "v.npy").exit_code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def command(*arguments):
    code = "from erniem_fast.cli.main import app; app()"
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.mark.slow
def test_in_a_process_of_its_own(checkpoint, texts, tmp_path):
    arguments = command("embed", "-", "--model", checkpoint, "--out", "-")
    done = subprocess.run(arguments, cwd=ROOT, input=texts.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.load(io.BytesIO(done.stdout)).shape == (len(TEXTS), 32)
    assert b"Warning" not in done.stderr


@pytest.mark.slow
def test_an_error_in_a_process_of_its_own(checkpoint, texts, tmp_path):
    out = tmp_path / "v.npy"
    texts.write_bytes(b"ok\n\xff\n")
    arguments = command("embed", texts, "--model", checkpoint, "--out", out)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    # torchao, where it is installed, has its own to say when transformers imports it.
    (line,) = [line for line in done.stderr.splitlines() if "torchao" not in line and "_pytree.py" not in line]
    assert "line 2" in line
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "2>/dev/full", "2>&1 | exec true"])
def test_a_process_whose_stderr_cannot_be_written(checkpoint, texts, tmp_path, redirection):
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    out = tmp_path / "v.npy"
    script = f'set -o pipefail; "$@" {redirection}'
    arguments = command("embed", texts, "--model", checkpoint, "--out", out)
    done = subprocess.run(["bash", "-c", script, "bash", *arguments], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert np.load(out).shape == (len(TEXTS), 32)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"a text\n"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_process(checkpoint, texts, tmp_path, number, sent):
    """While it waits for texts from a pipe that stays open: for the first one, or for more, in another thread."""
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        command("embed", "-", "--model", checkpoint, "--out", folder / "v.npy"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    errors = b""
    try:
        process.stdin.write(sent)
        process.stdin.flush()
        while not list(folder.iterdir()):
            assert process.poll() is None
            time.sleep(0.05)
        while sent and b"Encoding" not in errors:
            errors += os.read(process.stderr.fileno(), 1000)
        process.send_signal(number)
        process.wait(PATIENCE)
        errors += process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert b"Traceback" not in errors
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert list(folder.iterdir()) == []
        return
    assert process.returncode == -number
    assert len(list(folder.iterdir())) == 1
    assert run_embed(texts, checkpoint, folder / "v.npy").exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["v.npy"]
