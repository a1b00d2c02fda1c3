"""The report on a checkpoint."""

import json

import pytest
import torch
from helpers.command_line import assert_one_line, run
from safetensors.torch import load_file, save_file

import erniem_fast
from erniem_fast import reference
from erniem_fast.cli import verify


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


def test_verify_names_weights_without_parameters(broken, save, tmp_path):
    result = run("verify", "--model", broken("fewer layers"))
    assert result.exit_code == 1
    named = "encoder.layers.1.linear1.bias, encoder.layers.1.linear1.weight, encoder.layers.1.linear2.bias and 13 more"
    assert f"unexpected keys  {named}" in result.stdout
    assert f"WRONG: the weights hold 16 parameters that ErnieMModel lacks: {named}" in result.stdout

    # A head that is not ours: its encoder agrees, and the rest is not lost in silence.
    folder = save(tmp_path / "head", "ErnieMForSequenceClassification")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ErnieMForRanking"]}))
    result = run("verify", "--model", folder)
    assert result.exit_code == 1
    assert "WRONG: the weights hold 2 parameters that ErnieMModel lacks: classifier.bias" in result.stdout


@pytest.mark.parametrize(("saved", "loaded"), [("ErnieMModel", True), ("ErnieMForTokenClassification", False)])
def test_verify_takes_checkpoints_with_and_without_a_pooler(save, tmp_path, saved, loaded):
    """The pooler's weights may be missing, and may be there without a pooler to take them."""
    folder = save(tmp_path / "model", saved)
    weights = load_file(folder / "model.safetensors")
    if loaded:
        weights = {name: value for name, value in weights.items() if "pooler" not in name}
    else:
        weights |= {"ernie_m.pooler.dense.weight": torch.randn(32, 32), "ernie_m.pooler.dense.bias": torch.randn(32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = run("verify", "--model", folder)
    assert result.exit_code == 0, result.output
    assert f"{'missing' if loaded else 'unexpected'} keys".ljust(17) in result.stdout
    assert "pooler.dense.weight" in result.stdout


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
