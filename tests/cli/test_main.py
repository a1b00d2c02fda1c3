"""The commands: vectors in order, bad options in one line, help."""

import numpy as np
import pytest
import torch
from helpers.command_line import MAX_TOKENS, TEXTS, assert_one_line, run, run_embed

import erniem_fast
from erniem_fast.cli import job
from erniem_fast.cli.main import app


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_tokens", [1, 50, 8192])
def test_embed_is_each_line_alone_by_the_reference(checkpoint, texts, states, tmp_path, pooling, batch_tokens):
    out = tmp_path / "v.npy"
    result = run_embed(texts, checkpoint, out, "--pooling", pooling, "--batch-tokens", batch_tokens)
    assert result.exit_code == 0, result.output
    assert f"1 of {len(TEXTS)} texts were cut to {MAX_TOKENS} tokens" in result.stderr
    assert "tokens/s" in result.stderr
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


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("--pooling", "median", "mean, cls, max"),
        ("--batch-tokens", "0", "at least 1"),
        ("--batch-tokens", "-3", "at least 1"),
        ("--batch-tokens", "many", "at least 1"),
        ("--dtype", "int4", "auto, float32, bfloat16, float16, int8"),
        ("--device", "tpu", "auto, cpu, cuda"),
        ("--device", "cuda:99", "a device that is there"),
        ("--device", "cuda:x", "cuda:N"),
    ],
)
def test_bad_options(checkpoint, texts, tmp_path, option, value, accepted):
    assert_one_line(run_embed(texts, checkpoint, tmp_path / "v.npy", option, value), option, repr(value), accepted)
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


def test_vectors_that_are_not_finite(save, texts, tmp_path):
    folder = save(tmp_path / "nan")
    model = erniem_fast.ErnieMModel.from_pretrained(folder)
    torch.nn.init.constant_(model.encoder.layers[1].norm2.weight, float("nan"))
    model.save_pretrained(folder)
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert result.exit_code == 2
    assert "Error: --model: model must give finite vectors" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["embed"], "INPUT"), (["embed", "t"], "--model"), (["nonsense"], "nonsense"), (["verify", "--what"], "--what")],
)
def test_usage_errors_are_one_line(arguments, part):
    assert_one_line(run(*arguments), part)


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.name)
def test_help_leaves_no_word_out(command):
    # Rich takes words in square brackets for a style, and drops them.
    shown = " ".join(run(command.name, "--help").stdout.split())
    assert " ".join(command.callback.__doc__.split()) in shown


def test_help_and_version():
    for arguments in ([], ["--help"], ["embed", "--help"], ["verify", "--help"], ["demo", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert "not the pooler" in " ".join(run("embed", "--help").stdout.replace("│", " ").split())
    assert run("--version").stdout == f"erniem_fast {erniem_fast.__version__}\n"


def test_out_of_memory_is_one_line(checkpoint, texts, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(job, "stream", fail)
    result = run_embed(texts, checkpoint, tmp_path / "v.npy")
    assert result.exit_code == 1
    assert "--batch-tokens" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "v.npy").exists()
