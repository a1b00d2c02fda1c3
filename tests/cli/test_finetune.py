"""`erniem-fast finetune`: what it prints and writes, its errors, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import assert_one_line, run
from helpers.family_folders import FAMILIES, save_family
from helpers.killed_commands import Commands
from helpers.paths import ROOT

from erniem_fast import Encoder
from erniem_fast.training.trainer import PackedTrainer

QUICK = ("--epochs", 2, "--batch-tokens", 120, "--learning-rate", 0.01, "--dtype", "float32")
TEXTS = {"short": ["Perdimos.", "我們試試看！", "Ja."], "long": ["Tom and Mary say they don't want to sing with us."]}


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Texts to train on and to evaluate on, in JSON Lines and in CSV."""
    pairs = [(text, label) for label, texts in TEXTS.items() for text in texts]
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.csv"
    train.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs * 5))
    dev.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in pairs), encoding="utf-8")
    return train, dev


def test_figures_go_to_stdout_and_the_model_to_its_folder(
    checkpoint: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("finetune", "classify", data[0], "--dev", data[1], "--model", checkpoint, "--out", out, *QUICK)
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert set(figures) == {"loss", "accuracy", "macro_f1"}
    assert "Training" in result.stderr
    found = Encoder.from_pretrained(str(out)).classify("Ja.")
    assert found["label"] in TEXTS
    assert "| --epochs | 2.0 |" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_vectors_are_learned_by_the_commands_own_temperature(checkpoint: Path, tmp_path: Path) -> None:
    """Learning from a teacher, which `embed` has not, has an option of this name, too."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("anchor\tpositive\nJa.\tYes.\nPerdimos.\tWe lost.\n", encoding="utf-8")
    command = ("finetune", "embed", pairs, "--dev", pairs, "--model", checkpoint, *QUICK)
    for name, options in (("default", ()), ("warm", ("--temperature", 0.5))):
        result = run(*command, "--out", tmp_path / name, *options)
        assert result.exit_code == 0, result.stderr
        assert "accuracy" in json.loads(result.stdout)
    losses = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[0] for name in ("default", "warm")]
    assert json.loads(losses[0])["loss"] != json.loads(losses[1])["loss"]
    assert_one_line(run(*command, "--out", tmp_path / "other", "--distill", checkpoint), "--distill")
    assert_one_line(run(*command, "--out", tmp_path / "other", "--batch-tokens", 4), "--batch-tokens", "one pair")
    assert not list(tmp_path.glob("other*"))


def test_without_a_task_there_is_the_help_alone() -> None:
    result = run("finetune")
    assert "classify" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("task", "kinds"),
    [("classify", ".jsonl, .csv, .tsv or .parquet"), ("qa", ".json, .jsonl or .parquet"),
     ("extract", ".jsonl or .parquet"), ("embed", ".jsonl, .csv, .tsv or .parquet"),
     ("tag", ".conll, .txt, .tsv, .bio, .iob, .iob2, .conllu, .jsonl or .parquet")],
)  # fmt: skip
def test_the_help_says_what_is_read_and_where_it_runs(task: str, kinds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    shown = run("finetune", task, "--help").stdout
    assert f"UTF-8 {kinds} with the examples" in shown
    assert "auto|cpu|cuda" in shown
    assert "cuda[:N]" not in shown
    assert "the DIR of a run that ended is replaced at the end, with all that was put into it since" in shown


def test_errors_are_one_line(checkpoint: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    train, dev = data
    command = ("finetune", "classify", train, "--dev", dev, "--model", checkpoint, "--out", tmp_path / "out")
    assert_one_line(run(*command, "--dtype", "int8"), "--dtype 'int8'", "bfloat16")
    assert_one_line(run(*command, "--dtype", "float16", "--device", "cpu"), "--dtype 'float16': a CPU has no")
    assert_one_line(run(*command, "--distill", "nothing"), "--distill 'nothing': no such folder")
    assert_one_line(run(*command, "--preset", "squad"), "--preset 'squad'", "xnli")
    assert_one_line(run(*command, "--epochs", 0), "--epochs 0.0: expected more than 0, and at most 100000")
    assert_one_line(run(*command[:3], *command[5:], "--patience", 2), "--patience 2: expected --dev, too")
    assert_one_line(run(*command, "--label-column", "kind"), "TRAIN", "line 1 has no 'kind': it has 'text', 'label'")
    assert_one_line(run(*command[:3], "--dev", tmp_path / "none.csv", *command[5:]), "--dev", "No such file")
    assert_one_line(run(*command, "--device", "cuda:1"), "--device 'cuda:1': expected auto, cpu or cuda; CUDA_VISIBLE")
    result = run(*command[:2], "train.xlsx", *command[3:])
    assert_one_line(result, "the ending .xlsx is not read; expected one of .jsonl", "each also with .gz, or no ending")
    assert "stdin" not in result.stderr
    assert_one_line(run(*command[:-1], "/"), "--out '/': is the root of the file system; expected an empty folder")
    train.write_text("{\n")
    assert_one_line(run(*command), "line 1 is not JSON")
    assert sorted(os.listdir(tmp_path)) == ["dev.csv", "train.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_its_state_saved(
    checkpoint: Path, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    step = PackedTrainer.training_step
    monkeypatch.setattr(PackedTrainer, "training_step", lambda *given: (signal.raise_signal(number), step(*given))[1])
    out = tmp_path / "out"
    command = ("finetune", "classify", data[0], "--model", checkpoint, "--out", out, *QUICK)
    result = run(*command)
    assert result.exit_code == 128 + number
    assert result.stderr.splitlines()[-1].startswith("Stopped: the state after step 1 is kept")
    assert not out.exists()
    monkeypatch.undo()
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert "Going on from" in result.stderr
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family(family: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    if family == "XLM":
        pytest.importorskip("sacremoses")
    model, out = save_family(tmp_path / "model", family), tmp_path / "out"
    result = run("finetune", "classify", data[0], "--dev", data[1], "--model", model, "--out", out, *QUICK)
    assert result.exit_code == 0, result.stderr
    accuracy = json.loads(result.stdout)["accuracy"]
    encoder = Encoder.from_pretrained(str(out), dtype="float32")
    right = [encoder.classify(text)["label"] == label for label, texts in TEXTS.items() for text in texts]
    assert sum(right) / len(right) == pytest.approx(accuracy)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    served = Commands(tmp_path_factory.mktemp("commands"))
    yield served
    served.close()


@pytest.mark.slow
def test_a_killed_command_goes_on(
    commands: Commands, checkpoint: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    """Wherever it was killed, be it while a checkpoint is written."""

    def command(out: Path) -> tuple[Any, ...]:
        return ("finetune", "classify", data[0], "--dev", data[1], "--model", checkpoint, "--out", out, "--eval-steps",
                3, *QUICK)  # fmt: skip

    whole, out = tmp_path / "whole", tmp_path / "out"
    begun = time.monotonic()
    commands.start(*command(whole))
    assert commands.wait() == 0, commands.errors.read_text()
    seconds = time.monotonic() - begun
    for share in (0.4, 0.55, 0.7, 0.85):
        process = commands.start(*command(out))
        time.sleep(share * seconds)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        if commands.wait() == 0:
            break
    else:
        commands.start(*command(out))
        assert commands.wait() == 0, commands.errors.read_text()
    assert losses(out) == losses(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not out.with_name("out.partial").exists()


def losses(folder: Path) -> list[tuple[int, float]]:
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


@pytest.mark.slow
def test_two_processes_share_every_step(checkpoint: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    """torchrun: one prints and writes."""
    command = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "erniem_fast.cli.main",
        "finetune", "classify", data[0], "--dev", data[1], "--model", checkpoint, "--out", tmp_path / "two", *QUICK,
        "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Could not locate" not in done.stderr  # the best model, on either process
    (figures,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    encoder = Encoder.from_pretrained(str(tmp_path / "two"), dtype="float32")
    right = [encoder.classify(text)["label"] == label for label, texts in TEXTS.items() for text in texts]
    assert sum(right) / len(right) == pytest.approx(figures["accuracy"])
    assert json.loads((tmp_path / "two" / "run.json").read_text())["asked"]["the number of processes"] == 2
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len({json.loads(line)["step"] for line in lines}) == len([line for line in lines if '"grad_norm"' in line])
