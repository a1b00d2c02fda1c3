"""An engine in a process of its own: the results are those of an engine here, and neither process is left behind."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.family_folders import FAMILIES, save_family
from helpers.head_folders import TEXTS
from helpers.paths import ROOT
from helpers.processes import PATIENCE, is_there, wait_until
from helpers.sentence_folders import change_json, save_encoder

from erniem_fast import Encoder
from erniem_fast.inference import encoder_process
from erniem_fast.inference.encoder_process import EncoderProcess, ProcessEndedError
from erniem_fast.inference.loading import CheckpointError
from erniem_fast.inference.tokens import Row

BAD_ROW = Row(np.array([10**6], np.int32))
"""A token that no model knows."""
SCRIPT = """
import os, sys
from erniem_fast.inference.encoder_process import EncoderProcess

encoder = EncoderProcess(sys.argv[1])
print(encoder.encode("a").shape, encoder._process.pid, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread_there() -> Iterator[None]:
    """As here: sums of other parts differ in the last bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def process(head_folder: Callable[[str], Path]) -> Iterator[EncoderProcess]:
    """The vectors of ErnieM."""
    with EncoderProcess(str(head_folder("vectors")), dtype="float32") as encoder:
        yield encoder


def compute(encoder: Any, name: str, items: Any, **options: Any) -> Any:
    task = encoder.task(name, **options)
    return task.compute(task.tokenize(items))


def assert_same(found: Any, expected: Any) -> None:
    """To the bit, types included."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def assert_same_tasks(encoder: Any, expected: Encoder, asked: list[tuple[str, Any, dict[str, Any]]]) -> None:
    for name, items, options in asked:
        found = compute(encoder, name, items, **options)
        assert len(found) == len(items)
        assert_same(found, compute(expected, name, items, **options))


VECTORS: list[tuple[str, Any, dict[str, Any]]] = [
    ("encode", [*TEXTS, " "], {}),
    ("encode", TEXTS, {"normalize": True, "truncate_dim": 5, "truncation": "left", "pooling": ["cls", "max"]}),
    ("token_embeddings", [*TEXTS, ""], {}),
]
PAIRS = [tuple(TEXTS[:2]), (TEXTS[2], TEXTS[0])]


def test_vectors(process: EncoderProcess, load: Callable[[str], Encoder]) -> None:
    expected = load("vectors")
    assert_same_tasks(process, expected, VECTORS)
    assert_same(process.encode(TEXTS, normalize=True), expected.encode(TEXTS, normalize=True))
    assert_same(process.encode(TEXTS[0]), expected.encode(TEXTS[0]))
    assert_same(
        list(process.stream(iter(TEXTS), "token_embeddings")), list(expected.stream(iter(TEXTS), "token_embeddings"))
    )


def test_attributes_are_those_of_the_encoder(process: EncoderProcess, load: Callable[[str], Encoder]) -> None:
    expected = load("vectors")
    assert process.exit_code is None
    for name in ("dtype", "device", "max_tokens", "architectures"):
        assert getattr(process, name) == getattr(expected, name)
    assert process.settings.pooling == expected.settings.pooling
    assert process.tokenizer(TEXTS)["input_ids"] == expected.tokenizer(TEXTS)["input_ids"]
    task, other = process.task("encode", truncate_dim=7), expected.task("encode", truncate_dim=7)
    for one in (task, other):
        one.tokenize(TEXTS)
        assert (one.dim, one.truncated, one.size(BAD_ROW)) == (7, 1, 1)
    with pytest.raises(AttributeError, match="no_such"):
        _ = process.no_such


def test_no_weights_are_held_here(process: EncoderProcess, load: Callable[[str], Encoder]) -> None:
    def tensors(model: Any) -> dict[str, tuple]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: (value.shape, value.dtype, value.device.type) for name, value in named}

    expected = tensors(load("vectors").model)
    assert tensors(process.model) == {name: (*others, "meta") for name, (*others, _) in expected.items()}
    assert len(pickle.dumps(process.model)) < 100_000 < sum(p.numel() for p in load("vectors").model.parameters())


def test_bad_arguments_are_refused_here(process: EncoderProcess) -> None:
    for name, options, error, words in (
        ("encode", {"pooling": "sum"}, ValueError, "pooling must be one of"),
        ("encode", {"color": 3}, TypeError, "encode has no option 'color'"),
        ("classify", {}, ValueError, "needs a model with a head for SequenceClassification"),
        ("sing", {}, ValueError, "task must be one of"),
    ):
        with pytest.raises(error, match=words):
            process.task(name, **options)
    with pytest.raises(TypeError, match=r"texts\[1\]"):
        process.task("encode").tokenize(["a", 3])


def test_a_call_that_fails_there(process: EncoderProcess, load: Callable[[str], Encoder]) -> None:
    with pytest.raises(Exception, match=r"\w") as here:
        load("vectors").task("encode").compute([BAD_ROW])
    with pytest.raises(RuntimeError) as there:
        process.task("encode").compute([BAD_ROW])
    assert str(there.value) == str(here.value)
    (note,) = there.value.__notes__
    assert note.startswith("Traceback")
    assert type(here.value).__name__ in note
    assert_same_tasks(process, load("vectors"), VECTORS)


def test_what_can_not_be_sent(process: EncoderProcess, load: Callable[[str], Encoder]) -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError), match="pickle"):
        process.task("encode").compute([threading.Lock()])
    assert_same_tasks(process, load("vectors"), VECTORS)


def test_signals_of_a_terminal_change_nothing(process: EncoderProcess, load: Callable[[str], Encoder]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process._process.pid or 0, number)
    assert_same_tasks(process, load("vectors"), VECTORS)
    assert process.exit_code is None


def test_several_threads_at_once(process: EncoderProcess, load: Callable[[str], Encoder]) -> None:
    lists = [[f"{text} {number}" for text in TEXTS[: 1 + number % 4]] for number in range(40)]
    expected = [load("vectors").encode(texts) for texts in lists]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(process.encode, lists))
    assert_same(found, expected)


@pytest.mark.slow
def test_a_process_that_is_killed(head_folder: Callable[[str], Path], load: Callable[[str], Encoder]) -> None:
    """The call under way learns of it, and those after it. Before, labels."""
    encoder = EncoderProcess(str(head_folder("labels")), dtype="float32")
    assert_same_tasks(
        encoder,
        load("labels"),
        [
            ("classify", [*TEXTS, *PAIRS], {"top_k": None}),
            ("zero_shot", TEXTS, {"candidate_labels": ["sport", "pets"], "multi_label": True}),
        ],
    )
    assert_same(encoder.zero_shot(TEXTS, iter(["sport", "pets"])), load("labels").zero_shot(TEXTS, ["sport", "pets"]))
    task = encoder.task("classify")
    tokens = task.tokenize(TEXTS)
    os.kill(encoder._process.pid or 0, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(task.compute, tokens)
        time.sleep(0.1)  # or it comes too late, and is told the same
        os.kill(encoder._process.pid or 0, signal.SIGKILL)
        while encoder.exit_code is None:  # as a server asks all the time
            pass
        with pytest.raises(ProcessEndedError, match=r"ended with exit code -9$"):
            call.result(PATIENCE)
    assert encoder.exit_code == -9
    with pytest.raises(ProcessEndedError, match="exit code -9"):
        task.compute(tokens)
    encoder.close()
    with pytest.raises(ProcessEndedError, match="exit code -9"):
        encoder.classify(TEXTS)


@pytest.mark.parametrize(
    ("seconds", "left"), [({8: 1.0, 4: 1.2, 2: 1.24, 1: 1.3}, 2), ({8: 1.0, 4: 1.3, 2: 1.0, 1: 1.0}, 8)]
)
def test_threads_that_hardly_help_are_left_to_others(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], left: int
) -> None:
    """On a clock that a call advances by what so many threads take for it."""
    now, threads = [0.0], [max(seconds)]
    monkeypatch.setattr(encoder_process.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(encoder_process.torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(encoder_process.torch, "set_num_threads", lambda number: threads.__setitem__(0, number))

    class Task:
        def tokenize(self, items: list[str]) -> list[str]:
            return items

        def compute(self, tokens: list[str]) -> None:
            now[0] += seconds[threads[0]]

    task: Any = Task()
    encoder_process._leave_threads(task)
    assert threads == [left]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "asked"),
    [
        ("ranks", [("rerank", PAIRS, {}), ("classify", PAIRS, {"activation": "none"})]),
        ("tags", [("tag", [*TEXTS, TEXTS[0] * 9], {}), ("tag", TEXTS, {"aggregation_strategy": "none"})]),
        ("answers", [("answer", [{"question": "Where?", "context": text} for text in [*TEXTS, TEXTS[0] * 9]], {})]),
        ("records", [("extract", TEXTS, {"schema": ["animal", {"place": ["owner"]}], "threshold": 0.4})]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_heads(head_folder: Callable[[str], Path], load: Callable[[str], Encoder], head: str, asked: Any) -> None:
    with EncoderProcess(str(head_folder(head)), dtype="float32") as encoder:
        assert_same_tasks(encoder, load(head), asked)


def save_dense(folder: Path) -> Path:
    """A sentence-transformers folder: pooling, a dense layer with weights, vectors of length 1, and prompts."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    save_encoder(folder / "plain", "XLMRoberta")
    words = Transformer(str(folder / "plain"))
    parts = [words, Pooling(32, pooling_mode="cls"), Dense(32, 12, activation_function=torch.nn.Tanh()), Normalize()]
    made = SentenceTransformer(modules=parts, prompts={"query": "query: ", "passage": "passage: "})
    made.save(str(folder / "whole"))
    change_json(folder / "whole" / "config_sentence_transformers.json", default_prompt_name="query")
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "Bert", "Dense"])
def test_other_checkpoints(head_folder: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """Weights in int8, which are no tensors; another family, in the dtype of its choice; modules behind the model."""
    make = {
        "int8": lambda: head_folder("vectors"),
        "Bert": lambda: save_family(tmp_path / "bert", "Bert"),
        "Dense": lambda: save_dense(tmp_path),
    }
    folder = str(make[kind]())
    options = {"dtype": "int8"} if kind == "int8" else {}
    expected = Encoder.from_pretrained(folder, **options)
    asked = [("encode", TEXTS, {"prompt_name": "passage"}), ("encode", TEXTS, {})] if kind == "Dense" else VECTORS
    with EncoderProcess(folder, **options) as encoder:
        assert (encoder.dtype, encoder.max_tokens) == (expected.dtype, expected.max_tokens)
        assert encoder.task("encode").dim == expected.task("encode").dim == (12 if kind == "Dense" else 32)
        assert_same_tasks(encoder, expected, asked)
        assert all(part.device.type == "meta" for part in encoder.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_sent_without_its_weights(tmp_path: Path, family: str) -> None:
    if family == "XLM":
        pytest.importorskip("sacremoses")
    expected = Encoder.from_pretrained(save_family(tmp_path, family), dtype="float32")
    written = BytesIO()
    encoder_process._Weightless(written, pickle.HIGHEST_PROTOCOL).dump(expected)
    found = pickle.loads(written.getvalue())
    assert all(part.device.type == "meta" for part in found.model.parameters())
    for one, other in zip(
        Encoder.task(found, "token_embeddings").tokenize(TEXTS),
        expected.task("token_embeddings").tokenize(TEXTS),
        strict=True,
    ):
        assert_same(one.ids, other.ids)


@pytest.mark.slow
def test_a_checkpoint_that_can_not_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as here:
        Encoder.from_pretrained(tmp_path / "none")
    with pytest.raises(CheckpointError) as there:
        EncoderProcess(str(tmp_path / "none"))
    assert str(there.value) == str(here.value)


@pytest.mark.slow
def test_a_call_that_is_interrupted(head_folder: Callable[[str], Path]) -> None:
    """What the process sends of it later is not taken for the results of the next."""
    encoder = EncoderProcess(str(head_folder("vectors")))
    os.kill(encoder._process.pid or 0, signal.SIGSTOP)
    timer = threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        encoder.encode("one")
    with pytest.raises(ProcessEndedError, match="-9"):
        encoder.encode("other")
    encoder.close()


@pytest.mark.slow
def test_close(head_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = EncoderProcess(str(head_folder("vectors")))
    pid = encoder._process.pid or 0
    encoder.close()
    assert encoder.exit_code == 0
    assert not is_there(pid)
    encoder.close()
    with pytest.raises(ProcessEndedError, match="exit code 0"):
        encoder.encode("late")
    monkeypatch.setattr(encoder_process, "SECONDS_TO_END", 0.5)
    encoder = EncoderProcess(str(head_folder("vectors")))
    os.kill(encoder._process.pid or 0, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(encoder.encode, "a call that never ends")
        time.sleep(0.1)
        encoder.close()
        with pytest.raises(ProcessEndedError, match="exit code -9"):
            call.result(PATIENCE)
    assert encoder.exit_code == -9


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize(("end", "code"), [("forgotten", 0), ("killed", -signal.SIGKILL)])
def test_no_process_is_left_behind(head_folder: Callable[[str], Path], end: str, code: int) -> None:
    """By a program that does not close it, or can't."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, head_folder("vectors"), end], stdout=subprocess.PIPE, text=True,
        timeout=PATIENCE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == code
    shape, pid = done.stdout.rsplit(maxsplit=1)
    assert shape == "(32,)"
    wait_until(lambda: not is_there(int(pid)))
