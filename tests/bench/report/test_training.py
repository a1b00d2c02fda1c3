"""Table and figure of the training runs."""

from pathlib import Path
from typing import Any

import pytest

from bench.engine.results import dump
from bench.report import tables, training

TIME = {"value": 170.0, "unit": "s", "at_least": None, "at_most": 180}
ACCURACY = {"value": 0.9412, "unit": "%", "at_least": 0.95, "at_most": None}
CURVES = {"loss": [[1, 3.0], [10, 1.0]], "loss, student": [[1, 2.0], [10, 0.5]], "accuracy": [[5, 0.5], [10, 0.9]]}


def a_file(folder: Path, name: str, date: str = "2030-01-02", **fields: Any) -> None:
    content = {
        "suite": f"training-{name}", "tiny": False, "command": f"python -m bench.training.{name}", "commit": None,
        "date": f"{date}T00:00:00+00:00", "dirty": False, "device": "cpu", "processor": "Abacus", "cores": 2,
        "threads": 2, "versions": {"torch": "2.13", "transformers": "5.23"}, "runs": [{"others_busy_cores": 1.5}],
        "left_out": [], "failed": [], "rows": [], "figures": {"time": TIME, "accuracy": ACCURACY}, "curves": CURVES,
    }  # fmt: skip
    (folder / f"training-{name}-{date}.json").write_text(dump(content | fields), encoding="utf-8")


def test_the_table_shows_the_newest_runs_and_their_bars(tmp_path: Path) -> None:
    assert training.training_tables(tmp_path) == ""
    a_file(tmp_path, "other", figures={"bar of none": TIME | {"at_most": None}}, curves={})
    assert training.training_tables(tmp_path).splitlines()[4] == "| other | bar of none | 170 s |  |  |"
    assert "images" not in training.training_tables(tmp_path)
    a_file(tmp_path, "languages", "2029-01-02", figures={"old": TIME})
    a_file(tmp_path, "languages")
    a_file(tmp_path, "languages", "2031-01-02", tiny=True, figures={"dry": TIME})
    text = training.training_tables(tmp_path)
    assert text.splitlines()[4:6] == [
        "| 20 languages told apart, from scratch | time | 170 s | at most 180 s | yes |",
        "| 20 languages told apart, from scratch | accuracy | 94.1 % | at least 95.0 % | no |",
    ]
    assert "| old |" not in text
    assert "| dry |" not in text
    assert "by `python -m bench.training.languages` ([training-languages-2030-01-02.json](../bench/results/" in text
    assert "Other processes kept 1.5 cores busy: its times are preliminary." in text
    assert "(images/training.svg)" in text
    assert text in tables.details(tmp_path)


@pytest.mark.slow
def test_the_figure_is_the_same_bytes_and_shows_every_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert training.draw_training(tmp_path, tmp_path) == []
    a_file(tmp_path, "languages")
    a_file(tmp_path, "xquad", curves={"loss": CURVES["loss"]})
    a_file(tmp_path, "plain", curves={})
    drawn = []
    for _ in range(2):
        (path,) = training.draw_training(tmp_path, tmp_path)
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1]
    text = drawn[0].decode()
    for label in ("20 languages told apart, from scratch", "64 questions by heart", ">loss, student<", ">accuracy<"):
        assert label in text
    assert "plain" not in text
