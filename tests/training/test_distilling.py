"""Fine-tuning beside a teacher, through the driver and the command."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import family_folders, golden_tokenizer
from helpers.documents import TEXTS
from helpers.task_models import labels
from typer.testing import CliRunner

from erniem_fast import ErnieMConfig, ErnieMForSequenceClassification
from erniem_fast.cli.distill_options import recipe_of
from erniem_fast.files.errors import InputError
from erniem_fast.inference.loading import load_config, load_trainable
from erniem_fast.training.augment import Augmentation
from erniem_fast.training.callbacks import StoppedError
from erniem_fast.training.distill import PROJECTIONS, Distillation
from erniem_fast.training.distilling import DistillationRecipe
from erniem_fast.training.finetune import fine_tune
from erniem_fast.training.tasks.base import Asked
from erniem_fast.training.tasks.classify import Classification, Example

NAMES = ("long", "other", "short")
OPTIONS = dict.fromkeys(
    ("distill", "student_layers", "temperature", "distill_weight", "layer_map", "augment", "augment_copies")
)


def save(folder: Path, width: int = 32, **changes: Any) -> str:
    """A classifier of 4 layers with random weights, and its tokenizer."""
    tokenizer = golden_tokenizer.build()
    sizes = {"hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    config = ErnieMConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **sizes, **labels(*NAMES), **changes)
    torch.manual_seed(0)
    ErnieMForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    rows = [
        {"text": text[:50], "label": NAMES[len(text) % 3], "pos": ["X"] * len(text[:50].split())} for text in TEXTS[:12]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(name: str) -> Any:
    config = load_config(name)
    return load_trainable(name, ErnieMForSequenceClassification, config, False)[0]


@pytest.mark.slow
def test_examples_of_a_recipe(teacher: str) -> None:
    recipe = DistillationRecipe(teacher, augmentation=Augmentation(unk=0.5, copies=2, seed=3))
    recipe.model(load(teacher), 64)
    examples = [Example((text, text), "long") for text in TEXTS[:4]]
    made = recipe.examples(list(examples))
    assert made[:4] == examples
    assert len(made) == 12
    assert {one.label for one in made[4:]} == {None}
    assert sum(text.count("[UNK]") for one in made for text in one.texts) > 0
    assert json.dumps(recipe.asked()) != json.dumps(DistillationRecipe(teacher).asked())
    nouns = DistillationRecipe(teacher, augmentation=Augmentation(pos=0.5))
    with pytest.raises(InputError, match="--augment pos: expected --pos-column with the parts of speech of the words"):
        nouns.examples(examples)
    with pytest.raises(InputError, match="--augment: expected texts to classify"):
        nouns.examples([("words", "tags")])
    tagger = DistillationRecipe(teacher, augmentation=Augmentation(pos=0.5), tagger=lambda words: ["X"] * len(words))
    tagger.model(load(teacher), 64)
    assert len(tagger.examples(examples)) == 8


def test_what_a_recipe_refuses(teacher: str, tmp_path: Path) -> None:
    student = load(teacher)
    with pytest.raises(InputError, match="--layer-map '1-2': layer map must read like 1:2,2:4"):
        DistillationRecipe(teacher, layer_map="1-2")
    for temperature in (0.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"--temperature {temperature}: expected a number above 0"):
            DistillationRecipe(teacher, temperature=temperature)
    for weight in (2.0, float("nan")):
        with pytest.raises(InputError, match=f"--distill-weight {weight}: expected a number from 0 to 1"):
            DistillationRecipe(teacher, weight=weight)
    with pytest.raises(InputError, match="--student-layers 5: expected a whole number from 1 to 4, the layers of --m"):
        DistillationRecipe(teacher, student_layers=5).model(student, 64)
    with pytest.raises(InputError, match="--layer-map '3:4': layer map must lead from layers 0"):
        DistillationRecipe(teacher, student_layers=2, layer_map="3:4").model(student, 64)
    with pytest.raises(InputError, match=r"--distill '.*': takes 64 tokens; expected --max-length 64 or less"):
        DistillationRecipe(teacher).model(student, 65)
    other = str(tmp_path / "other")
    family_folders.save_family(Path(other), "Bert", "ForSequenceClassification", **labels(*NAMES))
    with pytest.raises(InputError, match=r"--distill '.*other': the teacher \(.*other\) and the student \(.*teacher\)"):
        DistillationRecipe(other).model(student, 64)
    tagger = str(tmp_path / "tagger")
    student.base_model.save_pretrained(tagger)
    golden_tokenizer.build().save_pretrained(tagger)
    with pytest.raises(InputError, match="expected a model with the head ErnieMForSequenceClassification, got ErnieMM"):
        DistillationRecipe(tagger).model(student, 64)


def test_options_become_a_recipe() -> None:
    assert recipe_of(OPTIONS, 1) is None
    recipe = recipe_of(OPTIONS | {"distill": "T", "augment": "ngram=0.5", "student_layers": 2, "layer_map": "1:2"}, 7)
    assert recipe.augmentation == Augmentation(ngram=0.5, copies=3, seed=7)
    assert (recipe.teacher, recipe.student_layers, recipe.layer_map) == ("T", 2, {1: 2})
    assert (recipe.temperature, recipe.weight) == (2.0, 0.5)
    with pytest.raises(InputError, match="--student-layers: expected --distill with a teacher besides"):
        recipe_of(OPTIONS | {"student_layers": 2}, 1)
    with pytest.raises(InputError, match="--augment-copies: expected --augment besides"):
        recipe_of(OPTIONS | {"distill": "T", "augment_copies": 2}, 1)
    with pytest.raises(InputError, match="--augment-copies 0: expected a whole number of at least 1"):
        recipe_of(OPTIONS | {"distill": "T", "augment": "unk=.1", "augment_copies": 0}, 1)
    with pytest.raises(InputError, match=r"--augment 'unk=2': unk must lie in \[0, 1\], got 2.0"):
        recipe_of(OPTIONS | {"distill": "T", "augment": "unk=2"}, 1)


@pytest.mark.slow
def test_parts_of_speech_are_read_and_checked() -> None:
    task = Classification(golden_tokenizer.build(), 64, pos_column="pos", text_pair_column="second")
    row = {"text": "a b", "second": "c", "label": "x"}
    assert task.example(row | {"pos": [["D", "N"], "V"]}).parts_of_speech == (("D", "N"), ("V",))
    assert task.example(row).parts_of_speech is None
    for wrong in (["D", "N"], "D N V", [["D", "N"], [1]], 3, [["D", "N"]]):
        with pytest.raises(ValueError, match=r"has 'pos' .*; expected one part of speech for each word between spaces"):
            task.example(row | {"pos": wrong})
    alone = Classification(golden_tokenizer.build(), 64, pos_column="pos")
    assert alone.example(row | {"pos": "D N"}).parts_of_speech == (("D", "N"),)


@pytest.mark.slow
def test_a_student_comes_out_of_the_driver(
    teacher: str, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With missing labels, accumulated batches, a wider teacher, a second call that finds it done, and a stop."""
    wide = save(tmp_path / "wide", 48)
    before = Path(wide, "model.safetensors").read_bytes()
    said: list[str] = []

    def run(out: str, weight: float = 0.7) -> dict[str, float]:
        recipe = DistillationRecipe(
            wide, student_layers=2, layer_map="0:0,1:2,2:4", weight=weight,
            augmentation=Augmentation(unk=0.2, pos=0.2, copies=2, seed=1),
        )  # fmt: skip
        asked = Asked(Classification, {"pos_column": "pos"})
        settings = {"epochs": 2, "batch_tokens": 128, "accumulate": 2, "learning_rate": 1e-3}
        return fine_tune(
            asked, lines, lines, model=teacher, out=str(tmp_path / out), settings=settings, recipe=recipe,
            dtype="float32", say=said.append,
        )  # fmt: skip

    figures = run("student")
    assert 0 <= figures["accuracy"] <= 1
    assert figures == run("student")
    assert any("complete already" in line for line in said)
    with pytest.raises(InputError, match=r"--distill-weight was 0\.7, is 0\.6"):
        run("student", 0.6)
    student = ErnieMForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.num_hidden_layers == 2
    assert not hasattr(student, PROJECTIONS)
    assert Path(wide, "model.safetensors").read_bytes() == before
    text = (tmp_path / "student" / "README.md").read_text("utf-8")
    assert "--distill-weight" in text
    # A run that is stopped gives the same, projections and all.
    teach, calls = Distillation.teach, []

    def stopping(self: Distillation, inputs: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return teach(self, inputs)

    monkeypatch.setattr(Distillation, "teach", stopping)
    with pytest.raises(StoppedError):
        run("again")
    assert run("again") == figures
    weights = ErnieMForSequenceClassification.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())


@pytest.mark.slow
def test_the_command(teacher: str, lines: str, tmp_path: Path) -> None:
    from erniem_fast.cli.main import app

    out = str(tmp_path / "student")
    arguments = ["finetune", "classify", lines, "--model", teacher, "--out", out, "--epochs", "1"]
    done = CliRunner().invoke(app, [*arguments, "--distill", teacher, "--student-layers", "1", "--layer-map", "1:4"])
    assert done.exit_code == 0, done.output
    assert ErnieMForSequenceClassification.from_pretrained(out).config.num_hidden_layers == 1
    done = CliRunner().invoke(app, [*arguments, "--temperature", "3"])
    assert done.exit_code == 2
    assert "--temperature: expected --distill with a teacher besides" in done.output
