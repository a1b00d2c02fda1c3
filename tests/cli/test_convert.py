"""`erniem-fast convert`: the folder that it writes, and what it leaves where it fails."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from helpers.checkpoint_folders import assert_agree
from helpers.command_line import assert_one_line, run
from helpers.ernie_folders import FORMS, TINY, arrays_of, build_ernie, config_of, vocabulary, write_folder
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
    assert_one_line(result, f"IN '{given}'", part, "expected a folder of ERNIE-M or ERNIE as PaddleNLP")
    assert result.stderr.count(f"'{given}'") == 1
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


# --- ERNIE

LOAD = """
import sys, torch, transformers
for folder in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder)
    encoder = transformers.AutoModel.from_pretrained(folder)
    batch = transformers.AutoTokenizer.from_pretrained(folder)(["ab的 [MASK]", "c"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.save([{**batch}, {**model(**batch)}, {**encoder(**batch)}], f"{folder}/outputs.pt")
assert not [name for name in sys.modules if name.startswith("erniem_fast")]
"""


def write_ernie(folder, form, name="ErnieModel", vocab=None, **sizes):
    model = build_ernie(name, **sizes)
    vocab = vocabulary(TINY["vocab_size"]) if vocab is None else vocab
    write_folder(folder, arrays_of(model, form), config_of(model, form), form, vocab)
    return model


def test_a_folder_of_ernie_that_transformers_loads(tmp_path):
    model = write_ernie(tmp_path / "x", "original", "ErnieForMaskedLM", hidden_act="relu")
    assert run("convert", tmp_path / "x", tmp_path / "out").exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("ab的", return_tensors="pt")
    assert batch.input_ids.tolist() == [[1, 13, 24, 5, 2]]
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.slow
def test_plain_transformers_loads_ernie(tmp_path):
    """Each form, in a process that never heard of this package."""
    names = dict(zip(FORMS, ("ErnieForMaskedLM", "ErnieForSequenceClassification", "ErnieForPreTraining"), strict=True))
    models = {}
    for form, name in names.items():
        models[form] = write_ernie(tmp_path / form, form, name, use_task_id=form == "paddlenlp", hidden_act="relu")
        result = run("convert", tmp_path / form, tmp_path / f"{form}-out")
        assert result.exit_code == 0, result.output
        assert f"-out: {name}: 2 layers of width 24, " in result.stdout
        assert "parameters in float32, 60 tokens\n" in result.stdout
        kept = "ernie.pooler.dense.weight, ernie.pooler.dense.bias: kept, though ErnieForMaskedLM does not read it"
        assert (kept in result.stdout) == (name == "ErnieForMaskedLM")
    folders = [str(tmp_path / f"{form}-out") for form in models]
    subprocess.run([sys.executable, "-c", LOAD, *folders], check=True, cwd=tmp_path, capture_output=True)
    for form, model in models.items():
        batch, outputs, encoded = torch.load(tmp_path / f"{form}-out" / "outputs.pt")
        assert batch["input_ids"][0].tolist() == [1, 13, 24, 5, 3, 2]
        with torch.no_grad():
            expected, encoder = model(**batch), model.ernie(**batch)
        for key, value in {**expected}.items():
            torch.testing.assert_close(outputs[key], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(encoded["last_hidden_state"], encoder.last_hidden_state, rtol=1e-5, atol=1e-5)
        weight, bias = (
            torch.from_numpy(arrays_of(model, "paddlenlp")[f"ernie.pooler.dense.{k}"]) for k in ("weight", "bias")
        )
        pooled = (encoder.last_hidden_state[:, 0] @ weight + bias).tanh()
        torch.testing.assert_close(encoded["pooler_output"], pooled, rtol=1e-5, atol=1e-5)


def test_what_an_ernie_head_does_not_read_is_left_out(tmp_path):
    write_ernie(tmp_path / "x", "paddlenlp", "ErnieForTokenClassification")
    result = run("convert", tmp_path / "x", tmp_path / "out")
    assert "ernie.pooler.dense.weight, ernie.pooler.dense.bias: left out, ErnieForTokenClassification" in result.stdout


def test_tiny_comes_without_a_tokenizer(tmp_path):
    write_ernie(tmp_path / "x", "original", vocab=[*vocabulary(23), *(f"\u2581{i}" for i in range(30))])
    result = run("convert", tmp_path / "x", tmp_path / "out")
    assert "in float32, no tokenizer\n" in result.stdout
    assert "SentencePiece: transformers has none such" in result.stdout
    with pytest.raises(ValueError, match="tokenizer"):
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("form", ["original", *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[1:])])
@pytest.mark.parametrize("wrong", ["malicious", "cut", "unknown", "missing", "relative"])
def test_wrong_ernie_folders(tmp_path, form, wrong):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    model = build_ernie()
    arrays, fields = arrays_of(model, form), config_of(model, form)
    first = next(iter(arrays))
    parts = {
        "malicious": "open, which builds no array",
        "cut": "is no file of parameters as paddle.save writes it",
        "unknown": "ErnieModel has no such parameters: extra (2,)",
        "missing": "lack",
        "relative": "it is ERNIE-Doc, which ",
    }
    match wrong:
        case "malicious":
            arrays[first] = Evil()
        case "unknown":
            arrays["extra"] = arrays[first][0, :2]
        case "missing":
            del arrays[next(key for key in arrays if key.endswith(("linear2.bias", "ffn.o.bias", "ffn_fc_1.b_0")))]
        case "relative":
            fields["memory_len"] = 128
    folder = write_folder(tmp_path / "x", arrays, fields, form, vocabulary(60))
    if wrong == "cut":
        (file,) = folder.glob("*.pdparams")
        file.write_bytes(file.read_bytes()[:-1000])
    result = run("convert", folder, tmp_path / "out")
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 2
    assert line.startswith(f"Error: IN '{folder}': ")
    assert parts[wrong] in line
    assert {path.name for path in tmp_path.iterdir()} == {"x"}
