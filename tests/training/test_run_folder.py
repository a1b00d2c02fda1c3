"""The folders of a run: whose files they are."""

import json
import os
from pathlib import Path

import pytest

from erniem_fast.files.errors import InputError
from erniem_fast.training.run_folder import CURVE, LOCK, NEW, RUN, RunFolder

ASKED = {"--epochs": 3}


def finish(run: RunFolder) -> None:
    """Put a model in place."""
    run.curve.write_text("{}")
    run.result.mkdir()
    (run.result / "model").write_text("weights")
    run.put_in_place()


@pytest.mark.parametrize("restart", [False, True])
def test_files_that_are_no_runs_stay(tmp_path: Path, restart: bool) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    (partial / "notes.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"--out '.*out': needs the folder .*out\.partial, which holds 'notes\.txt'"),
        RunFolder.open(str(out), ASKED, restart, print),
    ):
        pytest.fail("was opened")
    assert [path.name for path in tmp_path.rglob("*")] == ["out.partial", "notes.txt"]


def test_what_a_run_leaves_is_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it has said what it was told, or while it removes what it had."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    for name in (LOCK, NEW):
        (partial / name).write_text("")
    removed: list[str] = []
    unlink = os.unlink
    with RunFolder.open(str(out), ASKED, False, print) as run:
        monkeypatch.setattr(os, "unlink", lambda path, **rest: (removed.append(Path(path).name), unlink(path, **rest)))
        finish(run)
    assert removed.index(CURVE) < removed.index(RUN) < removed.index(LOCK)
    assert not partial.exists()
    assert json.loads((out / RUN).read_text())["asked"] == ASKED


def test_restart_replaces_the_folder_as_its_help_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for restart in (False, True):
        with RunFolder.open(str(out), ASKED, restart, print) as run:
            assert (out / "mine.txt").exists() == restart
            finish(run)
        (out / "mine.txt").touch()
    with RunFolder.open(str(out), ASKED, True, print) as run:
        finish(run)
    assert sorted(os.listdir(out)) == [CURVE, "model", RUN]


def test_the_root_is_no_folder_of_a_run() -> None:
    with (
        pytest.raises(InputError, match="--out '/': is the root of the file system"),
        RunFolder.open("/", ASKED, False, print),
    ):
        pytest.fail("was opened")
