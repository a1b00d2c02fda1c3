"""A peer that encodes texts in a process of its own."""

import json
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROGRAM = Path(__file__).with_name("peer.py")


class Peer:
    """sentence-transformers on a folder, ready when this returns; the process ends with the object.

    Args:
        python: of the environment.
        folder: of the model and the tokenizer.
        backend: "torch", "onnx" or "openvino".
        dtype: of torch's weights.
        texts: what it encodes.

    Raises:
        RuntimeError: it can't begin.
    """

    def __init__(self, python: str | None, folder: Path, backend: str, dtype: str, texts: list[str]) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._vectors, file = Path(self._scratch.name) / "vectors.npy", Path(self._scratch.name) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        self._messages = (Path(self._scratch.name) / "messages").open("w+", encoding="utf-8")
        arguments = (PROGRAM, folder, backend, dtype, file, torch.get_num_threads())
        command = [python or sys.executable, *map(str, arguments)]
        self._process: Any = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, text=True, bufsize=1
        )
        weakref.finalize(self, _end, self._process)
        self.model: str = self._answer()["model"]

    def encode(self, number: int) -> None:
        """Encode the first texts."""
        self._ask(number, None)

    def vectors(self, number: int) -> Tensor:
        """Vectors (number, dim) float32 of the first texts."""
        import numpy as np

        self._ask(number, str(self._vectors))
        return torch.from_numpy(np.load(self._vectors))

    def _ask(self, number: int, save: str | None) -> None:
        print(json.dumps({"number": number, "save": save}), file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> dict[str, str]:
        line = self._process.stdout.readline()
        if not line:
            self._messages.seek(0)
            raise RuntimeError(f"{PROGRAM.name} ended: {self._messages.read().strip()[-300:]}")
        answer: dict[str, str] = json.loads(line)
        return answer


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
