"""Commands that stop, for whatever reason, and go on: the same bytes as without a stop."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import TEXTS, assert_one_line, run_embed
from helpers.killed_commands import Commands
from helpers.limits import room_for
from helpers.processes import wait_until

from erniem_fast.cli import job
from erniem_fast.files import output
from erniem_fast.inference import engine, runner

KILLS = 20


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """300 texts."""
    return write_texts(tmp_path / "texts.jsonl", 300)


def write_texts(path: Path, count: int) -> Path:
    draw = random.Random()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(draw.choices(TEXTS, k=draw.randrange(1, 4)))
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    return path


@pytest.fixture
def at_window(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Have something done when so many windows have been computed; every window is kept at once."""
    monkeypatch.setattr(output, "SECONDS_UNKEPT", 0)
    stream = job.stream

    def set_up(count: int, action: Callable[[], object]) -> None:
        def watched(*arguments: Any) -> Iterator[Any]:
            for number, results in enumerate(stream(*arguments)):
                if number == count:
                    action()
                yield results

        monkeypatch.setattr(job, "stream", watched)

    return set_up


def interrupt() -> None:
    raise KeyboardInterrupt


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ending", [".npy", pytest.param(".parquet", marks=pytest.mark.slow)])
def test_a_run_that_stops_twice_gives_the_same_bytes(
    checkpoint: Path, many: Path, tmp_path: Path, at_window: Any, ending: str
) -> None:
    """Though what else is in a batch changes the last bits, and a stream begins with small batches."""
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"v{ending}"
    result = run_embed(many, checkpoint, whole, "--batch-tokens", 100)
    assert result.exit_code == 0, result.stderr
    (cut,) = [line for line in result.stderr.splitlines() if "were cut" in line]
    for windows in (1, 3):
        at_window(windows, interrupt)
        result = run_embed(many, checkpoint, out, "--batch-tokens", 100)
        assert result.exit_code == 130
        line = result.stderr.splitlines()[-1]
        assert line.startswith("Stopped: ")
        assert line.endswith(f"records are kept in {out}.partial; the same command goes on behind them")
        assert names(tmp_path) == {many.name, whole.name, f"{out.name}.partial"}
    at_window(-1, interrupt)
    result = run_embed(many, checkpoint, out, "--batch-tokens", 100)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("Going on behind the ")
    assert cut in result.stderr.splitlines()
    assert out.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == {many.name, whole.name, out.name}


def test_what_was_left_to_the_first_run_stays(
    checkpoint: Path, many: Path, tmp_path: Path, at_window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory, and the machine, may be others in the next run."""
    monkeypatch.setattr(engine, "auto_dtype", lambda place: engine.torch.bfloat16)
    monkeypatch.setattr(runner, "budget", lambda encoder: 100)
    at_window(1, interrupt)
    assert run_embed(many, checkpoint, tmp_path / "v.npy", "--dtype", "auto").exit_code == 130
    manifest = json.loads((tmp_path / "v.npy.partial" / "manifest.json").read_text())
    assert manifest["settings"] == {"dtype": "bfloat16", "device": "cpu", "batch_tokens": 100, "records": 300}
    monkeypatch.setattr(engine, "auto_dtype", lambda place: engine.torch.float32)
    monkeypatch.setattr(runner, "budget", lambda encoder: 5000)
    seen = []
    monkeypatch.setattr(
        job, "stream", lambda lane, items, batch_tokens, begin: seen.append((batch_tokens, begin)) or []
    )
    run_embed(many, checkpoint, tmp_path / "v.npy", "--dtype", "auto")
    assert seen == [(100, 1)]


def test_other_commands_do_not_go_on(checkpoint: Path, save: Any, many: Path, tmp_path: Path, at_window: Any) -> None:
    out, model = tmp_path / "v.npy", save(tmp_path / "model")
    at_window(1, interrupt)
    assert run_embed(many, model, out, "--batch-tokens", 100).exit_code == 130
    at_window(-1, interrupt)
    partial = {path: path.read_bytes() for path in (tmp_path / "v.npy.partial").iterdir()}
    other = write_texts(tmp_path / "other.jsonl", 300)
    for source, folder, options, part in (
        (many, model, ["--pooling", "cls"], "--pooling was None, is 'cls'"),
        (many, model, ["--batch-tokens", "200"], "--batch-tokens was 100, is 200"),
        (many, model, ["--dtype", "bfloat16"], "--dtype was 'float32', is 'bfloat16'"),
        (other, model, [], "(INPUT was '"),
        (many, checkpoint, [], "--model was '"),
    ):
        result = run_embed(source, folder, out, "--batch-tokens", 100, *options)
        assert_one_line(result, "--out", f"{out}.partial", part, "--restart")
    save(model)  # other weights under the same name
    assert_one_line(run_embed(many, model, out, "--batch-tokens", 100), "the model's files was '")
    assert {path: path.read_bytes() for path in (tmp_path / "v.npy.partial").iterdir()} == partial
    result = run_embed(other, checkpoint, out, "--restart")
    assert result.exit_code == 0, result.stderr
    assert names(tmp_path) == {many.name, other.name, "model", out.name}


def test_an_input_that_changes_is_one_line_and_nothing_is_put_in_place(
    checkpoint: Path, many: Path, tmp_path: Path, at_window: Any
) -> None:
    at_window(2, lambda: many.write_bytes(many.read_bytes() + b'{"text": "more"}\n'))
    result = run_embed(many, checkpoint, tmp_path / "v.npy", "--batch-tokens", 100)
    assert result.exit_code == 2
    assert "changed while it was read, so nothing was put in place" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "v.npy").exists()


def test_a_full_disk_is_one_line_and_what_fits_is_kept(
    checkpoint: Path, many: Path, tmp_path: Path, at_window: Any
) -> None:
    whole, out = tmp_path / "whole.npy", tmp_path / "v.npy"
    assert run_embed(many, checkpoint, whole, "--batch-tokens", 100).exit_code == 0
    at_window(-1, interrupt)
    with room_for(20_000):
        result = run_embed(many, checkpoint, out, "--batch-tokens", 100)
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"Error: --out '{out}': File too large; expected room for the results; ")
    assert line.endswith(f" records are kept in {out}.partial")
    result = run_embed(many, checkpoint, out, "--batch-tokens", 100)
    assert result.exit_code == 0, result.stderr
    assert "Going on behind" in result.stderr
    assert out.read_bytes() == whole.read_bytes()


def test_stdin_leaves_nothing(checkpoint: Path, many: Path, tmp_path: Path, at_window: Any) -> None:
    at_window(1, interrupt)
    result = run_embed(
        "-", checkpoint, tmp_path / "v.npy", "--format", "jsonl", "--batch-tokens", 100, stdin=many.read_bytes()
    )
    assert result.exit_code == 130
    assert names(tmp_path) == {many.name}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


def written_at(path: Path) -> int | None:
    """Time of a file's last change in nanoseconds; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_twenty_random_kills(commands: Commands, checkpoint: Path, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", 2000)
    command = ["embed", texts, "--model", checkpoint, "--batch-tokens", "512", "--out"]
    (tmp_path / "out").mkdir()
    whole, out = tmp_path / "whole.npy", tmp_path / "out" / "v.npy"
    start = time.monotonic()
    commands.start(*command, whole)
    assert commands.wait() == 0, commands.errors.read_text()
    seconds = time.monotonic() - start
    killed = resumed = 0
    manifest = tmp_path / "out" / "v.npy.partial" / "manifest.json"
    while killed < KILLS:
        kept = written_at(manifest)
        process = commands.start(*command, out)
        if killed % 2:  # on a busy machine any time may be before the first records
            wait_until(lambda kept=kept: out.exists() or written_at(manifest) not in (None, kept))
        time.sleep(random.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = commands.wait()
        said = commands.errors.read_text()
        assert code in (0, -signal.SIGKILL), said
        killed += code != 0
        resumed += "Going on behind" in said
        if code == 0:  # before it was killed
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
    commands.start(*command, out)
    assert commands.wait() == 0, commands.errors.read_text()
    assert out.read_bytes() == whole.read_bytes()
    assert os.listdir(out.parent) == [out.name]
    assert resumed > 2
