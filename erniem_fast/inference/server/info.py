"""What a server says about its model."""

from typing import Any

from ...version import __version__
from .service import PROBES, Service

TASKS_OF_HEADS = {"classify": "classifier", "tag": "tagger", "answer": "reader", "extract": "extractor"}
"""By the task that only such a head can do: the kind of the model. text-embeddings-inference knows the first."""


def kind(service: Service) -> str:
    """The kind of the model: "embedding", "reranker", or one of `TASKS_OF_HEADS`."""
    if "rerank" not in service.lacking:
        return "reranker"
    return next((found for task, found in TASKS_OF_HEADS.items() if task not in service.lacking), "embedding")


def info(service: Service) -> dict[str, Any]:
    """What `/info` gives: text-embeddings-inference's members, and further ones of ours behind them."""
    encoder, settings = service.encoder, service.settings
    details: dict[str, Any] = {}
    if kind(service) == "embedding":
        details = {"pooling": "+".join(encoder.settings.pooling)}
    elif kind(service) in ("reranker", "classifier", "tagger"):
        labels = {int(index): label for index, label in encoder.model.config.id2label.items()}
        details = {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    return {
        "model_id": settings.model_id,
        "model_sha": None,
        "served_model_name": settings.model_name,
        "model_dtype": encoder.dtype,
        "model_type": {kind(service): details},
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": encoder.max_tokens,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_client_batch_size,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": settings.tokenization_workers,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "architectures": encoder.architectures,
        "device": str(encoder.device),
        "prompts": list(encoder.settings.prompts),
        "tasks": [name for name in PROBES if name not in service.lacking],
    }
