"""Settings of sentence-transformers folders: what they make of texts is what sentence-transformers makes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.family_folders import MAX_TOKENS, save_family
from helpers.paths import ROOT
from helpers.sentence_folders import change_json, save_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from erniem_fast import Encoder
from erniem_fast.inference.settings import Normalize, SentenceSettings, prepare, prompt_length, read_settings

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.base.modules import Normalize as TheirNormalize
from sentence_transformers.base.modules import Transformer as TheirTransformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
slow = pytest.mark.slow
MAX = 24
"""Most tokens that the folders name: fewer than some of the texts have."""
Make = Callable[..., SentenceTransformer]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    lines = (ROOT / "erniem_fast" / "demo_data" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return ["a", "Wo ist der Bahnhof?", *(json.loads(line)["text"] for line in lines[:20])]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_encoder(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


@pytest.fixture
def make(encoders: Callable[[str], Path], tmp_path: Path) -> Make:
    """Save a SentenceTransformer in `tmp_path`: its encoder, a pooling and what follows."""

    def save(family: str, mode: Any, *more: nn.Module, include_prompt: bool = True, safe: bool = True, **options: Any):
        first = TheirTransformer(str(encoders(family)), max_seq_length=MAX)
        modules = [first, Pooling(first.get_embedding_dimension(), mode, include_prompt), *more]
        model = SentenceTransformer(modules=modules, device="cpu", **options).eval()
        with torch.no_grad():
            for parameter in (parameter for module in more for parameter in module.parameters()):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        model.save(str(tmp_path), create_model_card=False, safe_serialization=safe)
        return model

    return save


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


def vectors_of(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    return Encoder.from_pretrained(str(folder), dtype="float32", batch_tokens=200).encode(texts, **options)


def assert_same_vectors(folder: Path, model: SentenceTransformer, texts: list[str], prompt: str = "") -> None:
    expected = model.encode(texts, prompt=prompt, batch_size=8)
    found = vectors_of(folder, texts, prompt=prompt)
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


CHAINS: dict[str, tuple[Any, Callable[[], list[nn.Module]]]] = {
    "all modules": (
        ("weightedmean", "max"),
        lambda: [Dense(64, 20), Dropout(0.3), LayerNorm(20), Dense(20, 12, False, nn.Identity()), TheirNormalize()],
    ),
    "residual": ("mean", lambda: [Dense(32, 32, use_residual=True), Dense(32, 9, use_residual=True)]),
    "with weights": ("cls", lambda: [Dense(32, 10, activation_function=nn.PReLU())]),
    "softmax": ("cls", lambda: [Dense(32, 10, activation_function=nn.Softmax())]),
    "gelu": ("max", lambda: [Dense(32, 10, activation_function=nn.GELU()), TheirNormalize()]),
    **{mode: (mode, lambda: []) for mode in MODES},
    "three": (("lasttoken", "cls", "mean"), lambda: []),
}


@pytest.mark.parametrize(
    "chain", [name if name == "all modules" else pytest.param(name, marks=slow) for name in CHAINS]
)
@pytest.mark.parametrize("family", ["XLMRoberta", pytest.param("Bert", marks=slow), pytest.param("ErnieM", marks=slow)])
def test_vectors(family: str, chain: str, make: Make, texts: list[str], tmp_path: Path) -> None:
    """Texts of one token and texts that are cut among them."""
    mode, more = CHAINS[chain]
    model = make(family, mode, *more())
    assert_same_vectors(tmp_path, model, texts)
    assert read_settings(str(tmp_path)).max_seq_length == MAX


@pytest.mark.parametrize("family", ["Bert", pytest.param("XLMRoberta", marks=slow), pytest.param("ErnieM", marks=slow)])
@pytest.mark.parametrize("include_prompt", [pytest.param(True, marks=slow), False])
def test_prompts(family: str, include_prompt: bool, make: Make, texts: list[str], tmp_path: Path) -> None:
    prompts = {"query": "query: ", "document": "", "long": "Stelle den Satz dar, damit er gefunden wird: " * 3}
    model = make(
        family, MODES, include_prompt=include_prompt, prompts=prompts, default_prompt_name="query", truncate_dim=50
    )
    found = read_settings(str(tmp_path))
    assert found.prompts == prompts
    assert found.default_prompt_name == "query"
    assert found.include_prompt is include_prompt
    assert found.truncate_dim == 50
    model.truncate_dim = None
    change_json(tmp_path / "config_sentence_transformers.json", truncate_dim=None)
    for prompt in prompts.values():
        assert_same_vectors(tmp_path, model, texts, prompt)
    assert model.encode_query(texts[1]) == pytest.approx(vectors_of(tmp_path, texts[1:2])[0], abs=1e-5)


@settings(max_examples=10)
@given(prompt=st.text(st.characters(categories=("L", "Z", "P")), max_size=40), most=st.integers(4, 30))
def test_tokens_of_a_prompt(encoders: Callable[[str], Path], prompt: str, most: int) -> None:
    for family in ("Bert", "XLMRoberta"):
        module = TRANSFORMERS.setdefault(family, TheirTransformer(str(encoders(family))))
        module.max_seq_length = most
        module._prompt_length_mapping.clear()
        expected = module._get_prompt_length(prompt) if prompt else 0
        assert prompt_length(module.tokenizer, prompt, most) == expected


TRANSFORMERS: dict[str, TheirTransformer] = {}


def old_types(form: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """modules.json as older versions wrote it."""

    def change(entry: dict[str, Any]) -> dict[str, Any]:
        return entry | {"type": form.format(entry["type"].rsplit(".", 1)[-1])}

    return change


@pytest.mark.parametrize(
    "form", ["sentence_transformers.models.{0}", pytest.param("sentence_transformers.models.{0}.{0}", marks=slow)]
)
@pytest.mark.parametrize("subfolder", ["", pytest.param("0_Transformer", marks=slow)])
def test_a_folder_of_version_2(form: str, subfolder: str, make: Make, texts: list[str], tmp_path: Path) -> None:
    """Flags for the poolings, weights by pickle, max_seq_length and do_lower_case in a file of their own.

    The tokenizer's own length is not asked there.
    """
    make("Bert", ("cls", "mean"), Dense(64, 11), TheirNormalize(), safe=False)
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps([old_types(form)(entry) for entry in modules]))
    flags = {
        f"pooling_mode_{name}": name in ("cls_token", "mean_tokens")
        for name in ("max_tokens", "mean_tokens", "cls_token", "mean_sqrt_len_tokens")
    }
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | flags))
    (tmp_path / "3_Normalize" / "config.json").unlink()
    change_json(tmp_path / "2_Dense" / "config.json", activation_function=None)
    (tmp_path / "sentence_bert_config.json").unlink()
    change_json(tmp_path / "tokenizer_config.json", model_max_length=9)
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 17, "do_lower_case": true}')
    change_json(tmp_path / "config_sentence_transformers.json", prompts=None, default_prompt_name=None, model_type=None)
    if subfolder:
        move(tmp_path, subfolder)
    assert (tmp_path / "2_Dense" / "pytorch_model.bin").exists()
    found = read_settings(str(tmp_path))
    assert found.pooling == ("cls", "mean")
    assert found.max_seq_length == 17
    assert found.lowercase
    assert found.model_folder == subfolder
    assert isinstance(found.modules[-1], Normalize)
    assert_same_vectors(tmp_path, load(tmp_path), [*texts, "ΟΔΟΣ ÉCOLE", "[SEP] [sep]"])


def move(folder: Path, subfolder: str) -> None:
    """Put the first module's files into a subfolder."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = subfolder
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / subfolder).mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(folder / subfolder / file.name)


def test_our_module_and_the_length_of_its_tokenizer(make: Make, tmp_path: Path) -> None:
    make("XLMRoberta", "mean")
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["type"] = "erniem_fast.sentence_transformers.Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for given_length, expected in ((30, 30), (None, 42), (10**30, 42)):
        change_json(tmp_path / "tokenizer_config.json", model_max_length=given_length)
        found = read_settings(str(tmp_path))
        assert found.max_seq_length == expected == load(tmp_path)[0].config.max_position_embeddings or expected == 30
    assert found.pooling == ("mean",)
    assert found.modules == ()
    assert found.similarity == "cosine"


def test_a_pooling_that_the_modules_do_not_take(make: Make, texts: list[str], tmp_path: Path) -> None:
    """Another pooling of the same width is."""
    make("Bert", ("cls", "mean"), Dense(64, 5))
    encoder = Encoder.from_pretrained(str(tmp_path), dtype="float32")
    with pytest.raises(ValueError, match=r"pooling must join 2 vectors, .* as its own cls, mean; got max"):
        encoder.encode(texts, pooling="max")
    assert encoder.encode(texts, pooling=("max", "cls")).shape == (len(texts), 5)


def test_no_text_is_longer_than_the_model_takes(make: Make, tmp_path: Path) -> None:
    make("XLMRoberta", "mean")
    change_json(tmp_path / "sentence_bert_config.json", max_seq_length=10_000)
    assert Encoder.from_pretrained(str(tmp_path), dtype="float32").max_tokens == MAX_TOKENS


def test_a_plain_folder_gives_the_mean(encoders: Callable[[str], Path], tmp_path: Path) -> None:
    for folder in (encoders("Bert"), tmp_path):
        found = read_settings(str(folder))
        assert vars(found) == vars(SentenceSettings())


@pytest.mark.parametrize("family", ["XLMRoberta", "ErnieM", pytest.param("Bert", marks=slow)])
def test_lowercase_leaves_special_tokens(family: str, encoders: Callable[[str], Path]) -> None:
    module = TheirTransformer(str(encoders(family)), do_lower_case=True)
    plain = TheirTransformer(str(encoders(family)))
    prepare(plain.tokenizer, SentenceSettings(lowercase=True))
    words = ["ÉCOLE ΟΔΟΣ İI", f"A{plain.tokenizer.sep_token}B"]
    assert plain.tokenizer(words)["input_ids"] == module.tokenizer(words)["input_ids"]


def scores_of(folder: Path, pairs: list[tuple[str, str]], labels: int) -> np.ndarray:
    encoder = Encoder.from_pretrained(str(folder), dtype="float32", batch_tokens=200)
    if labels == 1:
        return np.array(list(encoder.stream(pairs, "rerank")))
    found = [{one["label"]: one["score"] for one in all_} for all_ in encoder.classify(pairs, top_k=None)]
    return np.array([[one[f"LABEL_{label}"] for label in range(labels)] for one in found])


OLD_KEYS: dict[str, Callable[[str], dict[str, Any]]] = {
    "version 5": lambda path: {"sentence_transformers": {"activation_fn": path, "version": "5.1.0"}},
    "version 3": lambda path: {"sbert_ce_default_activation_function": path},
}


CROSS_ENCODERS = [
    ("now", 1, None), ("version 3", 1, nn.Identity()), ("version 5", 3, None),
    *(pytest.param(form, 3, nn.Softmax(-1), marks=slow) for form in ("now", *OLD_KEYS)),
    *(pytest.param(form, 1, nn.Tanh(), marks=slow) for form in ("now", *OLD_KEYS)),
]  # fmt: skip


@pytest.mark.parametrize(("form", "labels", "function"), CROSS_ENCODERS, ids=str)
def test_the_activation_of_a_cross_encoder(
    form: str, labels: int, function: nn.Module | None, tmp_path: Path, texts: list[str]
) -> None:
    base = save_family(tmp_path / "base", "Bert", "ForSequenceClassification", num_labels=labels)
    folder = tmp_path / "saved"
    model = CrossEncoder(str(base), max_length=MAX, activation_fn=function, device="cpu")
    if form == "now":
        model.save(str(folder), create_model_card=False)
    else:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        cls = type(model.activation_fn)
        change_json(folder / "config.json", **OLD_KEYS[form](f"{cls.__module__}.{cls.__name__}"))
    pairs = [*zip(texts, reversed(texts), strict=True)]
    expected = CrossEncoder(str(folder), device="cpu").predict(pairs)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scores_of(folder, pairs, labels), expected, rtol=0, atol=1e-5)
    found = read_settings(str(folder))
    assert found.model_type == "CrossEncoder"
    assert found.max_seq_length == MAX
    assert type(found.activation) is type(model.activation_fn)
