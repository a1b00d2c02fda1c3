"""The command line: vectors in order, bad input in one line, and the two reports."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN_TOKENIZER, ROOT
from typer.testing import CliRunner

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMTokenizer, reference
from erniem_fast.cli import demo, verify
from erniem_fast.cli import main as cli
from erniem_fast.cli.main import app

TEXTS = [
    "Tom and Mary say they don't want to sing with us anymore.",
    "",
    "我們試試看！",
    "   ",
    "У меня много знакомых, которые не умеют играть в шахматы.",
    "Perdimos.",
    "a\u2028b\x0bc",  # breaks for str.splitlines, not for us
    "word " * 60,
]
MAX_TOKENS = 40
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_TOKENS + 2,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def tokenizer():
    return ErnieMTokenizer(GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt")


@pytest.fixture(scope="module")
def save(tokenizer):
    """Save a checkpoint with fresh random weights and the tokenizer."""

    def make(folder, name="ErnieMModel", **changes):
        sizes = SIZES | {"vocab_size": len(tokenizer)}
        model = getattr(erniem_fast, name)(ErnieMConfig(**(sizes | changes)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def checkpoint(save, tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def states(checkpoint, tokenizer):
    """(length, 32) of each text alone, by the reference; None for the empty ones."""
    model = reference.ErnieMModel.from_pretrained(checkpoint).eval()

    def encode(text):
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return model(ids).last_hidden_state[0]

    return [encode(text) if text.strip() else None for text in TEXTS]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\n".join(TEXTS).encode())
    return path


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_embed(texts, model, out, *options):
    return run("embed", texts, "--model", model, "--out", out, *options)


def assert_one_line(result, *parts):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for part in parts:
        assert str(part) in line


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_tokens", [1, 50, 8192])
def test_embed_is_each_line_alone_by_the_reference(checkpoint, texts, states, tmp_path, pooling, batch_tokens):
    out = tmp_path / "v.npy"
    result = run_embed(texts, checkpoint, out, "--pooling", pooling, "--batch-tokens", batch_tokens)
    assert result.exit_code == 0, result.output
    assert f"1 of {len(TEXTS)} texts were cut to {MAX_TOKENS} tokens" in result.stderr
    assert "Tokenizing: 100%" in result.stderr
    assert "Encoding: 100%" in result.stderr
    vectors = np.load(out)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 32), np.float32)
    for expected, vector in zip(states, vectors, strict=True):
        if expected is None:
            assert (vector == 0).all()
        else:
            pooled = expected.mean(0) if pooling == "mean" else expected[0]
            np.testing.assert_allclose(vector, pooled.numpy(), atol=1e-5, rtol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["texts.txt", "v.npy"]


def test_embed_takes_any_head_and_replaces_the_file(save, texts, tmp_path):
    folder = save(tmp_path / "head", "ErnieMForSequenceClassification", num_labels=3)
    out = tmp_path / "v.npy"
    out.write_bytes(b"old")
    assert run_embed(texts, folder, out, "--dtype", "bfloat16", "--device", "cpu").exit_code == 0
    assert np.load(out).shape == (len(TEXTS), 32)


def test_line_ends_and_byte_order_mark(checkpoint, tmp_path):
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_bytes(b"one\n\ntwo\n")
    other.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo")
    for path in (plain, other):
        assert run_embed(path, checkpoint, path.with_suffix(".npy")).exit_code == 0
    first, second = (np.load(path.with_suffix(".npy")) for path in (plain, other))
    assert first.shape == (3, 32)
    np.testing.assert_array_equal(first, second)


def test_only_empty_lines(checkpoint, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\n\n")
    assert run_embed(tmp_path / "t.txt", checkpoint, tmp_path / "v.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), np.zeros((2, 32)))


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("--pooling", "max", "mean, cls"),
        ("--batch-tokens", "0", "at least 1"),
        ("--batch-tokens", "-3", "at least 1"),
        ("--batch-tokens", "many", "at least 1"),
        ("--dtype", "int8", "float32, bfloat16, float16"),
        ("--device", "tpu", "auto, cpu, cuda"),
        ("--device", "cuda:99", "a device that is there"),
        ("--device", "cuda:x", "cuda:N"),
    ],
)
def test_bad_options(checkpoint, texts, tmp_path, option, value, accepted):
    assert_one_line(run_embed(texts, checkpoint, tmp_path / "v.npy", option, value), option, repr(value), accepted)
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"good\nalso\nbad \xff\xfe\n", "line 3 is not UTF-8"),
        ("Grüße".encode("utf-16"), "line 1 is not UTF-8"),
        ("folder", "Is a directory"),
    ],
)
def test_bad_texts(checkpoint, tmp_path, content, part):
    path = tmp_path / "t.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    before = list(tmp_path.iterdir())
    assert_one_line(run_embed(path, checkpoint, tmp_path / "v.npy"), "TEXTS", repr(str(path)), part, "UTF-8 text file")
    assert list(tmp_path.iterdir()) == before


@pytest.fixture
def broken(checkpoint, save, tmp_path):
    """Make a folder that is no checkpoint, in the way asked for."""

    def make(how):
        folder = tmp_path / "broken"
        if how == "another vocabulary":
            return save(folder, vocab_size=20000)
        if how == "a smaller vocabulary":
            return save(folder, vocab_size=16001)
        if how == "missing folder":
            return folder
        shutil.copytree(checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        weights = folder / "model.safetensors"
        match how:
            case "a file":
                return folder / "config.json"
            case "no config":
                (folder / "config.json").unlink()
            case "no weights":
                weights.unlink()
            case "no tokenizer":
                (folder / "vocab.txt").unlink()
            case "cut weights":
                weights.write_bytes(weights.read_bytes()[:1000])
            case "no JSON":
                (folder / "config.json").write_text("{")
            case "bad value":
                (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
            case "another model":
                (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
            case "more layers":
                (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
            case "other sizes":
                (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
            case "bad tokenizer":
                (folder / "sentencepiece.bpe.model").write_bytes(b"nonsense")
        return folder

    return make


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("missing folder", "no such folder"),
        ("a file", "is not a folder"),
        ("no config", "no config.json"),
        ("no weights", "no .safetensors, no .bin"),
        ("no tokenizer", "no vocab.txt"),
        ("no JSON", "config.json can't be read"),
        ("bad value", "num_attention_heads"),
        ("another model", "'bert'; expected 'ernie_m'"),
        ("cut weights", "weights can't be read"),
        ("more layers", "lack encoder.layers.2"),
        ("other sizes", "another shape of encoder.layers.0.linear1"),
        ("bad tokenizer", "tokenizer can't be read"),
        ("another vocabulary", "16002 tokens, the model's vocab_size is 20000"),
        ("a smaller vocabulary", "16002 tokens, the model's vocab_size is 16001"),
    ],
)
def test_bad_checkpoints(broken, texts, tmp_path, how, part):
    folder = broken(how)
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert_one_line(result, "--model", repr(str(folder)), part, "expected")
    assert {p.name for p in tmp_path.iterdir()} <= {"texts.txt", "broken"}


def test_a_padded_embedding_table_is_fine(save, texts, tmp_path):
    folder = save(tmp_path / "padded", vocab_size=16064)
    assert run_embed(texts, folder, tmp_path / "v.npy").exit_code == 0


@pytest.mark.parametrize("where", ["missing/v.npy", "texts.txt/v.npy", "folder", "x" * 300, "texts.txt"])
def test_bad_outputs_are_known_before_the_work(texts, tmp_path, where):
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    # The model is missing too: had it come to that, the message would be another.
    result = run_embed(texts, tmp_path / "nowhere", tmp_path / where)
    assert_one_line(result, "--out", where, "expected")
    assert sorted(tmp_path.rglob("*")) == before
    assert texts.read_bytes().startswith(b"Tom")


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no /dev")
def test_a_device_is_not_replaced(texts, tmp_path):
    assert_one_line(run_embed(texts, tmp_path / "nowhere", "/dev/null"), "--out", "Not a regular file")
    assert not os.path.isfile("/dev/null")


def test_vectors_that_are_not_finite(save, texts, tmp_path):
    folder = save(tmp_path / "nan")
    model = erniem_fast.ErnieMModel.from_pretrained(folder)
    torch.nn.init.constant_(model.encoder.layers[1].norm2.weight, float("nan"))
    model.save_pretrained(folder)
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert result.exit_code == 2
    assert "Error: --dtype 'float32': some vectors are not finite" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["embed"], "TEXTS"), (["embed", "t"], "--model"), (["nonsense"], "nonsense"), (["verify", "--what"], "--what")],
)
def test_usage_errors_are_one_line(arguments, part):
    assert_one_line(run(*arguments), part)


def test_help_and_version():
    for arguments in ([], ["--help"], ["embed", "--help"], ["verify", "--help"], ["demo", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert "not the pooler" in " ".join(run("embed", "--help").stdout.replace("│", " ").split())
    assert run("--version").stdout == f"erniem_fast {erniem_fast.__version__}\n"


@pytest.mark.parametrize(
    "name",
    ["ErnieMModel", *(name for name in reference.__all__ if name.startswith("ErnieMFor"))],
)
def test_verify(save, tmp_path, name):
    result = run("verify", "--model", save(tmp_path / "model", name))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"class            {name}" in lines
    assert "missing keys     none" in lines
    assert any(line.startswith("vocabulary       16,002 in the model, 16,002") for line in lines)
    assert sum("same" in line for line in lines) >= 2
    assert lines[-1] == "The models agree."


def test_verify_finds_a_wrong_model(checkpoint, monkeypatch):
    forward = erniem_fast.ErnieMModel.forward

    def wrong(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.pooler_output = output.pooler_output + 1e-3
        return output

    monkeypatch.setattr(erniem_fast.ErnieMModel, "forward", wrong)
    result = run("verify", "--model", checkpoint)
    assert result.exit_code == 1
    assert "WRONG: the padding-free model's pooler output differs from the reference's" in result.stdout


def test_verify_says_what_is_missing(broken):
    result = run("verify", "--model", broken("more layers"))
    assert result.exit_code == 1
    assert "missing keys     encoder.layers.2" in result.stdout
    assert "WRONG: the weights lack 16 parameters" in result.stdout


def test_verify_checks_known_values_of_the_base_sizes(checkpoint, monkeypatch):
    monkeypatch.setattr(verify, "BASE_SIZES", {"hidden_size": 32})
    result = run("verify", "--model", checkpoint)
    assert result.exit_code == 0
    assert result.stdout.count("do not match") == 2
    model = reference.ErnieMModel.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        values = model(torch.arange(6)[None]).last_hidden_state[0, :3, :3]
    monkeypatch.setattr(verify, "BASE_VALUES", tuple(map(tuple, values.tolist())))
    result = run("verify", "--model", checkpoint)
    assert result.exit_code == 0
    assert "do not match" not in result.stdout
    assert result.stdout.count(" match ") >= 2


def test_verify_bad_input(tmp_path):
    assert_one_line(run("verify", "--model", tmp_path), "--model", "no config.json")


def test_demo_with_a_checkpoint(save, tmp_path):
    folder, out = save(tmp_path / "tiny", max_position_embeddings=514), tmp_path / "v.npy"
    result = run("demo", "--model", folder, "--out", out)
    assert result.exit_code == 0, result.output
    for part in ("96 documents in 23 languages", "34,704", "5,935", "82.9%", "real tokens/s", "largest difference"):
        assert part in result.stdout
    assert "RANDOM" not in result.stdout
    vectors = np.load(out)
    assert vectors.shape == (96, 32)
    assert np.isfinite(vectors).all()
    assert (np.abs(vectors).sum(1) > 0).all()


def test_demo_with_random_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ErnieMConfig", lambda: ErnieMConfig(**SIZES))
    monkeypatch.setattr(demo, "sample", lambda: verify.sample()[:20])
    out = tmp_path / "v.npy"
    for path in (out, tmp_path / "again.npy"):
        result = run("demo", "--out", path)
        assert result.exit_code == 0, result.output
        assert "THE WEIGHTS ARE RANDOM" in result.stdout
    np.testing.assert_array_equal(np.load(out), np.load(tmp_path / "again.npy"))


def test_demo_bad_output(tmp_path):
    assert_one_line(run("demo", "--out", tmp_path / "missing" / "v.npy"), "--out", "No such file")


def command(*arguments):
    code = "from erniem_fast.cli.main import app; app()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_in_a_process_of_its_own(checkpoint, texts, tmp_path):
    out = tmp_path / "v.npy"
    arguments = ["embed", texts, "--model", checkpoint, "--out", out]
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.load(out).shape == (len(TEXTS), 32)
    assert "Warning" not in done.stderr

    out.unlink()
    texts.write_bytes(b"ok\n\xff\n")
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "line 2" in done.stderr
    assert not out.exists()


def test_ctrl_c_leaves_nothing_behind(checkpoint, tmp_path):
    texts = tmp_path / "t.txt"
    texts.write_text("".join(f"line {i} of a long file\n" for i in range(200_000)))
    process = subprocess.Popen(
        command("embed", texts, "--model", checkpoint, "--out", tmp_path / "v.npy"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(list(tmp_path.iterdir())) == 2
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]


def test_out_of_memory_is_one_line(checkpoint, texts, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cli, "embed", fail)
    result = run_embed(texts, checkpoint, tmp_path / "v.npy")
    assert result.exit_code == 1
    assert "--batch-tokens" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "v.npy").exists()
