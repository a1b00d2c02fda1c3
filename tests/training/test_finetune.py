"""Fine-tuning runs: what they give, how they end, and how they go on."""

import hashlib
import json
import os
import random
import resource
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from erniem_fast import Encoder, ErnieMConfig, ErnieMForTokenClassification
from erniem_fast.files.errors import InputError
from erniem_fast.training import PackedCollator
from erniem_fast.training.callbacks import StoppedError
from erniem_fast.training.exact_trainer import NonFiniteLossError, SavingError, count_items
from erniem_fast.training.finetune import Recipe, fine_tune
from erniem_fast.training.run_folder import RUN, RunFolder
from erniem_fast.training.sampler import TokenBudgetBatchSampler
from erniem_fast.training.tasks.base import Asked
from erniem_fast.training.tasks.classify import Classification
from erniem_fast.training.trainer import PackedTrainer, num_tokens

SETTINGS = {"epochs": 2, "batch_tokens": 64, "learning_rate": 2e-2, "layer_decay": 0.9}
Acts = dict[int, Callable[[Any], Any]]


class Acting(Recipe):
    """Does something with the loss at steps, counted from 1 in this process."""

    def __init__(self, acts: Acts) -> None:
        self.acts, self.calls = acts, 0

    def objective(self, objective: Any, model: Any) -> Any:
        def acting(model: Any, batch: Any, num_items: Any) -> Any:
            loss, outputs = objective(model, batch, num_items)
            if model.training:
                self.calls += 1
                if self.calls in self.acts:
                    loss = self.acts[self.calls](loss)
            return loss, outputs

        return acting


class Run:
    """A command, as often as it takes."""

    def __init__(self, train: Path, dev: Path | None, model: Path, out: Path, **more: Any) -> None:
        self.files = (str(train), None if dev is None else str(dev))
        self.options = {
            "model": str(model), "settings": SETTINGS, "dtype": "float32", "device": "cpu",
            "asked": Asked(Classification),
        } | more  # fmt: skip
        self.out = out
        self.said: list[str] = []

    def __call__(self, acts: Acts | None = None, **more: Any) -> dict[str, float]:
        options = self.options | {"out": str(self.out), "say": self.said.append} | more
        return fine_tune(options.pop("asked"), *self.files, recipe=Acting(acts or {}), **options)

    @property
    def partial(self) -> Path:
        return self.out.with_name(self.out.name + ".partial")


def curve(folder: Path) -> list[dict[str, Any]]:
    """Every logged figure but times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [
        {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
        for entry in entries
    ]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def run(examples: Any, checkpoint: Path, tmp_path: Path) -> Run:
    return Run(examples("train.jsonl", 40), examples("dev.jsonl", 9), checkpoint, tmp_path / "out")


def stop(number: int) -> Callable[[Any], Any]:
    def act(loss: Any) -> Any:
        signal.raise_signal(number)
        return loss

    return act


def test_a_run_that_is_stopped_gives_what_one_that_is_not_gives(run: Run, tmp_path: Path) -> None:
    whole = run(out=str(tmp_path / "whole"))
    steps = sum("loss" in entry for entry in curve(tmp_path / "whole"))
    first = random.randint(1, steps - 1)
    print(f"stopped at {first} of {steps}")
    with pytest.raises(StoppedError, match=f"signal {int(signal.SIGTERM)} after step {first}$"):
        run({first: stop(signal.SIGTERM)})
    assert not run.out.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run() == whole
    assert curve(run.out) == curve(tmp_path / "whole")
    assert digests(run.out)["model.safetensors"] == digests(tmp_path / "whole")["model.safetensors"]
    assert not run.partial.exists()
    # The best model, as it was evaluated, and no other.
    best = max(entry["eval_accuracy"] for entry in curve(run.out) if "eval_accuracy" in entry)
    assert whole["accuracy"] == best
    texts = [json.loads(line) for line in Path(run.files[1] or "").read_text().splitlines()]
    found = Encoder.from_pretrained(str(run.out), dtype="float32").classify([one["text"] for one in texts])
    right = sum(one["label"] == label["label"] for one, label in zip(texts, found, strict=True))
    assert right / len(texts) == pytest.approx(best)
    card = (run.out / "README.md").read_text()
    for part in (f"{best:.4f}", "train.jsonl", "dev.jsonl", "--learning-rate | 0.02", "transformers |"):
        assert part in card
    model = AutoModelForSequenceClassification.from_pretrained(run.out)
    ids = AutoTokenizer.from_pretrained(run.out)(texts[0]["text"], return_tensors="pt")
    assert model.config.id2label[int(model(**ids).logits.argmax())] == found[0]["label"]
    # Again: nothing is left to do.
    before = digests(run.out)
    assert run() == whole
    assert "complete already" in run.said[-1]
    assert digests(run.out) == before


IDLE = {"learning_rate": 1e-12, "epochs": 8, "patience": 2}
"""No evaluation is better than the first."""


@pytest.fixture
def short(examples: Any, checkpoint: Path, tmp_path: Path) -> Run:
    """A run of a few steps an epoch."""
    return Run(examples("train.jsonl", 12), examples("dev.jsonl", 3), checkpoint, tmp_path / "out")


def assert_same(run: Run, whole: Path, figures: dict[str, float], expected: dict[str, float]) -> None:
    """Two runs gave the same, though one went on from a checkpoint."""
    assert list(figures.items()) == list(expected.items())
    assert curve(run.out) == curve(whole)
    assert "train_loss" not in (run.out / "metrics.jsonl").read_text()
    assert digests(run.out)["model.safetensors"] == digests(whole)["model.safetensors"]
    (steps, found) = (
        [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| steps |")]
        for folder in (whole, run.out)
    )
    assert steps
    assert steps == found


@pytest.mark.slow
def test_patience_goes_on_where_a_run_was_stopped(
    short: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS | IDLE
    whole = short(out=str(tmp_path / "whole"), settings=settings)
    evaluated = [entry["step"] for entry in curve(tmp_path / "whole") if "eval_accuracy" in entry]
    assert len(evaluated) == 3
    with pytest.raises(StoppedError):
        short({evaluated[1]: stop(signal.SIGTERM)}, settings=settings)
    capfd.readouterr()
    assert_same(short, tmp_path / "whole", short(settings=settings), whole)
    assert "allback" not in capfd.readouterr().err  # Trainer warns of states that it can't restore


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"epochs": 0.5}, {"epochs": 2}, IDLE])
def test_a_run_that_is_killed_behind_its_last_step_does_none_more(
    short: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = SETTINGS | settings
    whole = short(out=str(tmp_path / "whole"), settings=settings)

    def fail(folder: RunFolder) -> None:
        raise OSError("made up")

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "put_in_place", fail)
        with pytest.raises(OSError, match="made up"):
            short(settings=settings)
    assert_same(short, tmp_path / "whole", short({1: lambda loss: pytest.fail("a step")}, settings=settings), whole)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"eval_steps": 3}, None])
def test_a_run_that_is_stopped_at_its_last_step_is_evaluated_and_does_none_more(
    short: Run, tmp_path: Path, more: dict[str, Any] | None
) -> None:
    """Which lies within an epoch."""
    settings = SETTINGS | {"epochs": 0.5} | (more or {})
    if more is None:
        short.files = (short.files[0], None)
    whole = short(out=str(tmp_path / "whole"), settings=settings)
    steps = sum("loss" in entry for entry in curve(tmp_path / "whole"))
    with pytest.raises(StoppedError, match=f"after step {steps}$"):
        short({steps: stop(signal.SIGTERM)}, settings=settings)
    assert_same(short, tmp_path / "whole", short(settings=settings), whole)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_state(run: Run) -> None:
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 2, of the samples line") as caught:
        run({2: lambda loss: loss * float("nan")})
    (folder,) = run.partial.glob("checkpoints/failed-step-2")
    state = torch.load(folder / "batch-0.pt", weights_only=True)
    assert state["step"] == 2
    # The lines that are named are those of the batch.
    lines = Path(run.files[0]).read_text().splitlines()
    tokenizer = AutoTokenizer.from_pretrained(run.options["model"])
    offsets = state["batch"]["cu_seq_lens_q"].tolist()
    rows = [state["batch"]["input_ids"][0, a:b].tolist() for a, b in pairwise(offsets)]
    named = [json.loads(lines[int(name.removeprefix("line ")) - 1])["text"] for name in state["names"]]
    assert [tokenizer(text)["input_ids"] for text in named] == rows
    assert all(name in str(caught.value) for name in state["names"][:8])
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 2


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again(run: Run, tmp_path: Path) -> None:
    whole = run(out=str(tmp_path / "whole"))
    left = sum("loss" in entry for entry in curve(tmp_path / "whole"))
    while left:
        steps = random.randint(1, left)
        left -= steps
        with pytest.raises(StoppedError):
            run({steps: stop(random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))})
    assert run() == whole
    assert curve(run.out) == curve(tmp_path / "whole")


@pytest.mark.parametrize(
    ("processes", "budget", "message"),
    [(2000, 64, "TRAIN: .* a sample for each of 2000 processes"), (2, 1, "--batch-tokens 64: .* at least")],
)
def test_samples_that_processes_cannot_share(
    run: Run, monkeypatch: pytest.MonkeyPatch, processes: int, budget: int, message: str
) -> None:
    def shared(lengths: list[int], max_tokens: int, **options: Any) -> TokenBudgetBatchSampler:
        return TokenBudgetBatchSampler([*lengths, 3][: len(lengths) // 2 * 2 + 1], budget, num_replicas=processes)

    monkeypatch.setattr("erniem_fast.training.trainer.TokenBudgetBatchSampler", shared)
    with pytest.raises(InputError, match=message):
        run()


def test_a_full_disk_is_named_where_torch_does_not_name_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr("transformers.Trainer._save_checkpoint", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(SavingError, match=r"can't be saved \(the disk is full: unexpected pos 64 vs 0\)"):
        run()


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(run: Run, tmp_path: Path) -> None:
    run(out=str(tmp_path / "whole"))
    steps = sum("loss" in entry for entry in curve(tmp_path / "whole"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: dict[str, dict[str, str]] = {}

    def fill(loss: Any) -> Any:
        for path in run.partial.glob("checkpoints/checkpoint-*"):
            kept[path.name] = digests(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        return loss

    try:
        with pytest.raises(
            SavingError, match=f"checkpoint-{steps}' can't be saved .*checkpoint-{steps // 2}' is whole"
        ):
            run({steps: fill})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (path,) = run.partial.glob("checkpoints/*")
    assert {path.name: digests(path)} == kept
    run()
    assert curve(run.out) == curve(tmp_path / "whole")


@pytest.mark.slow
def test_what_a_run_is_not_gone_on_with(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run({1: stop(signal.SIGTERM)})
    with pytest.raises(InputError, match=r"unfinished run with other settings \(--seed was 42, is 1\).*--restart"):
        run(settings=SETTINGS | {"seed": 1})
    figures = run(settings=SETTINGS | {"seed": 1, "epochs": 1}, restart=True)
    with pytest.raises(InputError, match=r"the model of another run \(--epochs was 1, is 2\)"):
        run()
    assert run(settings=SETTINGS | {"seed": 1, "epochs": 1}) == figures
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("kept")
    for restart in (False, True):
        with pytest.raises(InputError, match="holds files; expected an empty folder"):
            run(out=str(other), restart=restart)
    assert os.listdir(other) == ["mine.txt"]


def test_bad_input_leaves_nothing_behind(run: Run, save_model: Any, tmp_path: Path) -> None:
    labels = {"id2label": {0: "plant", 1: "colour"}, "label2id": {"plant": 0, "colour": 1}}
    other = save_model("ErnieMForSequenceClassification", **labels)
    before = set(os.listdir(tmp_path))
    with pytest.raises(
        InputError, match=r"data has the labels 'animal', 'colour', the head 'plant', 'colour'.*--new-head"
    ):
        run(model=str(other))
    with pytest.raises(InputError, match=r"--max-length 65: the model takes at most 64"):
        run(settings=SETTINGS | {"max_length": 65})
    with pytest.raises(InputError, match=r"--layer-decay 1.5: expected more than 0, and at most 1"):
        run(settings=SETTINGS | {"layer_decay": 1.5})
    with pytest.raises(InputError, match="--preset 'mlqa': is for qa; expected one for classify: xnli"):
        run(preset="mlqa")
    with open(run.files[0], "a") as file:
        file.write('{"text": 3, "label": "colour"}\n')
    with pytest.raises(InputError, match=r"TRAIN .*line 41 has 'text' of type int"):
        run()
    assert set(os.listdir(tmp_path)) == before
    run(model=str(other), new_head=True, skip_bad_lines=True, settings=SETTINGS | {"epochs": 1})
    assert any(line.startswith("1 bad lines of ") and "line 41" in line for line in run.said)
    config = json.loads((run.out / "config.json").read_text())
    assert config["id2label"] == {"0": "animal", "1": "colour"}
    assert json.loads((run.out / RUN).read_text())["asked"]["--skip-bad-lines"] is True


def test_a_batch_without_labels_changes_nothing(tmp_path: Path) -> None:
    config = ErnieMConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = ErnieMForTokenClassification(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [[0, *torch.randint(5, 50, (length,)).tolist(), 2] for length in (3, 5, 4)]
    trainer = PackedTrainer(
        model,
        TrainingArguments(
            str(tmp_path), max_steps=3, use_cpu=True, report_to="none", logging_steps=1, save_strategy="no",
            remove_unused_columns=False, disable_tqdm=True, weight_decay=0.0,
        ),
        train_dataset=[{"input_ids": row, "labels": [-100] * len(row)} for row in rows],
        data_collator=PackedCollator.for_model(model),
        batch_tokens=8,
    )  # fmt: skip
    trainer.train()
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == [0.0] * 3
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"gradient_checkpointing": True}, 1e-5), ({"dtype": "bfloat16"}, 0.05)],
)
def test_other_ways_to_compute_give_about_the_same_losses(
    run: Run, tmp_path: Path, options: dict[str, Any], tolerance: float
) -> None:
    settings = SETTINGS | {"epochs": 1, "learning_rate": 1e-3}
    run(out=str(tmp_path / "plain"), settings=settings)
    run(settings=settings, **options)
    plain, other = ([one["loss"] for one in curve(folder) if "loss" in one] for folder in (tmp_path / "plain", run.out))
    assert other == pytest.approx(plain, rel=tolerance)
    assert other != plain or "gradient_checkpointing" in options


def test_items_and_tokens() -> None:
    ignored = -100
    assert count_items({"labels": torch.tensor([[1, ignored, 0], [ignored, ignored, 2]])}) == 3
    assert count_items({"labels": torch.rand(4, 3)}) == 12
    assert count_items({"start_positions": torch.tensor([3, ignored, 0, -1])}) == 2
    boundaries = torch.tensor([[0.0, 1.0, ignored], [ignored] * 3])
    assert count_items({"start_positions": boundaries}) == 1
    assert count_items({"input_ids": boundaries}) is None
    assert num_tokens({"input_ids": [4, 5, 6]}) == 3
    assert num_tokens({"input_ids": [[4, 5, 6], [7]]}) == 4
