"""Result files of training runs."""

import json
from pathlib import Path

import pytest

from bench.engine.results import ResultFile
from bench.training.results import TrainingRun, command_line, parser

LOG = [
    {"loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-3, "epoch": 0.5, "step": 10},
    {"eval_loss": 1.9, "eval_accuracy": 0.25, "eval_runtime": 3.0, "eval_samples_per_second": 4.0, "step": 10},
    {"loss": 1.0, "grad_norm": 1.25, "learning_rate": 5e-4, "epoch": 1.0, "step": 20},
    {"eval_loss": 0.9, "eval_accuracy": 0.75, "eval_runtime": 3.0, "eval_samples_per_second": 4.0, "step": 20},
    {"train_loss": 1.5, "train_runtime": 9.0, "total_flos": 10.0, "epoch": 1.0, "step": 20},
]


def test_figures_and_curves_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = parser("about").parse_args(["--tiny", "--output", str(tmp_path)])
    with TrainingRun("languages", command_line("bench.training.languages", ["--tiny"]), options) as run:
        run.add_figure("accuracy on held-out lines", 0.975, "%", at_least=0.95)
        run.add_figure("time", 120.0, "s", at_most=180)
        run.add_curves(LOG, "student", ("loss", "accuracy"))
        run.add_curves(LOG)
        with pytest.raises(ValueError, match="value of 'loss' must be finite, got nan"):
            run.add_figure("loss", float("nan"))
    file = ResultFile.newest(tmp_path, "training-languages")
    assert file is not None
    content = file.content
    assert content["suite"] == "training-languages"
    assert content["command"] == "python -m bench.training.languages --tiny"
    assert content["tiny"]
    assert content["figures"]["time"] == {"value": 120.0, "unit": "s", "at_least": None, "at_most": 180}
    assert "accelerate" in content["versions"]
    assert content["runs"][0]["seconds"] >= 0
    assert content["curves"] == {
        "loss, student": [[10, 2.0], [20, 1.0]],
        "loss on held-out text, student": [[10, 1.9], [20, 0.9]],
        "accuracy, student": [[10, 0.25], [20, 0.75]],
        "loss": [[10, 2.0], [20, 1.0]],
        "grad_norm": [[10, 1.5], [20, 1.25]],
        "learning_rate": [[10, 0.001], [20, 0.0005]],
        "loss on held-out text": [[10, 1.9], [20, 0.9]],
        "accuracy": [[10, 0.25], [20, 0.75]],
    }
    printed = capsys.readouterr().out
    assert "accuracy on held-out lines: 97.5 %\ntime: 120 s\n" in printed
    assert json.loads(file.path.read_text("utf-8")) == content


def test_a_run_that_failed_writes_nothing(tmp_path: Path) -> None:
    options = parser("about").parse_args(["--output", str(tmp_path)])
    with pytest.raises(RuntimeError, match="diverged"), TrainingRun("languages", "command", options):
        raise RuntimeError("diverged")
    assert not list(tmp_path.iterdir())
