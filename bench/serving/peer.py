"""sentence-transformers in a process, and an environment, of its own. Run as a file: it imports nothing from here.

    python peer.py FOLDER BACKEND DTYPE TEXTS THREADS

Reads lines of JSON, {"number": of texts to encode, "save": file for the vectors, or null}, and answers each with one.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(folder: str, backend: str, dtype: str, texts: str, threads: str) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # libraries print to stdout, too
    from sentence_transformers import SentenceTransformer  # isort: skip
    import numpy as np
    import torch

    torch.set_num_threads(int(threads))
    options: dict[str, Any] = {"torch_dtype": dtype} if backend == "torch" else {"export": True}
    if backend == "openvino" and dtype == "float32":  # else it takes what the processor is fastest in
        options["ov_config"] = {"INFERENCE_PRECISION_HINT": "f32"}
    model: Any = SentenceTransformer(folder, backend=backend, device="cpu", model_kwargs=options)
    lines = json.loads(Path(texts).read_text(encoding="utf-8"))

    def answer() -> Iterator[dict[str, str]]:
        yield {"model": type(model[0].auto_model).__name__}
        for line in sys.stdin:
            asked = json.loads(line)
            vectors = model.encode(lines[: asked["number"]], show_progress_bar=False, convert_to_numpy=False)
            if asked["save"] is not None:
                np.save(asked["save"], torch.stack(list(vectors)).float().numpy())
            yield {}

    for one in answer():
        print(json.dumps(one), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
