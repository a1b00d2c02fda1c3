"""The commands on checkpoints of other families, as plain transformers saved them."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import TEXTS, assert_one_line, run, run_embed
from helpers.family_folders import FAMILIES, MAX_TOKENS, change_layers, save_family
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, BertModel

from erniem_fast import padding_free
from erniem_fast.cli import verify
from erniem_fast.inference import loading
from erniem_fast.packed import PackedEncoder

QUICK = ("Bert", "XLMRoberta")
HEADS = (
    "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering"
)  # fmt: skip
XLM_HEADS = (
    "WithLMHeadModel", "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification",
    "ForQuestionAnsweringSimple", "ForQuestionAnswering",
)  # fmt: skip
FURTHER = (("Bert", "ForPreTraining"), ("Bert", "ForNextSentencePrediction"), ("Electra", "ForPreTraining"))


def marked(family: str, *rest: str) -> Any:
    """Parameters of a test, of which the quick ones run always, and XLM's where its tokenizer does."""
    marks = [] if family in QUICK and not rest else [pytest.mark.slow]
    if family == "XLM":
        marks.append(pytest.mark.skipif(find_spec("sacremoses") is None, reason="XLM's tokenizer needs sacremoses"))
    return pytest.param(family, *rest, marks=marks)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    return lambda *arguments, **changes: save_family(tmp_path / "model", *arguments, **changes)


def states_alone(folder: Path) -> list[torch.Tensor | None]:
    """(length, 32) of each text by plain transformers, one by one; None for the empty ones."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    states: list[torch.Tensor | None] = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states.append(model(ids).last_hidden_state[0] if text.strip() else None)
    return states


@pytest.mark.parametrize("family", [marked(family) for family in FAMILIES])
def test_embed_is_each_line_alone_by_transformers(
    family: str, save: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    folder = save(family)
    states = states_alone(folder)
    for pooling, options in (("mean", ("--batch-tokens", 50)), ("cls", ())):
        result = run_embed(texts, folder, tmp_path / "v.npy", "--pooling", pooling, *options)
        assert result.exit_code == 0, result.output
        assert f"texts were cut to {MAX_TOKENS} tokens" in result.stderr
        for expected, vector in zip(states, np.load(tmp_path / "v.npy"), strict=True):
            pooled = torch.zeros(32) if expected is None else expected.mean(0) if pooling == "mean" else expected[0]
            np.testing.assert_allclose(vector, pooled.numpy(), atol=2e-5, rtol=0)


def test_embed_takes_the_encoder_of_a_head(save: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    folder = save("XLMRoberta", "ForSequenceClassification", num_labels=3)
    states = states_alone(folder)
    assert run_embed(texts, folder, tmp_path / "v.npy").exit_code == 0
    for expected, vector in zip(states, np.load(tmp_path / "v.npy"), strict=True):
        if expected is not None:
            np.testing.assert_allclose(vector, expected.mean(0).numpy(), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "head"),
    [pytest.param("Bert", "Model"), pytest.param("XLMRoberta", "ForMaskedLM")]
    + [marked(family, head) for family in FAMILIES if family != "XLM" for head in ("Model", *HEADS)]
    + [marked("XLM", head) for head in ("Model", *XLM_HEADS)]
    + [marked(*pair) for pair in FURTHER],
)
def test_verify(family: str, head: str, save: Callable[..., Path]) -> None:
    result = run("verify", "--model", save(family, head))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"class            {family}{head}" in lines
    assert "missing keys     none" in lines
    assert f"max. tokens      {MAX_TOKENS}" in lines
    assert "  layers 0 to 1: on packed rows, all fused" in lines
    assert any(line.startswith("  last hidden state   same ") for line in lines)
    assert any("against transformers' own, float32" in line for line in lines)
    assert not any("ernie-m-base" in line for line in lines)
    assert lines[-1] == "The models agree."


def test_verify_finds_a_wrong_model(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is wrong where nobody asks for all rows only."""
    folder, encode = save("Bert", "ForSequenceClassification"), PackedEncoder._encode

    def wrong(self: Any, scores_sequences: bool = False, **given: Any) -> Any:
        output = encode(self, scores_sequences=scores_sequences, **given)
        if scores_sequences and not given.get("output_hidden_states"):
            output.pooler_output = output.pooler_output + 1
        return output

    monkeypatch.setattr(PackedEncoder, "_encode", wrong)
    result = run("verify", "--model", folder)
    assert result.exit_code == 1
    assert "WRONG: the padding-free model's logits differs from transformers' own" in result.stdout


def test_verify_shares_the_weights_and_leaves_transformers_class(save: Callable[..., Path]) -> None:
    fast = padding_free(BertForMaskedLM.from_pretrained(save("Bert", "ForMaskedLM")))
    plain = verify.reference_of(fast)
    assert type(plain) is BertForMaskedLM
    assert type(plain.bert) is BertModel
    assert isinstance(fast.bert, PackedEncoder)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert one is other


@pytest.mark.parametrize("family", [marked(family) for family in FAMILIES])
def test_more_or_fewer_layers_than_weights(family: str, save: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    folder = save(family)
    for by, part, verdict in ((1, "the weights lack", "the weights lack"), (-2, "hold more layers", "weights hold")):
        change_layers(folder, by)
        assert_one_line(run_embed(texts, folder, tmp_path / "v.npy"), "--model", part)
        result = run("verify", "--model", folder)
        assert result.exit_code == 1
        assert f"WRONG: {verdict}" in result.stdout or f"WRONG: the {verdict}" in result.stdout
    assert not (tmp_path / "v.npy").exists()


def test_weights_of_another_shape(save: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    folder = save("Roberta")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.intermediate.dense.weight"] = torch.randn(64, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert_one_line(result, "another shape of encoder.layer.0.intermediate.dense.weight", "(64, 32) for (48, 32)")
    result = run("verify", "--model", folder)
    assert result.exit_code == 1
    assert "mismatched keys  encoder.layer.0.intermediate.dense.weight (64, 32) for (48, 32)" in result.stdout
    assert "WRONG: the weights lack 1 parameters" in result.stdout


def test_more_in_a_layer_than_it_computes(save: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    """Relative positions, which transformers 5 ignores in silence."""
    folder, key = save("Bert", "ForMaskedLM"), "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    weights = load_file(folder / "model.safetensors") | {key: torch.randn(79, 8)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_one_line(run_embed(texts, folder, tmp_path / "v.npy"), "more in them: ", "self.distance_embedding.weight")
    result = run("verify", "--model", folder)
    assert result.exit_code == 1
    assert f"WRONG: the weights hold 1 parameters that BertForMaskedLM lacks: {key}" in result.stdout


def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(
    save: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    folder = save("Bert")
    for name, found in (
        ("config.json", {"AutoConfig": "code.Mine"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.Mine", None]}),
    ):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(fields | {"auto_map": found}))
    (folder / "code.py").write_text("raise SystemExit(70)")
    assert run_embed(texts, folder, tmp_path / "v.npy").exit_code == 0


def test_weights_that_are_not_finite(save: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    folder = save("Bert")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = run("verify", "--model", folder)
    assert result.exit_code == 1
    assert "WRONG: the padding-free model's last hidden state differs from transformers' own" in result.stdout
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert result.exit_code == 2
    assert "must give finite vectors" in result.stderr


def test_a_head_that_transformers_drops_is_no_problem_and_an_unknown_one_is(save: Callable[..., Path]) -> None:
    folder = save("Bert", "ForMaskedLM")
    file = folder / "model.safetensors"
    weights = load_file(file) | {"cls.seq_relationship.weight": torch.randn(2, 32)}
    save_file(weights, file, metadata={"format": "pt"})
    result = run("verify", "--model", folder)
    assert result.exit_code == 0, result.output
    assert "unexpected keys  cls.seq_relationship.weight" in result.stdout

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForRanking"]}))
    result = run("verify", "--model", folder)
    assert result.exit_code == 1
    assert "class            BertModel (config.json names BertForRanking)" in result.stdout
    assert "parameters that BertModel lacks: cls." in result.stdout


def test_verify_names_the_dtype_of_the_weights(save: Callable[..., Path]) -> None:
    folder = save("Bert")
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    result = run("verify", "--model", folder)
    assert result.exit_code == 0, result.output
    assert " in bfloat16\n" in result.stdout


def test_a_decoder_is_refused(save: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    folder = save("Bert", is_decoder=True)
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert_one_line(result, "can't be computed without padding: it is a decoder; expected an encoder")


@pytest.mark.parametrize("spare", [-1, 35, 128])
def test_tables_with_rows_that_no_token_reads(
    spare: int, save: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    """Multilingual MiniLM has 35 of them."""
    folder = save("Roberta", vocab_size=261 + spare)
    result = run_embed(texts, folder, tmp_path / "v.npy")
    if spare == 35:
        assert result.exit_code == 0, result.output
    else:
        assert_one_line(result, f"the tokenizer has 261 tokens, the model's vocab_size is {261 + spare}")


def test_no_tokenizer(save: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    folder = save("Bert")
    (folder / "tokenizer.json").unlink()
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert_one_line(result, "holds no tokenizer (no tokenizer.json)", "expected a folder")
    result = run("verify", "--model", folder)  # on random ids
    assert result.exit_code == 0, result.output
    assert "in the model, no tokenizer" in result.stdout
    assert "12 random texts of " in result.stdout


def test_xlm_without_sacremoses(save: Callable[..., Path], texts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = save("Bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "xlm"}))
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    result = run_embed(texts, folder, tmp_path / "v.npy")
    assert_one_line(result, "XLM's tokenizer needs the package sacremoses", "pip install 'erniem_fast[xlm]'")


def test_commands_of_ernie_m_alone_say_so(save: Callable[..., Path], tmp_path: Path) -> None:
    folder = save("Bert")
    assert_one_line(run("demo", "--model", folder, "--out", tmp_path / "v.npy"), "'bert'; expected 'ernie_m'")
