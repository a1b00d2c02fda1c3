"""`erniem-fast finetune tag` and `multiple-choice`: what is learned, and what the folder is good for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import golden_tokenizer
from helpers.command_line import SIZES, assert_one_line, run
from helpers.family_folders import save_family
from helpers.tagged import SENTENCES

import erniem_fast
from erniem_fast import Encoder, ErnieMConfig

LEARN = ("--epochs", 60, "--learning-rate", 5e-3, "--layer-decay", 1, "--batch-tokens", 400, "--dtype", "float32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without a head."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = golden_tokenizer.build()
    torch.manual_seed(0)
    erniem_fast.ErnieMModel(ErnieMConfig(**SIZES | {"vocab_size": len(tokenizer)})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conll(sentences: list[tuple[list[str], list[str]]]) -> str:
    return "\n".join("".join(f"{word} {tag}\n" for word, tag in zip(*sentence, strict=True)) for sentence in sentences)


def fine_tune(task: str, train: Path, model: Path, out: Path, *options: Any) -> dict[str, float]:
    """The figures that the command prints."""
    done = run("finetune", task, train, "--dev", train, "--model", model, "--out", out, *options)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_tagger_learns_entities_in_many_scripts(checkpoint: Path, tmp_path: Path) -> None:
    """A sentence longer than the model among them. The folder tags texts that are not cut into words."""
    train = tmp_path / "train.conll"
    sentences = [sentence for sentence in SENTENCES if sentence[0][0] not in ("Zażółć", "สมชาย", "王", "田中")]
    joined = tuple([item for one in sentences[:3] for item in one[part]] for part in (0, 1))
    han = "王小明住在北京市，来的。"
    characters = (list(han), ["B-PER", "I-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "I-LOC", *["O"] * 4])
    train.write_text(conll([*sentences, joined, characters]), encoding="utf-8")
    out = tmp_path / "tagger"
    figures = fine_tune("tag", train, checkpoint, out, *LEARN)
    assert figures["f1"] == figures["accuracy"] == 1.0
    config = json.loads((out / "config.json").read_text())
    assert list(config["id2label"].values()) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    (tmp_path / "texts.txt").write_text(han, encoding="utf-8")
    done = run("tag", tmp_path / "texts.txt", "--model", out, "--out", "-", "--dtype", "float32")
    assert done.exit_code == 0, done.stderr
    found = [(one["entity_group"], han[one["start"] : one["end"]]) for one in json.loads(done.stdout)["entities"]]
    assert found == [("PER", "王小明"), ("LOC", "北京市")]
    texts = ["Ada Lovelace lived in London, not far from Hyde Park.", "تعيش فاطمة الزهراء في الدار البيضاء."]
    tagger = Encoder.from_pretrained(str(out), dtype=torch.float32)
    for text, names in zip(
        texts, (["Ada Lovelace", "London,", "Hyde Park."], ["فاطمة الزهراء", "الدار البيضاء."]), strict=True
    ):
        (entities,) = tagger.tag([text], aggregation_strategy="first")
        assert [text[one["start"] : one["end"]] for one in entities] == names


@pytest.mark.slow
def test_a_tagger_of_texts_finds_their_entities(checkpoint: Path, tmp_path: Path) -> None:
    rows = [
        ("王小明住在北京市。", [(0, 3, "PER"), (5, 7, "LOC")]),
        ("Анна Ахматова жила в Петербурге.", [(0, 13, "PER"), (21, 31, "LOC")]),
        ("تعيش فاطمة الزهراء في الدار البيضاء.", [(5, 18, "PER"), (22, 35, "LOC")]),
        ("Niemand war da.", []),
    ]
    train = tmp_path / "train.jsonl"
    records = [
        {"text": text, "entities": [{"start": start, "end": end, "label": label} for start, end, label in spans]}
        for text, spans in rows
    ]
    train.write_text("\n".join(map(json.dumps, records)))
    figures = fine_tune("tag", train, checkpoint, tmp_path / "tagger", *LEARN)
    assert figures["f1"] == 1.0
    tagger = Encoder.from_pretrained(str(tmp_path / "tagger"), dtype=torch.float32)
    for (text, spans), entities in zip(rows, tagger.tag([text for text, _ in rows]), strict=True):
        assert [(one["start"], one["end"], one["entity_group"]) for one in entities] == spans, text


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ErnieM", "XLMRoberta"])
def test_the_right_choice_is_learned(checkpoint: Path, tmp_path: Path, family: str) -> None:
    model = checkpoint if family == "ErnieM" else save_family(tmp_path / "model", family, "Model", 64)
    animals = ["Rabe", "Hund", "Wal"]
    rows = [
        {"context": f"Zeile {number}", "question": "Was fliegt?", "label": "Rabe",
         "choices": [animals[(number + place) % 3] for place in range(3)]}
        for number in range(6)
    ]  # fmt: skip
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(map(json.dumps, rows)))
    figures = fine_tune("multiple-choice", train, model, tmp_path / "out", *LEARN)
    assert figures["accuracy"] == 1.0


BAD = {
    "a bad line": ("tag", "a.conll", "a B-X\nb\n", (), ("line 2 has 1 column, not 2 or more",)),
    "nothing to learn": ("tag", "a.conll", "a O\nb O\n", (), ("TRAIN: no word has a tag but 'O'",)),
    "a column that is no number": ("tag", "a.conll", "a O\n", ("--tag-column", "ner"), ("--tag-column 'ner'",)),
    "one name twice": ("tag", "a.jsonl", "{}", ("--tag-names", "O,O"), ("--tag-names 'O,O': expected different",)),
    "an ending": ("tag", "a.csv", "a\n", (), (".conll, .txt", "the ending .csv is not read")),
    "no room for texts": (
        "multiple-choice", "a.csv", "text,choice0,choice1,label\na,b,c,0\n", ("--max-length", 3),
        ("--max-length 3: expected at least 6",),
    ),
    "no choices": ("multiple-choice", "a.csv", "text,label\na,0\n", (), ("line 2 has no 'choices': it has",)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(checkpoint: Path, tmp_path: Path, case: str) -> None:
    task, name, text, options, parts = BAD[case]
    (tmp_path / name).write_text(text)
    done = run("finetune", task, tmp_path / name, "--model", checkpoint, "--out", tmp_path / "out", *options)
    assert_one_line(done, *parts)
    assert not (tmp_path / "out").exists()
