"""Checkpoints from folders and from the Hub's cache, and one line for those that cannot be used."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.command_line import TEXTS, assert_one_line, run, run_embed
from helpers.paths import ROOT
from huggingface_hub import constants


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("missing folder", "no such folder"),
        ("a file", "is not a folder"),
        ("no config", "no config.json"),
        ("no weights", "no .safetensors, no .bin"),
        ("no tokenizer", "no vocab.txt"),
        ("no JSON", "config.json: can't be read"),
        ("bad value", "num_attention_heads"),
        ("another model", "'t5'; expected 'ernie_m', 'bert', 'camembert', "),
        ("cut weights", "weights can't be read"),
        ("more layers", "lack encoder.layers.2"),
        ("fewer layers", "hold more layers, or more in them: encoder.layers.1"),
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


@pytest.fixture
def hub(checkpoint, tmp_path, monkeypatch):
    """An offline cache of the Hub with one model, someone/ernie-m-tiny."""
    cache = tmp_path / "home" / "hub"
    fill_cache(cache, "someone/ernie-m-tiny", checkpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def fill_cache(cache, name, folder):
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


def test_ids_on_the_hub(hub, checkpoint, texts, tmp_path):
    for model, out in ((checkpoint, "folder.npy"), ("someone/ernie-m-tiny", "hub.npy")):
        result = run_embed(texts, model, tmp_path / out)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "hub.npy").read_bytes() == (tmp_path / "folder.npy").read_bytes()
    result = run("verify", "--model", "someone/ernie-m-tiny")
    assert result.exit_code == 0, result.output
    assert "checkpoint       someone/ernie-m-tiny" in result.stdout


def test_a_folder_goes_before_an_id(hub, save, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "someone" / "ernie-m-tiny", hidden_size=16)
    assert run_embed(texts, "someone/ernie-m-tiny", "v.npy").exit_code == 0
    assert np.load("v.npy").shape == (len(TEXTS), 16)


def test_neither_a_folder_nor_an_id(hub, texts, tmp_path):
    result = run_embed(texts, "someone/else", tmp_path / "v.npy")
    assert_one_line(result, "--model 'someone/else': no such folder, and no such model on the Hub", "expected a folder")
    assert not (tmp_path / "v.npy").exists()
    for name in ("nothing", "./some/one", "some/one/else", "../one", "some/"):
        assert_one_line(run_embed(texts, name, tmp_path / "v.npy"), f"--model '{name}': no such folder; expected")


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("config.json", "no such model on the Hub"),
        ("vocab.txt", "holds no tokenizer (no vocab.txt)"),
        ("model.safetensors", "the weights can't be read"),
    ],
)
def test_a_cache_that_lacks_a_file(hub, texts, tmp_path, missing, part):
    (file,) = hub.rglob(missing)
    file.unlink()
    result = run_embed(texts, "someone/ernie-m-tiny", tmp_path / "v.npy")
    assert_one_line(result, "--model 'someone/ernie-m-tiny'", part, "expected a folder")


@pytest.mark.slow
def test_an_id_on_the_hub_in_a_process_of_its_own(checkpoint, texts, tmp_path):
    """By the environment alone, as a user has it."""
    fill_cache(tmp_path / "home" / "hub", "someone/ernie-m-tiny", checkpoint)
    code = "from erniem_fast.cli.main import app; app()"
    arguments = ["embed", texts, "--model", "someone/ernie-m-tiny", "--out", tmp_path / "v.npy"]
    unset = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=environment | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "v.npy").shape == (len(TEXTS), 32)
