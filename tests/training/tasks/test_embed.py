"""Fine-tuning of sentence vectors: loss, evaluation and saved folders are those of the mean of a text's tokens."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders, golden_tokenizer, pairs

from erniem_fast import Encoder, padding_free
from erniem_fast.files.errors import InputError
from erniem_fast.files.rows import BadLines
from erniem_fast.files.source import open_source
from erniem_fast.training.collators import PackedCollator
from erniem_fast.training.contrastive import in_batch_softmax
from erniem_fast.training.tasks.embed import Embedding, Example

TOKENIZER = golden_tokenizer.build()
TEXTS = [
    ("Wo ist der Bahnhof?", "Where is the station?"),
    ("Ich bin müde.", "I'm tired."),
    ("今天天气很好。", "The weather is nice today."),
    ("أين المحطة؟", "Where is the station?"),
    ("मुझे दिल्ली में रहना पसंद है।", "I like living in Delhi, which is a large city with many people and cars."),
]


def task_of(max_length: int = 512, tokenizer: Any = TOKENIZER, **options: Any) -> Embedding:
    return Embedding(tokenizer, max_length, **options)


def read(task: Embedding, path: Path, content: str, bad: BadLines | None = None) -> list[Example]:
    path.write_text(content, encoding="utf-8")
    with open_source(str(path), accepted=task.kinds, what="TRAIN") as source:
        return task.read(source, bad or BadLines())


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def mean_pooled(model: Any, text: str, tokenizer: Any, max_length: int) -> torch.Tensor:
    """Vector of a text alone."""
    ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return model(torch.tensor([ids])).last_hidden_state[0].mean(0)


@pytest.mark.parametrize("max_length", [64, 9])
def test_loss_and_gradients_are_those_of_each_text_alone(max_length: int) -> None:
    plain, model = pairs.make(dtype=torch.float32, vocab_size=len(TOKENIZER))
    task = task_of(max_length, temperature=0.1)
    examples = [Example((*texts, "negative " + texts[0])) for texts in TEXTS]
    features = task.features(examples, training=True)
    assert bool(task.notes) == (max_length == 9)
    batch = PackedCollator.for_model(model)(features)
    loss, outputs = task.objective(model)(model, batch, None)
    vectors = [[mean_pooled(plain, text, TOKENIZER, max_length) for text in one.texts] for one in examples]
    expected = torch.stack([torch.stack(one) for one in vectors])
    pairs.assert_close(outputs["embeddings"], expected)
    losses = in_batch_softmax(expected, 0.1)
    pairs.assert_close(loss, losses.mean())
    by_items, _ = task.objective(model)(model, batch, torch.tensor(7))
    pairs.assert_close(by_items, losses.sum() / 7)
    loss.backward()
    losses.mean().backward()
    pairs.assert_same_gradients(model, plain, 1e-4)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == pairs.gradients(model).keys(), "plain DDP waits for every gradient"


def test_two_runs_are_bitwise_the_same() -> None:
    _, model = pairs.make(dtype=torch.float32, vocab_size=len(TOKENIZER))
    task = task_of()
    batch = PackedCollator.for_model(model)(task.features([Example(texts) for texts in TEXTS], training=True))
    found = []
    for _ in range(2):
        model.zero_grad()
        loss, _ = task.objective(model)(model, batch, None)
        loss.backward()
        found.append([loss.detach(), *(gradient.clone() for gradient in pairs.gradients(model).values())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_files_of_every_form(tmp_path: Path) -> None:
    task = task_of()
    expected = [Example(texts) for texts in TEXTS]
    rows = lines([{"anchor": one, "positive": other, "id": 3} for one, other in TEXTS])
    assert read(task, tmp_path / "pairs.jsonl", rows) == expected
    table = "anchor\tpositive\n" + "".join(f"{one}\t{other}\n" for one, other in TEXTS)
    assert read(task, tmp_path / "pairs.tsv", table) == expected
    named = task_of(anchor_column="de", positive_column="en")
    content = "de,en\n" + "".join(f'"{one}","{other}"\n' for one, other in TEXTS)
    assert read(named, tmp_path / "pairs.csv", content) == expected
    rows = lines([{"anchor": "a", "positive": "b", "negative": "c"}])
    assert read(task, tmp_path / "three.jsonl", rows) == [Example(("a", "b", "c"))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": "a"}, "line 2 has no 'positive'"),
        ({"anchor": "a", "positive": " "}, "line 2 has an empty 'positive'"),
        ({"anchor": "a", "positive": 2}, "line 2 has 'positive' of type int"),
        ({"anchor": "a", "positive": "b", "negative": "c"}, "line 2 has 'negative', unlike the first line"),
    ],
)
def test_bad_lines_are_named_or_counted(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    task, content = task_of(), lines([{"anchor": "good", "positive": "one"}, row])
    with pytest.raises(InputError) as raised:
        read(task, tmp_path / "pairs.jsonl", content)
    assert message in str(raised.value)
    skipped = BadLines(skip=True)
    assert read(task, tmp_path / "pairs.jsonl", content, skipped) == [Example(("good", "one"))]
    assert skipped.count == 1


def test_negatives_that_are_asked_for_must_be_in_train(tmp_path: Path) -> None:
    without, rows = "anchor\tpositive\nx\ty\n", "anchor\tpositive\tneg\na\tb\tc\n"
    task = task_of(negative_column="neg")
    train, dev = read(task, tmp_path / "train.tsv", rows), read(task, tmp_path / "dev.tsv", without)
    task.fit(train, dev, None)
    assert (train, dev) == ([Example(("a", "b", "c"))], [Example(("x", "y"))])
    task = task_of(negative_column="neg2")
    train = read(task, tmp_path / "train.tsv", rows)
    with pytest.raises(InputError, match=r"^--negative-column 'neg2': TRAIN has no such column; expected one of 'anch"):
        task.fit(train, dev, None)
    task_of().fit(train, dev, None)


def test_options_that_can_not_be_right_are_refused() -> None:
    for options in ({"loss": "triplet"}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            task_of(**options)


def test_batches_of_one_pair_are_counted_or_refused() -> None:
    pairs_alone, with_negatives = [Example(("a", "b"))] * 5, [Example(("a", "b", "c"))] * 5
    task = task_of()
    task.check_batches(np.array([1, 3, 1]), pairs_alone)
    assert [note[:15] for note in task.notes] == ["2 of 3 batches "]
    with pytest.raises(InputError, match="--batch-tokens: every batch holds one pair"):
        task.check_batches(np.array([1, 1]), pairs_alone)
    task = task_of()
    task.check_batches(np.array([2, 3]), pairs_alone)
    task.check_batches(np.array([1, 1]), with_negatives)
    assert task.notes == []


def test_accuracy_by_hand() -> None:
    task = task_of()
    examples = [Example(("a", "same")), Example(("b", "same")), Example(("c", "z"))]
    anchors = np.array([[1.0, 0.0], [0.8, 0.1], [-1.0, 0.2]])
    positives = np.array([[3.0, 0.1], [0.1, 5.0], [1.0, 0.0]])
    # a finds z; b finds the first text, equal to its own; c finds the second. The others find a, b, a.
    predictions: Any = SimpleNamespace(predictions=np.stack((anchors, positives), axis=1))
    figures = task.metrics(predictions, examples, [])
    assert figures == pytest.approx({"accuracy_of_anchors": 1 / 3, "accuracy_of_positives": 1 / 3, "accuracy": 1 / 3})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _, model = pairs.make(dtype=torch.float32, vocab_size=len(TOKENIZER))
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    task_of(12).save_files(tmp_path / "model", model)
    return tmp_path / "model"


def vectors_of(folder: Path, texts: list[str]) -> np.ndarray:
    from erniem_fast import ErnieMModel

    model = ErnieMModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = torch.stack([mean_pooled(model, text, TOKENIZER, 12) for text in texts])
    return torch.nn.functional.normalize(found, dim=-1).numpy()


def test_saved_folders_load_in_the_engine(folder: Path) -> None:
    texts = [text for pair in TEXTS for text in pair]
    encoder = Encoder.from_pretrained(folder, dtype="float32")
    assert encoder.max_tokens == 12
    np.testing.assert_allclose(encoder.encode(texts), vectors_of(folder, texts), atol=1e-5)
    assert encoder.settings.similarity == "cosine"


@pytest.mark.slow
def test_saved_folders_load_in_sentence_transformers(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [text for pair in TEXTS for text in pair]
    model = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(model.encode(texts), vectors_of(folder, texts), atol=1e-5)
    assert model.max_seq_length == 12
    assert model.similarity_fn_name == "cosine"


@pytest.mark.slow
@pytest.mark.parametrize("family", family_folders.FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    if family == "XLM":
        pytest.importorskip("sacremoses")
    model, tokenizer = family_folders.build(family)
    model = padding_free(model).eval()
    task = task_of(20, tokenizer)
    features = task.features([Example(texts) for texts in TEXTS], training=True)
    batch = PackedCollator.for_model(model)(features)
    loss, outputs = task.objective(model)(model, batch, None)
    loss.backward()
    with torch.no_grad():
        rows = [row for feature in features for row in feature["input_ids"]]
        alone = torch.stack([model(torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows])
    pairs.assert_close(outputs["embeddings"].flatten(0, 1), alone)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == pairs.gradients(model).keys()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    task.save_files(folder, model)
    if family != "XLM":  # whose tokenizer the engine asks more of
        shutil.copy(folder / "config.json", tmp_path)
        vectors = Encoder.from_pretrained(folder, dtype="float32").encode([texts[0] for texts in TEXTS])
        expected = torch.nn.functional.normalize(alone[::2], dim=-1)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
