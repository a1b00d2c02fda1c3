"""`erniem-fast pretrain`: a new model and a checkpoint, what it says, and bad input in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import assert_one_line, run
from helpers.paths import GOLDEN_TOKENIZER
from helpers.pretraining import SIZES, curve, write_corpora

from erniem_fast import ErnieMForMaskedLM, ErnieMTokenizer
from erniem_fast.training.pretraining_trainer import PretrainingTrainer


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with pairs.tsv, texts.txt and the configuration of a new model."""
    write_corpora(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ernie_m", **SIZES}))
    return tmp_path


def pretrain(folder: Path, *options: Any, new: bool = True) -> Any:
    """The command, whose other options override those given here."""
    made = ("--config", folder / "config.json", "--tokenizer", GOLDEN_TOKENIZER) if new else ()
    usual = {
        "--out": folder / "out", "--steps": 2, "--batch-tokens": 150, "--dtype": "float32", "--device": "cpu",
        "--log-every": 1,
    }  # fmt: skip
    for name in options[::2]:
        usual.pop(name, None)
    flat = [part for item in usual.items() for part in item]
    return run("pretrain", *made, *flat, *options)


@pytest.mark.slow
def test_a_new_model_and_then_its_checkpoint(inputs: Path) -> None:
    done = pretrain(
        inputs, "--parallel", inputs / "pairs.tsv", "--monolingual", inputs / "texts.txt", "--eval",
        inputs / "texts.txt", "--steps", 4, "--seed", 3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    entries = curve(inputs / "out")
    assert set(told) == {"steps", "tokens", "eval_loss", "eval_mmlm_loss"}
    assert told["eval_mmlm_loss"] == entries[-1]["eval_mmlm_loss"]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 4]
    model = ErnieMForMaskedLM.from_pretrained(inputs / "out")
    assert model.config.vocab_size == len(ErnieMTokenizer.from_pretrained(inputs / "out"))
    again = pretrain(
        inputs, "--model", inputs / "out", "--monolingual", inputs / "texts.txt", "--objectives", "btmlm=2,mmlm=0",
        "--out", inputs / "second", "--whole-word", new=False,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert all("btmlm_loss" in entry for entry in curve(inputs / "second"))


BAD: dict[str, tuple[list[Any], list[str]]] = {
    "no input": ([], ["--parallel, --monolingual: neither is given"]),
    "an unknown objective": (["--objectives", "nsp=1"], ["--objectives 'nsp=1'", "mmlm, tlm, camlm, btmlm"]),
    "no weight": (["--objectives", "tlm"], ["--objectives 'tlm'", "NAME=WEIGHT"]),
    "a negative weight": (["--objectives", "tlm=-1"], ["--objectives 'tlm=-1'"]),
    "weights of 0": (["--objectives", "tlm=0"], ["all weights are 0"]),
    "an objective twice": (["--objectives", "tlm=1,mmlm=1,tlm=2"], ["has tlm twice", "each name once"]),
    "no steps": (["--monolingual", "texts.txt", "--steps", "0"], ["--steps '0'"]),
    "a probability above 1": (
        ["--monolingual", "texts.txt", "--mask-probability", "1.5"],
        ["--mask-probability 1.5", "at most 1"],
    ),
    "a rate of nothing": (["--monolingual", "texts.txt", "--learning-rate", "0"], ["--learning-rate 0.0"]),
    "one column": (["--parallel", "pairs.tsv", "--parallel-columns", "a"], ["--parallel-columns 'a'"]),
    "a seed below 0": (["--monolingual", "texts.txt", "--seed", "-1"], ["--seed -1"]),
    "another dtype": (["--monolingual", "texts.txt", "--dtype", "int8"], ["--dtype 'int8'"]),
}
BAD_BEHIND_THE_MODEL: dict[str, tuple[list[Any], list[str]]] = {
    "pairs that are not there": (
        ["--monolingual", "texts.txt", "--objectives", "tlm=1"], ["--objectives 'tlm'", "expected --parallel FILE"]
    ),
    "a long sequence": (["--monolingual", "texts.txt", "--max-length", "600"], ["--max-length 600", "at most 512"]),
    "a sequence of special tokens": (["--parallel", "pairs.tsv", "--max-length", "4"], ["--max-length 4", "least 6"]),
    "a missing file": (["--parallel", "nothing.tsv"], ["file 'nothing.tsv'", "No such file"]),
    "texts for pairs": (["--parallel", "texts.txt"], ["the ending .txt is not read; expected one of .tsv, .jsonl"]),
    "an evaluation that nobody reads": (
        ["--monolingual", "texts.txt", "--eval", "pairs.tsv"], ["--eval: no objective reads it"]
    ),
    "a folder with files": (["--monolingual", "texts.txt", "--out", "."], ["--out '.'", "holds files"]),
}  # fmt: skip
"""Found once the tokenizer is there."""


@pytest.mark.parametrize("case", [*BAD, *(pytest.param(name, marks=pytest.mark.slow) for name in BAD_BEHIND_THE_MODEL)])
def test_bad_input_is_one_line(inputs: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(inputs)
    options, parts = (BAD | BAD_BEHIND_THE_MODEL)[case]
    before = sorted(inputs.iterdir())
    assert_one_line(pretrain(inputs, *options), *parts)
    assert sorted(inputs.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "--model, --config: expected one of them"),
        (["--config", "base"], "--config 'base': expected --tokenizer DIR, too"),
        (["--config", "huge", "--tokenizer", GOLDEN_TOKENIZER], "--config 'huge': No such file"),
        (["--config", "base", "--tokenizer", "."], "--tokenizer '.'"),
        (["--model", "nothing"], "--model 'nothing': no such folder"),
        (["--model", ".", "--tokenizer", "."], "--tokenizer '.': is for a new model"),
    ],
)
def test_bad_models_are_one_line(inputs: Path, monkeypatch: pytest.MonkeyPatch, options: list[Any], part: str) -> None:
    monkeypatch.chdir(inputs)
    assert_one_line(pretrain(inputs, "--monolingual", "texts.txt", *options, new=False), part)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 30, "num_attention_heads": 4}', '{"vocab_size": 9}'])
def test_bad_configurations_are_one_line(inputs: Path, content: str) -> None:
    (inputs / "config.json").write_text(content)
    assert_one_line(
        pretrain(inputs, "--monolingual", inputs / "texts.txt"), f"--config {str(inputs / 'config.json')!r}"
    )


@pytest.mark.slow
def test_a_bad_line_is_named_or_skipped(inputs: Path) -> None:
    with (inputs / "pairs.tsv").open("a") as file:
        file.write("a\tb\tc\n")
    lines = len((inputs / "pairs.tsv").read_text().splitlines())
    assert_one_line(pretrain(inputs, "--parallel", inputs / "pairs.tsv"), f"line {lines} has 3 columns")
    done = pretrain(inputs, "--parallel", inputs / "pairs.tsv", "--skip-bad-lines", "--steps", 1)
    assert done.exit_code == 0, done.output
    assert "1 bad line was left out" in done.stderr


@pytest.mark.slow
def test_a_loss_of_nan_is_one_line(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = PretrainingTrainer.compute_loss
    monkeypatch.setattr(
        PretrainingTrainer, "compute_loss", lambda *args, **kwargs: compute(*args, **kwargs) * float("nan")
    )
    done = pretrain(inputs, "--monolingual", inputs / "texts.txt")
    assert done.exit_code == 1
    assert "Error: the loss is nan at step 1, of the samples" in done.stderr.splitlines()[-1]
