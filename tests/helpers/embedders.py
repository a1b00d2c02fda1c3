"""sentence-transformers models in pairs, packed and padded, and what tests compare of them."""

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base import modules
from sentence_transformers.sentence_transformer.modules import Pooling

from erniem_fast import reference

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TASKS = {"ErnieMForSequenceClassification": "sequence-classification", "ErnieMForMaskedLM": "fill-mask"}


def padded(folder: str, name: str = "ErnieMModel") -> modules.Transformer:
    """sentence-transformers' own module around the reference: the padded computation."""
    module = modules.Transformer(folder, transformer_task=TASKS.get(name, "feature-extraction"))
    module.model = getattr(reference, name).from_pretrained(folder)
    return module


def embedder(module: modules.Transformer, mode: Any = "mean", *more: torch.nn.Module, **options: Any) -> Any:
    """A SentenceTransformer of a module, a pooling and what follows."""
    include_prompt = options.pop("include_prompt", True)
    pooling = Pooling(module.get_embedding_dimension(), mode, include_prompt)
    return SentenceTransformer(modules=[module, pooling, *more], device="cpu", **options).eval()


def gradients(model: Any, loss: Any, inputs: list[Any], labels: Any = None) -> tuple[float, dict[str, Any]]:
    """The loss of a batch in float64, and its gradients."""
    model.double().train().zero_grad()
    value = loss(inputs, labels)
    value.backward()
    return value.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare by the largest gradient: those of the key biases are zero but for rounding."""
    assert found.keys() == expected.keys()
    scale = max(float(grad.abs().max()) for grad in expected.values())
    assert scale > 0
    for name, grad in expected.items():
        torch.testing.assert_close(found[name] / scale, grad / scale, rtol=0, atol=1e-9)
