"""`erniem-fast convert`: the folder that it writes, and what it leaves where it fails."""

import json
import pickle

import pytest
import torch
from helpers.checkpoint_folders import assert_agree
from helpers.command_line import assert_one_line, run
from helpers.golden_tokenizer import build
from helpers.paddle_folders import new_config, paddle_arrays, pickled, write
from helpers.pairs import SIZES

import erniem_fast
from erniem_fast import ErnieMConfig, reference

IDS = torch.tensor([[0, 5, 9, 17, 2], [0, 40, 2, 1, 1]])


@pytest.fixture(scope="module")
def model():
    sizes = SIZES | {"vocab_size": len(build()), "intermediate_size": 4 * SIZES["hidden_size"]}
    return reference.ErnieMForInformationExtraction(ErnieMConfig(**sizes)).eval()


@pytest.fixture
def source(tmp_path, model):
    return write(tmp_path / "paddle", pickled(paddle_arrays(model)), new_config(model))


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_loads(tmp_path, source, model, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    result = run("convert", source, out)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{out}: ErnieMForInformationExtraction of UIEM: 2 layers of width 32, ")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters in float32, 16,002 tokens" in line
    assert "reading" in result.stderr
    assert "converting" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"paddle", "out"}
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt", "sentencepiece.bpe.model",
        "erniem_fast_auto.py",
    }  # fmt: skip
    assert_agree(erniem_fast.ErnieMForInformationExtraction.from_pretrained(out), model, IDS)
    text = "Hello, 中文 WORLD"
    expected = build(do_lower_case=True)(text).input_ids
    assert erniem_fast.ErnieMTokenizer.from_pretrained(out)(text).input_ids == expected
    assert json.loads((out / "config.json").read_text())["architectures"] == ["ErnieMForInformationExtraction"]


def test_what_is_left_out_is_said(tmp_path):
    sizes = SIZES | {"vocab_size": len(build()), "intermediate_size": 4 * SIZES["hidden_size"]}
    model = reference.ErnieMForTokenClassification(ErnieMConfig(**sizes))
    source = write(tmp_path / "x", pickled(paddle_arrays(model)), new_config(model))
    result = run("convert", source, tmp_path / "out")
    assert "ernie_m.pooler.dense.weight, ernie_m.pooler.dense.bias: left out" in result.stdout


def test_a_malicious_file_is_refused(tmp_path, source):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    (source / "model_state.pdparams").write_bytes(pickle.dumps({"a": Evil()}))
    result = run("convert", source, tmp_path / "out")
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 2
    assert line.startswith("Error: IN ")
    assert "open, which builds no array" in line
    assert {path.name for path in tmp_path.iterdir()} == {"paddle"}


@pytest.mark.parametrize("wrong", ["missing", "a file", "no weights", "no tokenizer"])
def test_wrong_sources(tmp_path, source, wrong):
    given, part = source, ""
    if wrong == "missing":
        given, part = tmp_path / "nothing", "is no folder"
    elif wrong == "a file":
        given, part = source / "config.json", "is no folder"
    else:
        (source / ("model_state.pdparams" if wrong == "no weights" else "vocab.txt")).unlink()
    result = run("convert", given, tmp_path / "out")
    assert_one_line(result, f"IN '{given}'", part, "expected a folder as PaddleNLP saves ERNIE-M")
    assert {path.name for path in tmp_path.iterdir()} == {"paddle"}


@pytest.mark.parametrize("wrong", ["holds files", "a file", "no parent", "the source"])
def test_wrong_targets(tmp_path, source, wrong):
    out = tmp_path / "out"
    if wrong == "holds files":
        out.mkdir()
        (out / "mine").write_text("kept")
    elif wrong == "a file":
        out.write_text("kept")
    elif wrong == "no parent":
        out = out / "a"
    else:
        out = source
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert_one_line(run("convert", source, out), f"OUT '{out}'", "expected an empty folder")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_is_left_where_it_is_stopped(tmp_path, source, monkeypatch, error):
    def stop(*arguments, **options):
        raise error

    monkeypatch.setattr(erniem_fast.ErnieMTokenizer, "save_pretrained", stop)
    try:
        run("convert", source, tmp_path / "out")
    except RuntimeError:
        assert error is RuntimeError
    assert {path.name for path in tmp_path.iterdir()} == {"paddle"}


def test_other_commands_name_this_one(source, tmp_path):
    (tmp_path / "texts.txt").write_text("a\n")
    result = run("embed", tmp_path / "texts.txt", "--model", source, "--out", tmp_path / "x.npy")
    assert_one_line(result, "holds a Paddle checkpoint", "erniem-fast convert")
