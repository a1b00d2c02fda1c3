"""`erniem-fast export`: a folder for onnxruntime."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.command_line import MAX_TOKENS, assert_one_line, run
from helpers.onnx_files import assert_as_alone, real_rows

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from erniem_fast import ErnieMConfig, export, reference
from erniem_fast.cli import export as command
from erniem_fast.cli.errors import InputError
from erniem_fast.cli.folders import whole_folder

FILES = {"config.json", "model.onnx", "sentencepiece.bpe.model", "tokenizer_config.json", "vocab.txt"}


def test_a_checkpoint_as_a_folder(save: Any, tmp_path: Path) -> None:
    """Real text through the folder's own tokenizer and file gives what the reference gives each text alone."""
    checkpoint, out = tmp_path / "qa", tmp_path / "onnx"
    save(checkpoint, "ErnieMForQuestionAnswering", num_hidden_layers=1)
    result = run("export", "--onnx", out, "--model", checkpoint)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{out}: ErnieMForQuestionAnswering; largest difference from the model, ")
    assert float(result.stdout.split()[-1]) < 1e-5
    assert {file.name for file in out.iterdir()} >= FILES
    assert {path.name for path in tmp_path.iterdir()} == {"qa", "onnx"}
    assert os.stat(out).st_mode & 0o777 == 0o777 & ~umask()
    assert transformers.AutoConfig.from_pretrained(out).architectures == ["ErnieMForQuestionAnswering"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    plain = reference.ErnieMForQuestionAnswering.from_pretrained(checkpoint).eval()
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    rows = real_rows(tokenizer, MAX_TOKENS)
    for how in ("right", "left", "holes"):
        assert_as_alone(session, plain, rows, how, MAX_TOKENS, 1e-5)
    assert_as_alone(session, plain, rows[1:2], "right", 1, 1e-5)


@pytest.mark.slow
def test_an_encoder_without_its_pooler(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As early uploads are; and without onnxruntime the file is not run."""
    checkpoint = save(tmp_path / "model", num_hidden_layers=1)
    bare = command.load_encoder(str(checkpoint), torch.float32, torch.device("cpu"))
    bare.save_pretrained(checkpoint)
    monkeypatch.setattr(command, "find_spec", lambda package: None)
    out = tmp_path / "onnx"
    out.mkdir()  # an empty folder is as good as none
    result = run("export", "--onnx", out, "--model", checkpoint)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}: ErnieMModel; onnxruntime is not installed: the file has not been run\n"
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state"]


def test_bad_arguments(checkpoint: Path, broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for out, problem in (
        (full, "holds files; expected an empty folder, or the name of a new one"),
        (full / "file", "Not a directory"),
        (tmp_path / "none" / "onnx", "No such file or directory"),
    ):
        assert_one_line(run("export", "--onnx", out, "--model", checkpoint), f"--onnx '{out}'", problem)
    assert_one_line(run("export", "--onnx", tmp_path / "onnx", "--model", tmp_path / "nowhere"), "no such folder")
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(export, "find_spec", lambda package: None)
    result = run("export", "--onnx", tmp_path / "onnx", "--model", checkpoint)
    assert_one_line(result, "needs the package onnx and onnxscript: pip install 'erniem_fast[export]'")


def test_a_file_that_differs_is_not_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "export_onnx", lambda model, path: path.write_bytes(b"") or path)
    for difference in (0.5, float("nan")):
        monkeypatch.setattr(command, "onnx_difference", lambda model, path, batches, value=difference: value)
        result = run("export", "--onnx", tmp_path / "onnx", "--model", checkpoint)
        assert result.exit_code == 2
        assert f"by onnxruntime on real text: {difference:.1e}; expected at most 1e-04" in result.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyError("x"), KeyError, "x"),
        (OSError(28, "No space left on device"), InputError, r"--onnx '.*': No space left"),
    ],
    ids=["an error", "a full disk"],
)
def test_a_folder_is_whole_or_not_there(tmp_path: Path, error: Exception, raised: Any, message: str) -> None:
    def fill() -> None:
        with whole_folder("--onnx", str(tmp_path / "out")) as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(raised, match=message):
        fill()
    assert not list(tmp_path.iterdir())


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_batches_of_the_check_hold_both_kinds_of_padding(tokenizer: Any) -> None:
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    right, left, alone = command._batches(reference.ErnieMModel(ErnieMConfig(**sizes)), tokenizer)
    for one, other in zip(right["input_ids"], left["input_ids"], strict=True):
        assert one[one != 1].tolist() == other[other != 1].tolist()
    assert right["attention_mask"][:, 0].all()
    assert left["attention_mask"][:, -1].all()
    assert not left["attention_mask"][:, 0].all()
    assert alone["attention_mask"].all()
    chosen = command._batches(reference.ErnieMForMultipleChoice(ErnieMConfig(**sizes)), tokenizer)
    for one, other in zip(chosen, (right, left, alone), strict=True):
        assert torch.equal(one["input_ids"][0], other["input_ids"])
    assert len(command._batches(reference.ErnieMForMaskedLM(ErnieMConfig(**sizes)), tokenizer)) == 2
