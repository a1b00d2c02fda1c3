"""`erniem-fast pretrain` on checkpoints of other families: their objectives, what is saved, and bad input."""

import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.command_line import assert_one_line, run
from helpers.family_folders import FAMILIES, save_family
from helpers.pretraining import curve, write_corpora

from erniem_fast.cli import pretrain as command
from erniem_fast.training.family_objectives import NAMES
from erniem_fast.training.pretraining_trainer import EveryFewSteps

LANGUAGES = {"n_langs": 3, "lang2id": {"de": 0, "en": 1, "fr": 2}}
SACREMOSES = pytest.mark.skipif(find_spec("sacremoses") is None, reason="XLM's tokenizer needs sacremoses")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with pairs and texts, the same with languages, and a document."""
    write_corpora(tmp_path)
    lines = (tmp_path / "pairs.tsv").read_text().splitlines()
    (tmp_path / "spoken.tsv").write_text("".join(f"{line}\tde\ten\n" for line in lines))
    (tmp_path / "sentences.tsv").write_text("".join(f"{line.split(chr(9))[0]}\tfr\n" for line in lines))
    return tmp_path


def pretrain(folder: Path, *options: Any) -> Any:
    return run(
        "pretrain", "--model", folder / "model", "--out", folder / "out", "--steps", 2, "--batch-tokens", 600,
        "--dtype", "float32", "--device", "cpu", "--log-every", 1, *options,
    )  # fmt: skip


def save(folder: Path, family: str, head: str, **changes: Any) -> None:
    save_family(folder / "model", family, head, 128, **changes)


def weights_differ(folder: Path, cls: Any) -> bool:
    """True if a run has changed weights, and plain transformers finds all of them in what it saved."""
    before, (after, info) = (
        cls.from_pretrained(folder / "model"), cls.from_pretrained(folder / "out", output_loading_info=True)
    )  # fmt: skip
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert after.config.architectures == [cls.__name__]
    return all(
        not torch.equal(one, other)
        for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True)
        if "word_embeddings" in name or name.endswith(("q_lin.weight", "query.weight", "seq_relationship.weight"))
    )


def test_masked_words_and_next_sentences_of_bert(inputs: Path) -> None:
    save(inputs, "Bert", "ForPreTraining")
    done = pretrain(inputs, "--monolingual", inputs / "texts.txt", "--objectives", "mlm-nsp=1")
    assert done.exit_code == 0, done.output
    assert [set(entry) >= {"loss", "mlm-nsp_loss"} for entry in curve(inputs / "out")] == [True, True]
    assert weights_differ(inputs, transformers.BertForPreTraining)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "XLM"])
def test_masked_lm_of_every_family(inputs: Path, family: str) -> None:
    save(inputs, family, "ForMaskedLM")
    done = pretrain(
        inputs, "--monolingual", inputs / "texts.txt", "--parallel", inputs / "pairs.tsv", "--steps", 6,
        "--eval", inputs / "pairs.tsv", "--whole-word",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {"eval_tlm_loss", "eval_camlm_loss"} < set(json.loads(done.stdout))
    assert weights_differ(inputs, getattr(transformers, f"{family}ForMaskedLM"))


@pytest.mark.slow
def test_ernie_with_an_evaluation(inputs: Path) -> None:
    """From a checkpoint without the head."""
    save(inputs, "Ernie", "Model")
    done = pretrain(
        inputs, "--monolingual", inputs / "texts.txt", "--objectives", "mlm-nsp=1", "--eval", inputs / "texts.txt"
    )
    assert done.exit_code == 0, done.output
    assert "New parameters, which begin at random: cls." in done.stderr
    assert "eval_mlm-nsp_loss" in json.loads(done.stdout)
    transformers.ErnieForPreTraining.from_pretrained(inputs / "out")


@pytest.mark.slow
@SACREMOSES
@pytest.mark.parametrize("languages", [True, False])
def test_xlm_masked_and_translation_lm(inputs: Path, languages: bool) -> None:
    save(inputs, "XLM", "WithLMHeadModel", **(LANGUAGES if languages else {}))
    texts, pairs = ("sentences.tsv", "spoken.tsv") if languages else ("texts.txt", "pairs.tsv")
    done = pretrain(
        inputs, "--monolingual", inputs / texts, "--parallel", inputs / pairs, "--steps", 4, "--eval", inputs / pairs,
        "--eval", inputs / texts, "--weight-decay", 0,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) == {"steps", "tokens", "eval_loss", "eval_mlm_loss", "eval_tlm_loss"}
    assert weights_differ(inputs, transformers.XLMWithLMHeadModel)
    before, after = (transformers.XLMModel.from_pretrained(inputs / name) for name in ("model", "out"))
    if languages:  # of which only those that were read change
        assert (before.lang_embeddings.weight != after.lang_embeddings.weight).any(1).all()


@pytest.mark.slow
@SACREMOSES
def test_xlm_causal_lm(inputs: Path) -> None:
    save(inputs, "XLM", "WithLMHeadModel", causal=True, **LANGUAGES)
    done = pretrain(inputs, "--monolingual", inputs / "sentences.tsv")
    assert done.exit_code == 0, done.output
    assert all("clm_loss" in entry for entry in curve(inputs / "out"))
    assert weights_differ(inputs, transformers.XLMWithLMHeadModel)
    assert_one_line(pretrain(inputs, "--parallel", inputs / "spoken.tsv"), "learns from texts alone")
    options = ("--parallel", inputs / "spoken.tsv", "--objectives", "tlm=1")
    assert_one_line(pretrain(inputs, *options), "--objectives 'tlm'", "of the family causal xlm learns clm")


@pytest.mark.slow
def test_a_stopped_run_has_the_curve_of_one_that_was_not(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under dropout and accumulation, of next sentences."""
    save(inputs, "Ernie", "ForPreTraining")
    told = ("--monolingual", inputs / "texts.txt", "--objectives", "mlm-nsp=1", "--accumulation", 2, "--steps", 4)
    assert pretrain(inputs, *told, "--out", inputs / "whole").exit_code == 0

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EveryFewSteps, "on_step_begin", on_step_begin)
        assert pretrain(inputs, *told).exit_code == 143
    assert pretrain(inputs, *told).exit_code == 0
    assert curve(inputs / "out") == curve(inputs / "whole")
    found, expected = (
        transformers.ErnieForPreTraining.from_pretrained(inputs / name).state_dict() for name in ("out", "whole")
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())


BAD: dict[str, tuple[str, str, dict[str, Any], list[Any], list[str]]] = {
    "of another family": (
        "Bert", "ForMaskedLM", {}, ["--monolingual", "texts.txt", "--objectives", "btmlm=1"],
        ["--objectives 'btmlm'", "of the family bert learns mmlm, tlm, camlm, mlm-nsp"],
    ),
    "next sentences beside others": (
        "Bert", "ForMaskedLM", {}, ["--monolingual", "texts.txt", "--objectives", "mlm-nsp=1,mmlm=1"],
        ["--objectives 'mlm-nsp'", "got mmlm beside it; expected it alone"],
    ),
    "next sentences of pairs": (
        "Bert", "ForPreTraining", {}, ["--parallel", "pairs.tsv", "--objectives", "mlm-nsp=1"],
        ["--objectives 'mlm-nsp': reads texts, but there are none; expected --monolingual FILE"],
    ),
    "no next sentences": (
        "Bert", "ForPreTraining", {}, ["--monolingual", "alone.txt", "--objectives", "mlm-nsp=1"],
        ["'alone.txt': no text follows another"],
    ),
    "no languages": (
        "XLM", "WithLMHeadModel", LANGUAGES, ["--monolingual", "texts.txt"],
        ["texts.txt:1: has no language; the model knows 'de', 'en', 'fr'"],
    ),
    "another language": (
        "XLM", "WithLMHeadModel", {**LANGUAGES, "lang2id": {"de": 0, "en": 1, "ja": 2}},
        ["--monolingual", "sentences.tsv"], ["sentences.tsv:1: has the language 'fr'; the model knows 'de', 'en'"],
    ),
    "languages without names": (
        "XLM", "WithLMHeadModel", {"n_langs": 3}, ["--monolingual", "sentences.tsv"], ["n_langs 3, but no lang2id"]
    ),
    "a decoder": (
        "Bert", "ForMaskedLM", {"is_decoder": True}, ["--monolingual", "texts.txt"], ["expected an encoder"]
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, marks=[SACREMOSES] * (BAD[case][0] == "XLM")) for case in BAD])
def test_bad_input_is_one_line(inputs: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    family, head, changes, options, parts = BAD[case]
    save(inputs, family, head, **changes)
    (inputs / "alone.txt").write_text("One document.\n\nAnother one.\n")
    monkeypatch.chdir(inputs)
    before = sorted(inputs.iterdir())
    assert_one_line(pretrain(inputs, *options), *parts)
    assert sorted(inputs.iterdir()) == before


def test_the_help_names_all_objectives() -> None:
    assert command.OBJECTIVES == NAMES
