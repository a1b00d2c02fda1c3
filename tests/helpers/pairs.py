"""Small models in pairs, the reference and the padding-free one, and what tests compare of them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import erniem_fast
from erniem_fast import ErnieMConfig, reference
from helpers.paths import GOLDEN_TOKENIZER

TOKENIZER = GOLDEN_TOKENIZER
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
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LENGTHS = (7, 3, 10, 1)
TEXTS = ["The cat sat on the mat.", "Paris", "Où est la gare la plus proche, s'il vous plaît ?", "今日は良い天気です。"]


def make(
    name: str = "ErnieMModel", dtype: torch.dtype = torch.float64, noise: float = 0.1, **changes: Any
) -> tuple[Any, Any]:
    """The reference and the fast model with the same random parameters, none of them zero, in eval mode."""
    plain = getattr(reference, name)(ErnieMConfig(**(SIZES | changes))).to(dtype).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
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
    """Select the values at real tokens, one row each; values that belong to no tokens are returned unchanged."""
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
