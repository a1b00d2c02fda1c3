"""Saved folders name our classes, so that transformers finds them where nobody imported this package."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from helpers.golden_tokenizer import build, read_json
from helpers.pairs import AUTO, CLASSES, SIZES, TEXTS
from helpers.paths import ROOT
from huggingface_hub import ModelCard
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMTokenizer, reference
from erniem_fast.auto_map import SOURCE

FILE = "erniem_fast_auto.py"


@pytest.fixture(autouse=True)
def _modules_in_a_cache_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def make(name: str = "ErnieMModel", models: Any = erniem_fast, **changes: Any) -> Any:
    return getattr(models, name)(ErnieMConfig(**(SIZES | changes)))


@pytest.mark.parametrize("models", [erniem_fast, reference])
@pytest.mark.parametrize("name", CLASSES)
def test_every_saved_model_names_the_classes(tmp_path, name, models):
    folder = tmp_path / "model"
    make(name, models).save_pretrained(folder)
    found = read_json(folder / "config.json")["auto_map"]
    assert found.keys() == {"AutoConfig", *AUTO}
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", FILE}
    assert get_class_from_dynamic_module(found.pop("AutoConfig"), folder) is ErnieMConfig
    for auto_class, model_reference in found.items():
        cls = get_class_from_dynamic_module(model_reference, folder)
        assert cls is getattr(erniem_fast, AUTO[auto_class])
        assert cls is getattr(transformers, auto_class)._model_mapping[ErnieMConfig]


def test_the_module_has_two_lines():
    comment, code = SOURCE.splitlines()
    assert "pip install erniem_fast" in comment
    assert code.startswith("from erniem_fast import ")


def test_configuration_and_tokenizer_saved_alone(tmp_path):
    ErnieMConfig(**SIZES).save_pretrained(tmp_path / "config")
    assert {path.name for path in (tmp_path / "config").iterdir()} == {"config.json", FILE}
    config = transformers.AutoConfig.from_pretrained(tmp_path / "config", trust_remote_code=True)
    assert type(config) is ErnieMConfig

    saved = build().save_pretrained(tmp_path / "tokenizer", filename_prefix="x")
    assert str(tmp_path / "tokenizer" / FILE) in saved
    slow, fast = read_json(tmp_path / "tokenizer" / "x-tokenizer_config.json")["auto_map"]["AutoTokenizer"]
    assert fast is None
    assert get_class_from_dynamic_module(slow, tmp_path / "tokenizer") is ErnieMTokenizer


def test_loaded_and_saved_again_it_is_the_same_folder(tmp_path):
    tokenizer = build()
    make("ErnieMForTokenClassification", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    auto = transformers.AutoModelForTokenClassification
    auto.from_pretrained(tmp_path / "one", trust_remote_code=True).save_pretrained(tmp_path / "two")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert type(loaded) is ErnieMTokenizer
    loaded.save_pretrained(tmp_path / "two")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    for name in ("config.json", FILE, "vocab.txt", "sentencepiece.bpe.model"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    one, two = (read_json(tmp_path / name / "tokenizer_config.json") for name in ("one", "two"))
    assert one["auto_map"] == two["auto_map"]


def test_names_of_modules_that_are_not_in_the_folder_are_replaced(tmp_path):
    config = ErnieMConfig(**SIZES, auto_map={"AutoModel": "somebody/model--modeling.Model", "AutoConfig": "gone.C"})
    config.save_pretrained(tmp_path)
    names = read_json(tmp_path / "config.json")["auto_map"]
    assert (names["AutoModel"], names["AutoConfig"]) == (
        "erniem_fast_auto.ErnieMModel",
        "erniem_fast_auto.ErnieMConfig",
    )


@pytest.mark.parametrize(("auto_class", "name"), [("AutoConfig", "ErnieMConfig"), *AUTO.items()])
@pytest.mark.parametrize("as_class", [True, False])
def test_registering_copies_nothing(tmp_path, auto_class, name, as_class):
    cls = getattr(erniem_fast, name)
    cls.register_for_auto_class(getattr(transformers, auto_class) if as_class else auto_class)
    assert cls._auto_class is None
    make("ErnieMModel" if name == "ErnieMConfig" else name).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", FILE}


def test_registering_the_tokenizer_copies_nothing(tmp_path):
    ErnieMTokenizer.register_for_auto_class()
    build().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.py")] == [FILE]


@pytest.mark.parametrize(
    ("name", "auto_class", "accepted"),
    [
        ("ErnieMForSequenceClassification", "AutoModel", "expected AutoModelForSequenceClassification"),
        ("ErnieMForInformationExtraction", "AutoModel", "no Auto class builds it"),
        ("ErnieMModel", "AutoNothing", "expected AutoModel"),
        ("ErnieMModel", 5, "expected AutoModel"),
        ("ErnieMConfig", "AutoModel", "expected AutoConfig"),
        ("ErnieMTokenizer", "AutoConfig", "expected AutoTokenizer"),
    ],
)
def test_registering_for_another_class_raises(name, auto_class, accepted):
    with pytest.raises(ValueError, match=f"auto_class={auto_class!r}: .* {accepted}"):
        getattr(erniem_fast, name).register_for_auto_class(auto_class)


MODULE_OF_A_USER = """
import erniem_fast

class Model(erniem_fast.ErnieMForSequenceClassification):
    pass

class AnotherConfig(erniem_fast.ErnieMConfig):
    model_type = "another"

class ATokenizer(erniem_fast.ErnieMTokenizer):
    pass
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A module of a user's with subclasses of ours."""
    (tmp_path / "of_a_user.py").write_text(MODULE_OF_A_USER)
    spec = importlib.util.spec_from_file_location("of_a_user", tmp_path / "of_a_user.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "of_a_user", module)
    spec.loader.exec_module(module)
    return module


def test_a_users_model_that_is_registered_is_copied(tmp_path, user):
    user.Model.register_for_auto_class("AutoModelForSequenceClassification")
    assert erniem_fast.ErnieMForSequenceClassification._auto_class is None
    model = user.Model(ErnieMConfig(**SIZES))
    for folder in (tmp_path / "one", tmp_path / "two"):
        model.save_pretrained(folder)
        names = read_json(folder / "config.json")["auto_map"]
        assert names["AutoModelForSequenceClassification"] == "of_a_user.Model"
        assert names["AutoModel"] == "erniem_fast_auto.ErnieMModel"
        assert {path.name for path in folder.glob("*.py")} == {"of_a_user.py", FILE}
    # Saved as our class, the folder no longer holds the user's module.
    make("ErnieMForSequenceClassification", auto_map=names).save_pretrained(tmp_path / "three")
    assert "of_a_user" not in (tmp_path / "three" / "config.json").read_text()


def test_a_users_configuration_of_another_type_is_not_ours(tmp_path, user):
    user.AnotherConfig(**SIZES).save_pretrained(tmp_path / "plain")
    assert not read_json(tmp_path / "plain" / "config.json").get("auto_map")
    user.AnotherConfig.register_for_auto_class()
    user.AnotherConfig(**SIZES).save_pretrained(tmp_path / "registered")
    names = read_json(tmp_path / "registered" / "config.json")["auto_map"]
    assert names == {"AutoConfig": "of_a_user.AnotherConfig"}


def test_a_users_tokenizer_changes_no_other_folder(tmp_path, user):
    plain = build()
    registered = user.ATokenizer(plain.sentencepiece_model_ckpt)
    user.ATokenizer.register_for_auto_class()
    registered.save_pretrained(tmp_path / "registered")
    plain.save_pretrained(tmp_path / "plain")
    names = [read_json(tmp_path / name / "tokenizer_config.json")["auto_map"] for name in ("registered", "plain")]
    assert [found["AutoTokenizer"][0] for found in names] == [
        "of_a_user.ATokenizer",
        "erniem_fast_auto.ErnieMTokenizer",
    ]


class Hub:
    """The calls of huggingface_hub that an upload makes."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        return type("Url", (), {"repo_id": repo_id})

    def create_branch(self, **options: Any) -> None: ...

    def create_commit(self, operations: list, **options: Any) -> None:
        self.files |= {operation.path_in_repo for operation in operations}


@pytest.mark.parametrize("what", ["model", "configuration", "tokenizer"])
@pytest.mark.parametrize("how", ["push_to_hub()", "save_pretrained, new folder", "save_pretrained, again"])
def test_the_module_is_pushed_to_the_hub(tmp_path, monkeypatch, what, how):
    hub = Hub()
    for module in ("utils.hub", "modeling_utils", "configuration_utils", "tokenization_utils_base"):
        monkeypatch.setattr(f"transformers.{module}.hf_api", lambda *arguments, **options: hub)
    monkeypatch.setattr("transformers.utils.hub.ModelCard.load", lambda *arguments, **options: ModelCard("---\n---\n"))
    one = {"model": make, "configuration": lambda: ErnieMConfig(**SIZES), "tokenizer": build}[what]()
    folder = tmp_path / "saved"
    if how == "push_to_hub()":
        one.push_to_hub("user/model")
    else:
        if how == "save_pretrained, again":
            one.save_pretrained(folder)
        one.save_pretrained(str(folder), push_to_hub=True, repo_id="user/model")
    assert hub.files >= {FILE, "tokenizer_config.json" if what == "tokenizer" else "config.json"}


NAMES = [
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "kernels-community/flash-attn2",
    "a/b@v1:c",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_attention_are_accepted_and_change_nothing(tmp_path, monkeypatch, caplog, name):
    monkeypatch.setattr("erniem_fast.validation._warned", set())
    make().save_pretrained(tmp_path)
    assert not caplog.records
    for load in (erniem_fast.ErnieMModel, reference.ErnieMModel, transformers.AutoModel):
        model = load.from_pretrained(tmp_path, attn_implementation=name)
        assert model.config._attn_implementation == "eager"
    model.set_attn_implementation(name)
    transformers.AutoModel.from_config(ErnieMConfig(**SIZES), attn_implementation=name)
    erniem_fast.ErnieMModel(ErnieMConfig(**SIZES, attn_implementation=name))
    (record,) = (record for record in caplog.records if "attn_implementation" in record.message)
    assert repr(name) in record.message
    assert "own attention" in record.message
    # Names of our own choice are said nothing about.
    caplog.clear()
    for plain in ("eager", None):
        erniem_fast.ErnieMModel(ErnieMConfig(**SIZES, attn_implementation=plain))
    assert not caplog.records


@pytest.mark.parametrize("name", ["flash_attention_9", "spda", "", 5, "user/"])
def test_unknown_names_of_attention_raise(name):
    with pytest.raises(ValueError, match=r"attn_implementation=.*expected one of eager, .*sdpa"):
        erniem_fast.ErnieMModel(ErnieMConfig(**SIZES, attn_implementation=name))
    with pytest.raises(ValueError, match=r"attn_implementation="):
        make().set_attn_implementation(name)


# Another process: this one has imported the package, and thereby registered its classes.
def run(code: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


IN_A_NEW_PROCESS = """
import json, sys
import transformers
assert "erniem_fast" not in sys.modules
folder, texts, found = sys.argv[1], json.loads(sys.argv[2]), {}
if sys.argv[3] == "transformers":
    found["config"] = type(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__
    found["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(texts)["input_ids"]
    pipeline = transformers.pipeline("text-classification", folder, trust_remote_code=True)
    found["scores"] = [row["score"] for row in pipeline(texts)]
    for name in json.loads(sys.argv[4]):
        options = {"trust_remote_code": True, "ignore_mismatched_sizes": True}  # multiple choice has one label
        model = getattr(transformers, name).from_pretrained(folder, **options)
        found[name] = f"{type(model).__module__}.{type(model).__name__}"
else:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    found["vectors"] = SentenceTransformer(folder, trust_remote_code=True).encode(texts).tolist()
    cross_encoder = CrossEncoder(folder, trust_remote_code=True)
    found["scores"] = cross_encoder.predict([(texts[0], text) for text in texts], convert_to_tensor=True).tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = build()
    model = make("ErnieMForSequenceClassification", vocab_size=len(tokenizer)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.mark.slow
def test_transformers_loads_a_folder_in_a_new_process(tmp_path, classifier):
    folder, model, tokenizer = classifier
    arguments = (folder, json.dumps(TEXTS), "transformers", json.dumps([*AUTO]))
    done = run(IN_A_NEW_PROCESS, *arguments, HF_MODULES_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["config"] == "ErnieMConfig"
    assert found["tokenizer"] == tokenizer(TEXTS)["input_ids"]
    logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    assert found["scores"] == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)
    assert {name: found[name] for name in AUTO} == {
        auto_class: f"erniem_fast.modeling.{name}" for auto_class, name in AUTO.items()
    }


@pytest.mark.slow
def test_sentence_transformers_loads_a_folder_in_a_new_process(tmp_path, classifier):
    pytest.importorskip("sentence_transformers")
    folder, model, tokenizer = classifier
    done = run(IN_A_NEW_PROCESS, folder, json.dumps(TEXTS), "other", HF_MODULES_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for text, vector, scores in zip(TEXTS, found["vectors"], found["scores"], strict=True):
        states = model.ernie_m(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert vector == pytest.approx(states[0].mean(0).tolist(), abs=1e-5)
        logits = model(**tokenizer(TEXTS[0], text, return_tensors="pt")).logits
        assert scores == pytest.approx(logits[0].tolist(), abs=1e-5)


WITHOUT_THE_PACKAGE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "erniem_fast":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Nothing())
import transformers
transformers.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


@pytest.mark.slow
def test_without_the_package_the_error_says_what_to_install(tmp_path, classifier):
    done = run(WITHOUT_THE_PACKAGE, classifier[0], HF_MODULES_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "pip install erniem_fast" in last


@pytest.mark.slow
def test_trainer_checkpoints_load_by_themselves(tmp_path):
    tokenizer = build()
    model = make("ErnieMForSequenceClassification", vocab_size=len(tokenizer))
    rows = [tokenizer(text) | {"labels": index % 2} for index, text in enumerate(TEXTS)]
    options = transformers.TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True)
    transformers.Trainer(model, options, train_dataset=rows, processing_class=tokenizer).train()
    for name in ("config.json", "tokenizer_config.json"):
        assert "erniem_fast_auto" in (tmp_path / "checkpoint-1" / name).read_text()
    assert Path(tmp_path / "checkpoint-1" / FILE).read_text() == SOURCE
