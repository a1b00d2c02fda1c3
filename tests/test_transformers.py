"""The models among what they live with: Auto classes, pipelines, Trainer, peft, accelerate, hooks, autocast."""

import copy
import io
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments, pipeline

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMTokenizer, reference

TOKENIZER = Path(__file__).parent / "golden" / "tokenizer"
AUTO = {
    "AutoModel": "ErnieMModel",
    "AutoModelForMaskedLM": "ErnieMForMaskedLM",
    "AutoModelForMultipleChoice": "ErnieMForMultipleChoice",
    "AutoModelForQuestionAnswering": "ErnieMForQuestionAnswering",
    "AutoModelForSequenceClassification": "ErnieMForSequenceClassification",
    "AutoModelForTokenClassification": "ErnieMForTokenClassification",
}
CLASSES = [*AUTO.values(), "ErnieMForInformationExtraction"]
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}
LENGTHS = (7, 3, 10, 1)
TEXTS = ["The cat sat on the mat.", "Paris", "Où est la gare la plus proche, s'il vous plaît ?", "今日は良い天気です。"]


def make(name: str = "ErnieMModel", dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[Any, Any]:
    """The reference and the fast model with the same random parameters, none of them zero, in eval mode."""
    plain = getattr(reference, name)(ErnieMConfig(**(SIZES | changes))).to(dtype).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return plain, as_fast(plain)


def as_fast(plain: Any) -> Any:
    """A new fast model with a model's weights."""
    fast = getattr(erniem_fast, type(plain).__name__)(copy.deepcopy(plain.config)).to(plain.dtype)
    fast.load_state_dict(plain.state_dict())
    return fast.train(plain.training)


def as_reference(fast: Any) -> Any:
    """A new reference model with a model's weights: it caches nothing."""
    plain = getattr(reference, type(fast).__name__)(copy.deepcopy(fast.config)).to(fast.dtype)
    plain.load_state_dict(fast.state_dict())
    return plain.train(fast.training)


def batch(lengths: tuple[int, ...] = LENGTHS, vocab_size: int = 100) -> dict[str, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask == 1, torch.randint(2, vocab_size, mask.shape), 1)
    return {"input_ids": ids, "attention_mask": mask}


def labels_for(name: str, inputs: dict[str, Tensor], num_labels: int = 2) -> dict[str, Tensor]:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    lengths = mask.sum(1)
    if name == "ErnieMForSequenceClassification":
        return {"labels": torch.randint(num_labels, (len(ids),))}
    if name == "ErnieMForQuestionAnswering":
        return {"start_positions": torch.randint(100, lengths.shape) % lengths, "end_positions": lengths - 1}
    if name == "ErnieMForInformationExtraction":
        return {"start_positions": torch.randint(2, ids.shape), "end_positions": torch.randint(2, ids.shape)}
    limit = 100 if name == "ErnieMForMaskedLM" else num_labels
    return {"labels": torch.where(mask == 1, torch.randint(limit, ids.shape), -100)}


def real(value: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """What stands at real tokens, in one row each; anything that isn't a token's unchanged."""
    mask = inputs["attention_mask"].bool()
    return value[mask] if value.shape[:2] == mask.shape else value


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


def assert_agree(found: Any, expected: Any, inputs: dict[str, Tensor], tolerance: float = 1e-5, **options: Any) -> None:
    one, other = found(**inputs, **options), expected(**inputs, **options)
    keys = [key for key, value in other.items() if isinstance(value, Tensor)]
    assert keys
    for key in keys:
        assert_close(real(one[key], inputs), real(other[key], inputs), tolerance)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    one, other = gradients(found), gradients(expected)
    assert one.keys() == other.keys()
    assert one
    for name, grad in other.items():
        scale = max(1.0, float(grad.abs().max()))
        assert_close(one[name] / scale, grad / scale, tolerance)


def parent_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


# Registration


def test_auto_classes(tmp_path: Path) -> None:
    config = ErnieMConfig(**SIZES)
    for auto, name in AUTO.items():
        cls = getattr(erniem_fast, name)
        assert type(getattr(transformers, auto).from_config(config)) is cls
        cls(config).save_pretrained(tmp_path / name)
        assert type(getattr(transformers, auto).from_pretrained(tmp_path / name)) is cls
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "ErnieMModel")) is ErnieMConfig
    assert type(transformers.AutoConfig.for_model("ernie_m")) is ErnieMConfig
    for file in ("vocab.txt", "sentencepiece.bpe.model"):
        shutil.copy(TOKENIZER / file, tmp_path / "ErnieMModel")
    assert type(transformers.AutoTokenizer.from_pretrained(tmp_path / "ErnieMModel")) is ErnieMTokenizer


def test_importing_the_package_is_enough(tmp_path: Path) -> None:
    erniem_fast.ErnieMModel(ErnieMConfig(**SIZES)).save_pretrained(tmp_path)
    for file in ("vocab.txt", "sentencepiece.bpe.model"):
        shutil.copy(TOKENIZER / file, tmp_path)
    lines = [
        "import sys, erniem_fast",
        f"from transformers import AutoConfig, AutoTokenizer, {', '.join(AUTO)}",
        "import transformers",
        "print(type(AutoConfig.from_pretrained(sys.argv[1])).__module__)",
        "print(type(AutoTokenizer.from_pretrained(sys.argv[1])).__module__)",
        f"for name in {list(AUTO)}:",
        "    print(type(getattr(transformers, name).from_pretrained(sys.argv[1])).__name__)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["erniem_fast.configuration", "erniem_fast.tokenization", *AUTO.values()]


# Pipelines


@pytest.fixture(scope="module")
def tokenizer() -> ErnieMTokenizer:
    return ErnieMTokenizer(TOKENIZER / "sentencepiece.bpe.model", TOKENIZER / "vocab.txt")


def pipeline_model(name: str, tokenizer: ErnieMTokenizer, **changes: Any) -> Any:
    return make(name, vocab_size=len(tokenizer), max_position_embeddings=130, **changes)


def run_alone(plain: Any, tokenizer: ErnieMTokenizer, *text: str) -> Any:
    with torch.no_grad():
        return plain(**tokenizer(*text, return_tensors="pt"))


def test_text_classification(tokenizer: ErnieMTokenizer) -> None:
    plain, fast = pipeline_model("ErnieMForSequenceClassification", tokenizer, id2label={0: "no", 1: "yes", 2: "may"})
    pipe = pipeline("text-classification", fast, tokenizer=tokenizer, device="cpu", top_k=None)
    for batch_size in (1, 3):
        for text, scores in zip(TEXTS, pipe(TEXTS, batch_size=batch_size), strict=True):
            expected = run_alone(plain, tokenizer, text).logits.softmax(-1)[0]
            found = {score["label"]: score["score"] for score in scores}
            assert_close(torch.tensor([found[label] for label in ("no", "yes", "may")]), expected)
    (pair,) = pipe([{"text": TEXTS[0], "text_pair": TEXTS[2]}])
    best = max(pair, key=lambda score: score["score"])
    expected = run_alone(plain, tokenizer, TEXTS[0], TEXTS[2]).logits.softmax(-1)[0]
    assert best["label"] == ("no", "yes", "may")[int(expected.argmax())]
    assert_close(torch.tensor(best["score"]), expected.max())


def test_zero_shot_classification(tokenizer: ErnieMTokenizer) -> None:
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    plain, fast = pipeline_model(
        "ErnieMForSequenceClassification", tokenizer, id2label=names, label2id={v: k for k, v in names.items()}
    )
    pipe = pipeline("zero-shot-classification", fast, tokenizer=tokenizer, device="cpu")
    candidates = ["politique", "économie et finances", "sport"]
    logits = [run_alone(plain, tokenizer, TEXTS[2], f"Ce texte parle de {one}.").logits[0] for one in candidates]
    for batch_size in (1, 3):
        result = pipe(TEXTS[2], candidates, hypothesis_template="Ce texte parle de {}.", batch_size=batch_size)
        scores = dict(zip(result["labels"], result["scores"], strict=True))
        expected = torch.stack([row[0] for row in logits]).softmax(0)
        assert_close(torch.tensor([scores[one] for one in candidates]), expected)
        result = pipe(
            TEXTS[2], candidates, hypothesis_template="Ce texte parle de {}.", multi_label=True, batch_size=batch_size
        )
        scores = dict(zip(result["labels"], result["scores"], strict=True))
        expected = torch.stack([row[[2, 0]].softmax(0)[1] for row in logits])
        assert_close(torch.tensor([scores[one] for one in candidates]), expected)


def test_token_classification(tokenizer: ErnieMTokenizer) -> None:
    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    plain, fast = pipeline_model("ErnieMForTokenClassification", tokenizer, id2label=names)
    pipe = pipeline(
        "token-classification", fast, tokenizer=tokenizer, device="cpu", ignore_labels=[], aggregation_strategy="none"
    )
    for batch_size in (1, 3):
        for text, found in zip(TEXTS, pipe(TEXTS, batch_size=batch_size), strict=True):
            scores = run_alone(plain, tokenizer, text).logits.softmax(-1)[0, 1:-1]
            assert [token["word"] for token in found] == tokenizer.tokenize(text)
            assert [token["entity"] for token in found] == [names[i] for i in scores.argmax(-1).tolist()]
            assert_close(torch.tensor([token["score"] for token in found]), scores.amax(-1))
    simple = pipeline(
        "token-classification", fast, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple", ignore_labels=[]
    )
    for text, groups in zip(TEXTS, simple(TEXTS), strict=True):
        tokens = pipe(text)
        # Neighbours of one entity go together, and a B- starts another.
        expected: list[list[Any]] = []
        for token in tokens:
            entity = token["entity"].split("-")[-1]
            if not expected or expected[-1][0] != entity or token["entity"].startswith("B-"):
                expected.append([entity, []])
            expected[-1][1].append(float(token["score"]))
        assert [group["entity_group"] for group in groups] == [entity for entity, _ in expected]
        means = torch.tensor([sum(scores) / len(scores) for _, scores in expected])
        assert_close(torch.tensor([float(group["score"]) for group in groups]), means)


def test_feature_extraction(tokenizer: ErnieMTokenizer) -> None:
    plain, fast = pipeline_model("ErnieMModel", tokenizer)
    pipe = pipeline("feature-extraction", fast, tokenizer=tokenizer, device="cpu")
    for text, found in zip(TEXTS, pipe(TEXTS), strict=True):
        assert_close(torch.tensor(found), run_alone(plain, tokenizer, text).last_hidden_state)


def test_fill_mask(tokenizer: ErnieMTokenizer) -> None:
    plain, fast = pipeline_model("ErnieMForMaskedLM", tokenizer)
    pipe = pipeline("fill-mask", fast, tokenizer=tokenizer, device="cpu", top_k=4)
    texts = ["The [MASK] sat on the mat.", "Où est la gare la plus [MASK], s'il vous plaît ?"]
    for batch_size in (1, 2):
        for text, found in zip(texts, pipe(texts, batch_size=batch_size), strict=True):
            place = tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)
            expected = run_alone(plain, tokenizer, text).logits[0, place].softmax(-1).topk(4)
            assert [candidate["token"] for candidate in found] == expected.indices.tolist()
            assert_close(torch.tensor([candidate["score"] for candidate in found]), expected.values)


# Training

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def train(model: Any, folder: Path, data: list[dict[str, Any]], collator: Any = None, **options: Any) -> list[float]:
    """Train with plain gradient descent; the losses that were logged, one an optimiser step."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, max_grad_norm=0.0,
        disable_tqdm=True, dataloader_drop_last=False, remove_unused_columns=False, seed=7, **options,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        optimizers=(sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_with_gradient_accumulation(tmp_path: Path, checkpointing: bool) -> None:
    """Losses and weights of a plain loop: each step sees all the data, in four parts."""
    plain, fast = make("ErnieMForSequenceClassification", num_labels=3, **NO_DROPOUT)
    inputs = batch((9, 3, 5, 2, 7, 7, 1, 6))
    inputs |= labels_for("ErnieMForSequenceClassification", inputs, 3)
    data = [{key: value[row] for key, value in inputs.items()} for row in range(8)]
    before = {name: value.clone() for name, value in fast.state_dict().items()}
    logged = train(
        fast, tmp_path, data, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=3,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    sgd = torch.optim.SGD(plain.train().parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = plain(**inputs).loss
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    # Trainer rounds what it logs.
    assert_close(torch.tensor(logged), torch.tensor(losses), 2e-4)
    for name, value in plain.state_dict().items():
        assert_close(fast.state_dict()[name], value, 2e-5)
        # A constant added to all scores of a softmax changes nothing.
        assert not torch.equal(value, before[name]) or "k_proj.bias" in name
    fast.eval()
    plain.eval()
    with torch.no_grad():
        assert_agree(fast, plain, inputs, 1e-4)


def features(inputs: dict[str, Tensor]) -> list[dict[str, list[int]]]:
    rows = zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool(), strict=True)
    return [{"input_ids": ids[mask].tolist(), "labels": labels[mask].tolist()} for ids, labels, mask in rows]


@pytest.mark.parametrize("name", ["ErnieMForTokenClassification", "ErnieMForMaskedLM"])
def test_flattened_batches_have_the_loss_of_padded_ones(name: str) -> None:
    plain, fast = make(name)
    inputs = batch()
    inputs |= labels_for(name, inputs)
    # The collator hides the first label of each sequence.
    inputs["labels"][:, 0] = -100
    flattened = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(features(inputs))
    assert flattened["input_ids"].shape == (1, sum(LENGTHS))
    found, padded, expected = fast(**flattened), fast(**inputs), plain(**inputs)
    assert_close(found.loss, expected.loss)
    assert_close(padded.loss, expected.loss)
    assert_close(found.logits[0], real(expected.logits, inputs))
    for one in (found, expected):
        one.loss.backward()
    assert_same_gradients(fast, plain)


def test_trainer_on_flattened_batches(tmp_path: Path) -> None:
    plain, fast = make("ErnieMForTokenClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    inputs["labels"][:, 0] = -100
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    logged = train(fast, tmp_path, features(inputs), collator, per_device_train_batch_size=4, num_train_epochs=2)
    sgd = torch.optim.SGD(plain.train().parameters(), lr=0.05)
    for found in logged:
        loss = plain(**inputs).loss
        assert found == pytest.approx(loss.item(), abs=2e-4)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    assert len(logged) == 2


@pytest.mark.parametrize("models", ["fast", "reference"])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing(models: str, use_reentrant: bool, dropout: float) -> None:
    plain, fast = make(
        "ErnieMForSequenceClassification", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        act_dropout=dropout,
    )  # fmt: skip
    model = (fast if models == "fast" else plain).train()
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    results = []
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for checkpointing in (False, True, False):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        else:
            model.gradient_checkpointing_disable()
        handle = model.ernie_m.encoder.layers[1].linear1.register_forward_pre_hook(count)
        model.zero_grad(set_to_none=True)
        calls = 0
        torch.manual_seed(3)
        loss = model(**inputs).loss
        loss.backward()
        handle.remove()
        assert calls == (2 if checkpointing else 1)
        results.append((loss.detach(), gradients(model)))
    for loss, grads in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert grads.keys() == results[0][1].keys()
        assert all(torch.equal(grads[name], results[0][1][name]) for name in grads)
    assert len(results[0][1]) == len(list(model.parameters()))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_of_dropouts_that_are_called(use_reentrant: bool) -> None:
    """A hooked dropout draws from torch's generator, which checkpointing has to restore."""
    _, model = make("ErnieMForTokenClassification", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda *_: None)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.train().zero_grad(set_to_none=True)
        torch.manual_seed(3)
        model(**inputs).loss.backward()
        results.append(gradients(model))
    assert all(torch.equal(results[1][name], grad) for name, grad in results[0].items())


@pytest.mark.parametrize("models", ["fast", "reference"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_above_frozen_embeddings(models: str, use_reentrant: bool) -> None:
    """Reentrant checkpointing needs an input that requires gradients."""
    plain, fast = make("ErnieMForTokenClassification", hidden_dropout_prob=0.3)
    model = (fast if models == "fast" else plain).train()
    model.ernie_m.embeddings.requires_grad_(False)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            for _ in range(2):
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        model(**inputs).loss.backward()
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[1][name], grad) for name, grad in results[0].items())
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[0]
    assert not hidden.requires_grad
    model.disable_input_require_grads()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", CLASSES[1:])
def test_training_is_governed_by_manual_seed(name: str) -> None:
    """Bitwise the same again, otherwise with another seed, and no dropout in eval mode."""
    _, model = make(name, act_dropout=0.1)
    inputs = batch()
    inputs |= labels_for(name, inputs)
    if name == "ErnieMForMultipleChoice":
        inputs = {key: value[None] for key, value in inputs.items()} | {"labels": torch.tensor([2])}

    def step(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach(), gradients(model)

    model.train()
    (loss, grads), (again, same), (other, _) = step(5), step(5), step(6)
    assert torch.equal(loss, again)
    assert all(torch.equal(same[key], grad) for key, grad in grads.items())
    assert not torch.equal(loss, other)
    first, second = model(**inputs).loss, model(**inputs).loss
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(step(5)[0], step(6)[0])


# peft


def lora(model: Any, **changes: Any) -> Any:
    settings = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]} | changes
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def randomise_adapter(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


def test_lora_is_the_reference_with_the_same_adapter() -> None:
    plain, fast = make("ErnieMForSequenceClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    with torch.no_grad():
        before = fast(**inputs).logits  # leaves a fused weight behind
    plain, fast = lora(plain), lora(fast)
    randomise_adapter(plain)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_agree(fast.eval(), plain.eval(), inputs)
        assert (fast(**inputs).logits - before).abs().max() > 1e-3
        with fast.disable_adapter():
            assert_close(fast(**inputs).logits, before)
    for model in (plain.train(), fast.train()):
        model(**inputs).loss.backward()
    assert_same_gradients(fast, plain)
    assert gradients(fast)
    assert all("lora_" in name for name in gradients(fast))
    assert len(gradients(fast)) == 2 * 2 * 2


def test_lora_trains() -> None:
    _, fast = make("ErnieMForSequenceClassification")
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    model = lora(fast, lora_dropout=0.1, task_type="SEQ_CLS").train()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert any("classifier" in name for name in gradients(model))


@pytest.mark.parametrize("forward_between", [True, False])
@pytest.mark.parametrize("use_rslora", [True, False])
def test_merged_lora(forward_between: bool, use_rslora: bool) -> None:
    plain, fast = make("ErnieMForSequenceClassification")
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
        adapted, expected = lora(fast, use_rslora=use_rslora), lora(plain, use_rslora=use_rslora)
        randomise_adapter(adapted)
        expected.load_state_dict(adapted.state_dict())
        wanted = expected.eval()(**inputs).logits
        if forward_between:
            adapted.eval()
            assert_close(adapted(**inputs).logits, wanted)
            adapted.merge_adapter()
            assert_close(adapted(**inputs).logits, wanted)
            adapted.unmerge_adapter()
            assert_close(adapted(**inputs).logits, wanted)
        merged = adapted.merge_and_unload()
        assert type(merged.ernie_m.encoder.layers[0].self_attn.self_attn.q_proj) is nn.Linear
        assert_close(merged(**inputs).logits, wanted)
        assert (wanted - before).abs().max() > 1e-3


def test_merged_lora_from_a_folder(tmp_path: Path) -> None:
    """On a model that has run before."""
    plain, fast = make("ErnieMForSequenceClassification")
    adapted = lora(copy.deepcopy(fast))
    randomise_adapter(adapted)
    adapted.save_pretrained(tmp_path)
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
        wanted = peft.PeftModel.from_pretrained(plain, tmp_path)(**inputs).logits
        merged = peft.PeftModel.from_pretrained(fast, tmp_path).merge_and_unload()
        assert_close(merged(**inputs).logits, wanted)
        assert (wanted - before).abs().max() > 1e-3


@pytest.mark.parametrize("targets", ["all-linear", ["linear1", "linear2", "out_proj", "k_proj", "dense"]], ids=str)
def test_adapters_on_other_layers(targets: Any) -> None:
    plain, fast = make("ErnieMForSequenceClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    plain, fast = lora(plain, target_modules=targets), lora(fast, target_modules=targets)
    randomise_adapter(plain)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_agree(fast.eval(), plain.eval(), inputs)
    for model in (plain.train(), fast.train()):
        model(**inputs).loss.backward()
    assert_same_gradients(fast, plain)


# Submodules that are not what they were built as


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """All modules that 4.40.2 calls: lists have no forward."""
    return {name: module for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)}


ALL_PATHS = list(leaves(make("ErnieMForSequenceClassification", num_hidden_layers=1)[1]))
assert len(ALL_PATHS) == 28


def stretch(_: Any, __: Any, output: Any) -> Any:
    """Changes a result, so that a hook which is not run is seen."""
    if isinstance(output, Tensor):
        return output * 1.25
    return output


@pytest.mark.parametrize("path", ALL_PATHS)
def test_every_submodule_takes_hooks(path: str) -> None:
    plain, fast = make("ErnieMForSequenceClassification", num_hidden_layers=1)
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
    calls: list[str] = []
    for model, name in ((plain, "plain"), (fast, "fast")):
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(f"{name} before"))
        module.register_forward_hook(lambda *_, name=name: calls.append(f"{name} after"))
        module.register_forward_hook(stretch)
    with torch.no_grad():
        found, expected = fast(**inputs).logits, plain(**inputs).logits
    assert sorted(calls) == ["fast after", "fast before", "plain after", "plain before"]
    assert_close(found, expected)
    module = fast.get_submodule(path)
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()
    with torch.no_grad():
        assert_close(fast(**inputs).logits, before)


# PyTorch runs backward hooks on modules that return tensors.
@pytest.mark.parametrize("path", ALL_PATHS[1:])
def test_every_submodule_takes_backward_hooks(path: str) -> None:
    plain, fast = make("ErnieMForSequenceClassification", num_hidden_layers=1)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    calls: list[str] = []
    for model, name in ((plain, "plain"), (fast, "fast")):
        module = model.get_submodule(path)
        module.register_full_backward_pre_hook(lambda *_, name=name: calls.append(name))
        model(**inputs).loss.backward()
    assert calls == ["plain", "fast"]
    assert_same_gradients(fast, plain)


def test_global_hooks_see_every_module() -> None:
    _, fast = make("ErnieMForSequenceClassification")
    seen: set[int] = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(id(module)))
    try:
        fast(**batch())
    finally:
        handle.remove()
    assert [name for name, module in leaves(fast).items() if id(module) not in seen] == []


class RMSNorm(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


class BoundedEmbedding(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).tanh()


class LoudNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.1


class HalfDropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


class Quadratic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def subclassed(cls: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def convert(module: nn.Module) -> nn.Module:
        changed = copy.deepcopy(module)
        changed.__class__ = cls
        return changed

    return convert


def bias_free(module: Any) -> nn.Module:
    changed = nn.Linear(module.in_features, module.out_features, bias=False, dtype=module.weight.dtype)
    changed.load_state_dict({"weight": module.weight.detach()})
    return changed


def norm_without(**what: bool) -> Callable[[Any], nn.Module]:
    return lambda module: nn.LayerNorm(module.normalized_shape, eps=0.5, dtype=module.weight.dtype, **what)


def in_two(module: Any) -> nn.Module:
    size, dtype = module.out_features, module.weight.dtype
    return nn.Sequential(copy.deepcopy(module), nn.Linear(size, size, dtype=dtype))


REPLACEMENTS: dict[str, tuple[type[nn.Module], Callable[[Any], nn.Module]]] = {
    "RMSNorm": (nn.LayerNorm, lambda module: RMSNorm(module.weight)),
    "subclass of LayerNorm": (nn.LayerNorm, subclassed(LoudNorm)),
    "LayerNorm without weights": (nn.LayerNorm, norm_without(elementwise_affine=False)),
    "LayerNorm without bias": (nn.LayerNorm, norm_without(bias=False)),
    "no norm": (nn.LayerNorm, lambda _: nn.Identity()),
    "no dropout": (nn.Dropout, lambda _: nn.Identity()),
    "subclass of Dropout": (nn.Dropout, subclassed(HalfDropout)),
    "subclass of Linear": (nn.Linear, subclassed(ScaledLinear)),
    "Linear without bias": (nn.Linear, bias_free),
    "Linear in two": (nn.Linear, in_two),
    "subclass of Embedding": (nn.Embedding, subclassed(BoundedEmbedding)),
    "activation": (transformers.activations.GELUActivation, lambda _: Quadratic()),
    "plain nn.GELU": (transformers.activations.GELUActivation, lambda _: nn.GELU()),
    "tanh GELU": (transformers.activations.GELUActivation, lambda _: nn.GELU(approximate="tanh")),
}


def replace(model: nn.Module, kind: str, only: str = "") -> int:
    cls, change = REPLACEMENTS[kind]
    paths = [name for name, module in model.named_modules() if type(module) is cls and name.endswith(only)]
    for path in paths:
        parent, name = parent_of(model, path)
        setattr(parent, name, change(getattr(parent, name)))
    return len(paths)


def assert_replaced_alike(kind: str, only: str = "") -> None:
    plain, fast = make("ErnieMForTokenClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    with torch.no_grad():
        before = fast(**inputs).logits
    assert replace(plain, kind, only) > 0
    replace(fast, kind, only)
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_agree(fast, plain, inputs)
        changed = (fast(**inputs).logits - before).abs().max() > 1e-4
        # A key's bias adds a constant to all scores of a softmax.
        alike = kind in ("no dropout", "plain nn.GELU") or (kind, only) == ("Linear without bias", "k_proj")
        assert changed == (not alike)
    for model in (plain, fast):
        model.train()(**inputs).loss.backward()
    assert_same_gradients(fast, plain)


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_replaced_submodules_are_honoured(kind: str) -> None:
    assert_replaced_alike(kind)


@pytest.mark.parametrize("path", ["q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2", "classifier"])
@pytest.mark.parametrize("kind", ["subclass of Linear", "Linear without bias", "Linear in two"])
def test_one_replaced_linear(path: str, kind: str) -> None:
    assert_replaced_alike(kind, path)


@pytest.mark.parametrize("path", ["norm1", "norm2", "embeddings.layer_norm"])
@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm without weights", "LayerNorm without bias"])
def test_one_replaced_norm(path: str, kind: str) -> None:
    assert_replaced_alike(kind, path)


@pytest.mark.parametrize("path", ["word_embeddings", "position_embeddings"])
def test_one_replaced_embedding(path: str) -> None:
    assert_replaced_alike("subclass of Embedding", path)


@pytest.mark.parametrize("path", ["word_embeddings", "position_embeddings"])
@pytest.mark.parametrize("option", [{"sparse": True}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}], ids=str)
def test_options_of_an_embedding_are_honoured(path: str, option: dict[str, Any]) -> None:
    plain, fast = make(**NO_DROPOUT)
    # One row: where a row repeats, padded and packed batches count it differently.
    inputs = batch((9,))
    inputs["input_ids"][0, 3:6] = 17
    for model in (plain, fast):
        module = model.embeddings.get_submodule(path)
        for name, value in option.items():
            setattr(module, name, value)
        output = model(**inputs)
        (output.last_hidden_state.square().sum() + output.pooler_output.sum()).backward()
    one, other = (model.embeddings.get_submodule(path).weight for model in (fast, plain))
    assert one.grad.is_sparse == other.grad.is_sparse == ("sparse" in option)
    assert_close(one.grad.to_dense(), other.grad.to_dense(), 1e-4)
    assert_close(one.detach(), other.detach())


@pytest.mark.parametrize(("words", "positions"), [(4, None), (4, 6), (None, 4), (90, None), (-3, None)])
def test_padding_rows_of_the_two_tables_are_their_own(words: int | None, positions: int | None) -> None:
    """No gradient flows to a table's own padding_idx, whatever the other's is."""
    plain, fast = make(**NO_DROPOUT)
    inputs = batch((9, 7))
    inputs["input_ids"][0, :4] = torch.tensor([4, 90, 97, 6])
    for model in (plain, fast):
        for module, padding in (
            (model.embeddings.word_embeddings, words),
            (model.embeddings.position_embeddings, positions),
        ):
            table = nn.Embedding(*module.weight.shape, padding_idx=padding)
            table.weight = module.weight
            parent, name = parent_of(model, next(n for n, m in model.named_modules() if m is module))
            setattr(parent, name, table)
        real(model(**inputs).last_hidden_state, inputs).tanh().square().sum().backward()
    assert_same_gradients(fast, plain)


def test_a_padding_id_beyond_the_position_table() -> None:
    plain, fast = make(pad_token_id=90)
    inputs = batch()
    inputs["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"] == 1, 90)
    assert_agree(fast, plain, inputs)


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_changed_dropout_probabilities(p: float) -> None:
    plain, fast = make("ErnieMForTokenClassification")
    inputs = batch((40, 33))
    for model in (plain, fast):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    with torch.no_grad():
        assert_agree(fast, plain, inputs)
        expected = as_reference(fast).eval()(**inputs).logits
        assert_close(real(fast(**inputs).logits, inputs), real(expected, inputs))
        # One site alone, so that its rate can be counted.
        fast.ernie_m.embeddings.dropout.p = p
        rows = real(fast(**inputs, output_hidden_states=True).hidden_states[0], inputs)
    assert (rows == 0).float().mean() == pytest.approx(p, abs=0.05)
    assert rows.isfinite().all()


@pytest.mark.parametrize("where", ["embeddings.dropout", "layers.0.dropout1", "layers.1.dropout2", "self_attn.dropout"])
def test_a_dropout_that_is_left_on_in_eval_mode(where: str) -> None:
    """As for Monte Carlo dropout: it draws from torch's generator."""
    _, fast = make("ErnieMForTokenClassification")
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).logits
        for name, module in fast.named_modules():
            if name.endswith(where):
                module.train()
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(fast(**inputs).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], before)


@pytest.mark.parametrize("off", ["layers.0.dropout1", "embeddings.dropout"])
def test_a_dropout_that_is_switched_off_in_training(off: str) -> None:
    _, fast = make(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
    fast.train()
    for name, module in fast.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith(off):
            module.p = 0.0
        elif name.endswith(off):
            module.eval()
    inputs = batch()
    with torch.no_grad():
        assert_agree(fast, as_reference(fast).eval(), inputs)


@pytest.mark.parametrize("path", ["q_proj", "v_proj", "linear1", "linear2", "out_proj"])
def test_pruned_and_parametrised_weights(path: str) -> None:
    plain, fast = make()
    inputs = batch()
    paths = [name for name, _ in fast.named_modules() if name.endswith(path)]
    with torch.no_grad():
        before = fast(**inputs).last_hidden_state
        for model in (plain, fast):
            for name in paths:
                prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.4)
        assert_agree(fast, plain, inputs)
        for model in (fast, plain):
            for name in paths:
                prune.remove(model.get_submodule(name), "weight")
        assert_agree(fast, plain, inputs)
        for model in (plain, fast):
            for name in paths:
                module = nn.utils.parametrizations.weight_norm(model.get_submodule(name))
                module.parametrizations.weight.original0.mul_(1.5)
        assert_agree(fast, plain, inputs)
        assert (fast(**inputs).last_hidden_state - before).abs().max() > 1e-2


# The fused projection and what changes beneath it


def projections(model: Any) -> list[nn.Linear]:
    return [module for name, module in model.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj"))]


def optimizer_step(model: Any) -> None:
    with torch.enable_grad():
        model(**batch()).last_hidden_state.square().sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()


def load_other(model: Any, assign: bool = False) -> None:
    model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()}, assign=assign)


def in_place(model: Any) -> None:
    for module in projections(model):
        module.weight.mul_(1.5)
        module.bias.add_(0.5)


def in_place_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        in_place(model)


def through_data(model: Any) -> None:
    for module in projections(model):
        module.weight.data.mul_(1.5)


def biases_through_data(model: Any) -> None:
    for module in projections(model):
        module.bias.data.add_(0.5)


def one_row_through_data(model: Any) -> None:
    projections(model)[0].weight.data[3] = 2.0


def one_column_through_data(model: Any) -> None:
    projections(model)[1].weight.data[:, 5] = 2.0


def one_element_through_data(model: Any) -> None:
    projections(model)[2].weight.data[3, 5] += 8.0


def new_data(model: Any) -> None:
    for module in projections(model):
        module.weight.data = torch.randn_like(module.weight)


def new_data_at_a_freed_address(model: Any) -> None:
    for module in projections(model):
        shape = module.weight.shape
        module.weight.data = torch.empty(0)
        module.weight.data = torch.randn(shape, device=model.device, dtype=model.dtype)


def new_parameters(model: Any) -> None:
    for module in projections(model):
        module.weight = nn.Parameter(torch.randn_like(module.weight))


def new_modules(model: Any) -> None:
    size = SIZES["hidden_size"]
    for layer in model.encoder.layers:
        layer.self_attn.self_attn.k_proj = nn.Linear(size, size, device=model.device, dtype=model.dtype)
        layer.self_attn.self_attn.v_proj.weight.data.neg_()


def exchanged(model: Any) -> None:
    attention = model.encoder.layers[0].self_attn.self_attn
    attention.q_proj, attention.v_proj = attention.v_proj, attention.q_proj


def exchanged_layers(model: Any) -> None:
    first, second = model.encoder.layers
    first.self_attn, second.self_attn = second.self_attn, first.self_attn


def swapped_tensors(model: Any) -> None:
    for module in projections(model):
        torch.utils.swap_tensors(module.weight, nn.Parameter(torch.randn_like(module.weight)))


def half_and_back(model: Any) -> None:
    dtype = model.dtype
    model.bfloat16().to(dtype)


def to_single(model: Any) -> None:
    model.float()


def initialised_again(model: Any) -> None:
    for module in projections(model):
        nn.init.normal_(module.weight, std=0.7)


def ema(model: Any) -> None:
    """As averaging libraries write their weights back."""
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter))


CHANGES: list[Callable[[Any], None]] = [
    optimizer_step, load_other, lambda model: load_other(model, assign=True), in_place, in_place_in_inference_mode,
    through_data, biases_through_data, one_row_through_data, one_column_through_data, one_element_through_data,
    new_data, new_data_at_a_freed_address, new_parameters, new_modules, exchanged, exchanged_layers, swapped_tensors,
    half_and_back, to_single, initialised_again, ema,
]  # fmt: skip
NAMES = [change.__name__.replace("<lambda>", "load_other by assignment") for change in CHANGES]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_no_stale_projection(change: Callable[[Any], None], training: bool) -> None:
    """Forwards before and after, nothing between but the change."""
    _, fast = make(**NO_DROPOUT)
    fast.train(training)
    inputs = batch()
    with torch.no_grad():
        for _ in range(2):
            before = fast(**inputs).last_hidden_state
        change(fast)
        found = fast(**inputs).last_hidden_state
        expected = as_reference(fast)(**inputs).last_hidden_state
        tolerance = 1e-3 if change is to_single else 1e-5
        assert_close(real(found, inputs), real(expected, inputs), tolerance)
        assert change is to_single or (found - before).abs().max() > 1e-3
    # With a graph too, and after it.
    with torch.enable_grad():
        assert_close(fast(**inputs).last_hidden_state.detach(), found, tolerance)


def test_half_precision_after_float() -> None:
    _, fast = make()
    inputs = batch()
    with torch.no_grad():
        fast(**inputs)
        found = fast.bfloat16()(**inputs).last_hidden_state
        assert found.dtype == torch.bfloat16
        expected = as_fast(fast)(**inputs).last_hidden_state
        assert torch.equal(found, expected)


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent(copied: str) -> None:
    _, fast = make()
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs).last_hidden_state
        if copied == "deepcopy":
            other = copy.deepcopy(fast)
        elif copied == "pickle":
            other = pickle.loads(pickle.dumps(fast))
        else:
            buffer, fresh = io.BytesIO(), io.BytesIO()
            torch.save(fast, buffer)
            torch.save(as_fast(fast), fresh)
            assert abs(buffer.tell() - fresh.tell()) < 2000  # nothing that a forward made is in it
            buffer.seek(0)
            other = torch.load(buffer, weights_only=False)
        assert type(other) is type(fast)
        assert torch.equal(other(**inputs).last_hidden_state, before)
        in_place(other)
        assert torch.equal(fast(**inputs).last_hidden_state, before)
        assert_agree(other, as_reference(other), inputs)
        # A copy of a copy that has run.
        again = copy.deepcopy(other)
        load_other(other)
        assert_agree(again, as_reference(again), inputs)


def test_functional_call() -> None:
    """Other weights for one call, and the model's own again after it."""
    _, fast = make()
    inputs = batch()
    others = {name: torch.randn_like(p) for name, p in fast.named_parameters()}
    expected = as_reference(fast)
    expected.load_state_dict(others)
    with torch.no_grad():
        for _ in range(2):
            assert_agree(fast, as_reference(fast), inputs)
            found = torch.func.functional_call(fast, others, kwargs=inputs).last_hidden_state
            assert_close(real(found, inputs), real(expected(**inputs).last_hidden_state, inputs))


def test_inference_mode() -> None:
    """What inference mode made must not be met by autograd later."""
    plain, fast = make("ErnieMForTokenClassification", **NO_DROPOUT)
    inputs = batch()
    inputs |= labels_for("ErnieMForTokenClassification", inputs)
    with torch.inference_mode():
        assert_agree(fast, plain, inputs)
        built_inside = as_fast(plain)
        assert_agree(built_inside, plain, inputs)
        assert_agree(built_inside, plain, inputs)
    with torch.no_grad():
        assert_agree(fast, plain, inputs)
    for model in (plain, fast):
        model(**inputs).loss.backward()
    assert_same_gradients(fast, plain)
    with torch.inference_mode():
        assert_agree(fast, plain, inputs)
    with torch.no_grad():
        assert_agree(built_inside, plain, inputs)


# The models themselves


@pytest.mark.parametrize("name", CLASSES)
def test_both_models_have_the_same_state(name: str) -> None:
    plain, fast = make(name, num_labels=2)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in fast.state_dict().items()}
    assert [k for k, _ in plain.named_parameters()] == [k for k, _ in fast.named_parameters()]
    assert [k for k, _ in plain.named_modules()] == [k for k, _ in fast.named_modules()]
    with torch.no_grad():
        fast(**{k: v[None] for k, v in batch().items()} if "Choice" in name else batch())
    assert fast.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ({}, 278.0),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}, 559.9),
    ],
    ids=["base", "large"],
)
@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_number_of_parameters(models: Any, sizes: dict[str, int], millions: float) -> None:
    with torch.device("meta"):
        model = models.ErnieMModel(ErnieMConfig(**sizes))
    assert round(model.num_parameters() / 1e6, 1) == millions


@pytest.mark.parametrize("name", CLASSES[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """Forward and backward; the error is at most twice the plain model's."""
    plain, fast = make(name, torch.float32, **NO_DROPOUT)
    inputs = batch((12, 12, 12))
    inputs |= labels_for(name, inputs)
    if name == "ErnieMForMultipleChoice":
        inputs = {key: value[None] for key, value in inputs.items()} | {"labels": torch.tensor([2])}
    exact = copy.deepcopy(plain).double()
    exact(**inputs).loss.backward()
    for model in (plain, fast):
        with torch.autocast("cpu", dtype):
            loss = model.train()(**inputs).loss
        loss.backward()

    def error(model: Any) -> float:
        found = gradients(model)
        assert found.keys() == gradients(exact).keys()
        assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in found.values())
        return sum(float((found[key] - grad).square().sum()) for key, grad in gradients(exact).items()) ** 0.5

    assert 0 < error(fast) <= 2 * error(plain)
    with torch.autocast("cpu", dtype), torch.no_grad():
        fast.eval()(**inputs)
    with torch.no_grad():  # nothing low-precision is left in a cache
        expected = plain.eval()(**inputs).loss
        assert_close(fast(**inputs).loss, expected)


def test_autocast_with_dropout() -> None:
    _, fast = make("ErnieMForSequenceClassification", torch.float32, act_dropout=0.1)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fast.train()(**inputs).loss
    loss.backward()
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(fast).values())
    assert len(gradients(fast)) == len(list(fast.parameters()))


@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForSequenceClassification", "ErnieMForMaskedLM"])
def test_accelerate_offload(name: str) -> None:
    plain, fast = make(name)
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs)[0]
        offloaded = accelerate.cpu_offload(fast, execution_device="cpu")
        assert all(parameter.device.type == "meta" for parameter in offloaded.parameters())
        for _ in range(2):
            assert torch.allclose(offloaded(**inputs)[0], before, atol=1e-5)
            assert_agree(offloaded, plain, inputs)
        accelerate.hooks.remove_hook_from_submodules(offloaded)


def test_accelerate_offload_to_disk(tmp_path: Path) -> None:
    plain, fast = make("ErnieMForTokenClassification")
    inputs = batch()
    with torch.no_grad():
        assert_agree(accelerate.disk_offload(fast, str(tmp_path), execution_device="cpu"), plain, inputs)


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_no_cache(models: Any) -> None:
    inputs = batch()
    for name in ("ErnieMModel", "ErnieMForSequenceClassification"):
        model = getattr(models, name)(ErnieMConfig(**SIZES)).eval()
        expected = model(**inputs)[0]
        for use_cache in (True, False, None):
            output = model(**inputs, use_cache=use_cache)
            assert torch.equal(output[0], expected)
            assert "past_key_values" not in output
    past = ((torch.randn(4, 4, 2, 8), torch.randn(4, 4, 2, 8)),) * 2
    for name in CLASSES:
        model = getattr(models, name)(ErnieMConfig(**SIZES)).eval()
        given = {key: value[None] for key, value in inputs.items()} if "Choice" in name else inputs
        for value in (past, transformers.DynamicCache()):
            with pytest.raises(ValueError, match="past_key_values"):
                model(**given, past_key_values=value)


def shapes(value: Any) -> Any:
    if isinstance(value, tuple):
        return [shapes(one) for one in value]
    return None if value is None else tuple(value.shape)


STATES, ATTENTIONS = [(4, 10, 32)] * 3, [(4, 4, 10, 10)] * 2
TUPLES_OF_4_40_2 = {
    "ErnieMModel": [(4, 10, 32), (4, 32)],
    "ErnieMForSequenceClassification": [(4, 3)],
    "ErnieMForTokenClassification": [(4, 10, 3)],
    "ErnieMForQuestionAnswering": [(4, 10), (4, 10)],
    "ErnieMForInformationExtraction": [(4, 10), (4, 10)],
    "ErnieMForMultipleChoice": [(1, 4)],
    "ErnieMForMaskedLM": [(4, 10, 100)],
}


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("name", TUPLES_OF_4_40_2)
def test_tuples(models: Any, name: str) -> None:
    """`return_dict=False` as an argument and in the configuration; arguments come first."""
    changes = {} if name == "ErnieMForQuestionAnswering" else {"num_labels": 3}
    model = getattr(models, name)(ErnieMConfig(**SIZES, **changes)).eval()
    inputs = batch()
    labels = {} if name == "ErnieMModel" else labels_for(name, inputs, 3)
    if name == "ErnieMForMultipleChoice":
        inputs, labels = {key: value[None] for key, value in inputs.items()}, {"labels": torch.tensor([1])}
    plain = TUPLES_OF_4_40_2[name]
    loss = [()] if labels else []
    states, attentions = {"output_hidden_states": True}, {"output_attentions": True}

    def check(**options: Any) -> None:
        for given, first in (({}, []), (labels, loss)):
            output = model(**inputs, **given, **options)
            assert type(output) is tuple
            assert shapes(output) == first + plain
            assert shapes(model(**inputs, **given, **states, **options)) == [*first, *plain, STATES]
            assert shapes(model(**inputs, **given, **attentions, **options)) == [*first, *plain, ATTENTIONS]
            both = model(**inputs, **given, **states, **attentions, **options)
            assert shapes(both) == [*first, *plain, STATES, ATTENTIONS]

    check(return_dict=False)
    expected = model(**inputs, **labels)
    assert isinstance(expected, transformers.utils.ModelOutput)
    found = model(**inputs, **labels, return_dict=False)
    assert all(torch.equal(one, other) for one, other in zip(found, expected.to_tuple(), strict=True))
    model.config.return_dict = False
    check()
    assert isinstance(model(**inputs, return_dict=True), transformers.utils.ModelOutput)
    model.config.output_hidden_states = True
    assert shapes(model(**inputs)) == [*plain, STATES]
    assert shapes(model(**inputs, output_hidden_states=False)) == plain


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_the_poolers_place_is_kept_in_tuples(models: Any) -> None:
    model = models.ErnieMModel(ErnieMConfig(**SIZES), add_pooling_layer=False).eval()
    found = model(**batch(), return_dict=False, output_hidden_states=True)
    assert shapes(found) == [(4, 10, 32), None, STATES]
