"""docs/ray.md on a local cluster: a worker or a replica that is killed loses no text, and none comes twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import patient_ray
from helpers.blocks import blocks, script
from helpers.golden_tokenizer import build
from helpers.pairs import SIZES
from helpers.paths import ROOT

pytest.importorskip("ray")
import pyarrow.parquet

from erniem_fast import ErnieMConfig, ErnieMModel, reference
from erniem_fast.cli.verify import sample

pytestmark = pytest.mark.slow

PAGE = [block for block in blocks(ROOT / "docs" / "ray.md") if block.language == "python"]
TEXTS = [
    f"{start} {' '.join(text.split())[:200]}"
    for start in ("Where is the station?", "今日は", "Ни один", "3.14159")
    for _, text in sample()
]
SECONDS = 1200
START = """
import os, signal, sys
from pathlib import Path

folder = Path(sys.argv[1])
ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20)
"""
JOB = """
class Mortal(Embed):
    batches = 0

    def __call__(self, batch):
        found = super().__call__(batch)
        self.batches += 1
        # The first worker that has computed a second batch dies before it delivers it.
        if self.batches == 2:
            try:
                (folder / "killed").mkdir()
            except FileExistsError:
                return found
            (folder / "killed" / "texts").write_text("\\n".join(batch["text"]), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return found


ray.data.read_text(str(folder / "texts.txt")).map_batches(
    Mortal,
    fn_constructor_args=(str(folder / "tiny"),),
    fn_constructor_kwargs={"dtype": "float32"},
    compute=ray.data.ActorPoolStrategy(size=2),
    num_cpus=1,
    batch_size=32,
).write_parquet(str(folder / "vectors"))
ray.shutdown()
"""
ENDPOINT = """
import json, socket, time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen
import psutil

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
NAME = str(folder / "tiny")
serve.start(http_options={"port": port})
serve.run(endpoint)


def ask(text):
    body = json.dumps({"inputs": text, "normalize": False}).encode()
    request = Request(f"http://127.0.0.1:{port}/embed", body, {"Content-Type": "application/json"})
    for _ in range(600):
        try:
            with urlopen(request) as answer:
                return json.load(answer)[0]
        except OSError:  # the replica is gone
            time.sleep(0.1)
    raise TimeoutError(text)


texts = (folder / "texts.txt").read_text(encoding="utf-8").split("\\n")
half = len(texts) // 2
with ThreadPoolExecutor(16) as pool:
    first = list(pool.map(ask, texts[:half]))
    replicas = [p for p in psutil.Process().children(recursive=True) if "ServeReplica" in " ".join(p.cmdline())]
    assert len(replicas) == 2, replicas
    asked = [pool.submit(ask, text) for text in texts[half:]]
    os.kill(replicas[0].pid, signal.SIGKILL)
    second = [future.result() for future in asked]
(folder / "answers.json").write_text(json.dumps(first + second))
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and texts in many scripts, no two of them the same."""
    folder, tokenizer = tmp_path_factory.mktemp("ray"), build()
    ErnieMModel(ErnieMConfig(**SIZES | {"vocab_size": len(tokenizer)})).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    assert len(set(TEXTS)) == len(TEXTS)
    (folder / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def means(folder: Path) -> np.ndarray:
    """(texts, 32) vectors of each text alone, by the reference."""
    model, tokenizer = reference.ErnieMModel.from_pretrained(folder / "tiny").eval(), build()
    with torch.inference_mode():
        rows = [tokenizer(text, truncation=True, max_length=64, return_tensors="pt")["input_ids"] for text in TEXTS]
        return np.stack([model(row)[0][0].mean(0).numpy() for row in rows])


def run(code: str, definition: str, folder: Path) -> None:
    """Run the page's first block and the one with a definition, then code, in a process of its own."""
    chosen = [block for block in PAGE if block is PAGE[0] or definition in block.code]
    assert any(definition in block.code for block in chosen)
    file = folder / "cluster.py"
    file.write_text(script(chosen) + START + code, encoding="utf-8")
    environment = os.environ | patient_ray.ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(file), str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_a_job_whose_worker_is_killed_has_every_text_once_with_its_vector(folder: Path, means: np.ndarray) -> None:
    run(JOB, "class Embed", folder)
    lost = (folder / "killed" / "texts").read_text(encoding="utf-8").split("\n")
    assert len(lost) > 1
    table = pyarrow.parquet.read_table(folder / "vectors")
    found = dict(zip(table["text"].to_pylist(), table["vector"].to_pylist(), strict=True))
    assert set(lost) <= set(found)
    assert sorted(table["text"].to_pylist()) == sorted(TEXTS)
    np.testing.assert_allclose(np.array([found[text] for text in TEXTS]), means, rtol=1e-5, atol=1e-5)


def test_an_endpoint_whose_replica_is_killed_answers_every_text(folder: Path, means: np.ndarray) -> None:
    run(ENDPOINT, "def load", folder)
    answers = np.array(json.loads((folder / "answers.json").read_text(encoding="utf-8")))
    # The server computes in bfloat16 where the processor has matrix units for it: 8 bits, a few roundings a layer.
    np.testing.assert_allclose(answers, means, rtol=0, atol=2**-5 * np.abs(means).max())
    distances = np.linalg.norm(answers[:, None] - means, axis=-1)
    assert (distances.argmin(1) == np.arange(len(TEXTS))).all()
