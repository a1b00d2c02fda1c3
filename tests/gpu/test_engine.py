"""Encoder on a GPU: the CPU's vectors, copies that nobody waits for, graphs, and memory that runs out."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_tokenizer import build

from erniem_fast import Encoder, ErnieMConfig, ErnieMModel
from erniem_fast.cli.verify import sample
from erniem_fast.inference.runner import GRAPH_TOKENS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIZES = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path, tokenizer = tmp_path_factory.mktemp("engine"), build()
    ErnieMModel(ErnieMConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    documents = [text for _, text in sample()]
    return [part for text in documents for part in text.replace("。", ". ").split(". ")] + documents


@pytest.fixture(scope="module")
def expected(folder: str, texts: list[str]) -> np.ndarray:
    return Encoder.from_pretrained(folder, dtype="float32", device="cpu").encode(texts)


@pytest.mark.parametrize("batch_tokens", [500, GRAPH_TOKENS, None], ids=str)
def test_vectors_are_those_of_a_cpu(
    folder: str, texts: list[str], expected: np.ndarray, batch_tokens: int | None
) -> None:
    """With graphs, with both, and with batches beyond every graph."""
    encoder = Encoder.from_pretrained(folder, dtype="float32", batch_tokens=batch_tokens)
    assert encoder.device.type == "cuda"
    for _ in range(2):  # the second time by graphs that are there already
        np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_half_precision(folder: str, texts: list[str], expected: np.ndarray, dtype: str) -> None:
    found = Encoder.from_pretrained(folder, dtype=dtype).encode(texts)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.99


def test_memory_that_runs_out(folder: str, texts: list[str], expected: np.ndarray, tmp_path: Path) -> None:
    """A real shortage: the allocator may take little more than the model."""
    encoder = Encoder.from_pretrained(folder, dtype="float32", batch_tokens=10**6)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / total)
    try:
        found = encoder.encode(texts * 8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found, np.tile(expected, (8, 1)), atol=1e-4, rtol=0)
    assert encoder.runner.batch_tokens < 10**6


def test_the_forward_never_waits(folder: str, texts: list[str]) -> None:
    encoder = Encoder.from_pretrained(folder, dtype="float32", batch_tokens=3 * GRAPH_TOKENS)
    task: Any = encoder.task("encode")
    rows = task.tokenize(texts)
    task.compute(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in encoder.runner.as_completed(rows, task._of_batch):  # waits for events alone
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")
