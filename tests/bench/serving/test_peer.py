"""A peer in a process of its own: asked by lines, checked by its vectors, its failure told."""

import gc
import json
import sys
from pathlib import Path

import pytest
import torch

from bench.serving.peer_process import Peer

STUB = """
import os, sys
print("noise on stdout")
class SentenceTransformer:
    def __init__(self, folder, backend, device, model_kwargs):
        self.first = type("auto", (), {"auto_model": model_kwargs})()
    def __getitem__(self, index):
        return self.first
    def encode(self, texts, **options):
        import torch
        print("noise on stdout")
        return [torch.full((3,), float(len(text)), dtype=torch.bfloat16) for text in texts]
"""


@pytest.mark.slow
def test_a_peer_encodes_what_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sentence_transformers.py").write_text(STUB, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peer = Peer(sys.executable, tmp_path, "torch", "float32", ["a", "ää", "text"])
    assert peer.model == "dict"
    peer.encode(3)
    vectors = peer.vectors(2)
    assert (vectors.dtype, vectors.tolist()) == (torch.float32, [[1.0] * 3, [2.0] * 3])
    process = peer._process
    del peer
    gc.collect()
    assert process.returncode is not None, "it ended with the object"


def test_a_peer_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sentence_transformers.py").write_text("raise ImportError('no optimum here')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)peer.py ended: .*no optimum here"):
        Peer(sys.executable, tmp_path, "onnx", "float32", [json.dumps("a")])
