"""Pre-training runs: stopped and gone on with, failing losses and disks, figures, several processes."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.paths import ROOT
from helpers.pretraining import curve, model, tokenizer, told, write_corpora
from helpers.processes import PATIENCE

from erniem_fast import ErnieMForMaskedLM
from erniem_fast.files.errors import InputError
from erniem_fast.training import pretrain as module
from erniem_fast.training.callbacks import StoppedError
from erniem_fast.training.exact_trainer import NonFiniteLossError, SavingError
from erniem_fast.training.mixing import once
from erniem_fast.training.pretrain import Outcome, pretrain
from erniem_fast.training.pretraining_settings import Corpora, corpora_of, make_parts
from erniem_fast.training.pretraining_trainer import EveryFewSteps
from erniem_fast.training.streams import MONOLINGUAL, PARALLEL


@pytest.fixture
def corpora(tmp_path: Path) -> Corpora:
    return write_corpora(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result of a run with evaluations that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    corpora = write_corpora(folder)
    run(folder / "out", corpora, corpora)
    return folder / "out"


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Send this process SIGTERM in a step of the next runs; 0: in none."""

    def at(step: int) -> None:
        def on_step_begin(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(EveryFewSteps, "on_step_begin", on_step_begin)

    return at


def run(out: Path, corpora: Corpora, evaluation: Corpora | None = None, **changes: Any) -> Outcome:
    return pretrain(model(), tokenizer(), str(out), told(**changes), corpora, evaluation, device="cpu", say=print)


def steps_of(out: Path) -> list[dict[str, float]]:
    return [entry for entry in curve(out) if "loss" in entry]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return ErnieMForMaskedLM.from_pretrained(out).state_dict()


def test_a_run_that_was_stopped_has_the_curve_of_one_that_was_not(
    tmp_path: Path, corpora: Corpora, signalled: Callable[[int], None]
) -> None:
    """Stopped between checkpoints, under gradient accumulation and dropout; other randomness in between."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    changes = {"steps": 4, "accumulation": 2, "save_every": 100}
    run(whole, corpora, **changes)
    signalled(3)
    with pytest.raises(StoppedError, match="stopped by signal 15 after step 3"):
        run(stopped, corpora, **changes)
    assert not stopped.exists()
    signalled(0)
    outcome = run(stopped, corpora, **changes)
    assert curve(stopped) == curve(whole)
    assert [entry["step"] for entry in curve(whole)] == [1, 2, 3, 4]
    assert outcome.tokens == curve(whole)[-1]["tokens"]
    found, expected = weights(stopped), weights(whole)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not stopped.with_name("stopped.partial").exists()
    assert run(stopped, corpora, **changes) == outcome  # complete already


def test_bad_settings_are_refused_before_any_work(tmp_path: Path, corpora: Corpora) -> None:
    with pytest.raises(InputError, match=r"--objectives 'tlm': reads pairs, but there are none; expected --parallel"):
        run(tmp_path / "out", replace(corpora, parallel=[]))
    with pytest.raises(InputError, match=r"--parallel: no objective reads it; expected texts for mmlm"):
        run(tmp_path / "out", corpora, objectives={"mmlm": 1.0, "tlm": 0.0})
    with pytest.raises(ValueError, match="objectives: got 'nsp', expected some of mmlm, tlm, camlm, btmlm"):
        told(objectives={"nsp": 1.0})
    with pytest.raises(ValueError, match="steps: got 0, expected at least 1"):
        told(steps=0)
    with pytest.raises(InputError, match="a CPU has no loss scaling"):
        run(tmp_path / "out", corpora, dtype="float16")
    (tmp_path / "texts.txt").open("a").write("a\0\n")
    with pytest.raises(InputError, match=r"texts.txt': line \d+ holds a NUL"):
        run(tmp_path / "out", corpora)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.tsv", "texts.txt"]


def test_inputs_are_told_apart_by_what_they_hold(tmp_path: Path, corpora: Corpora) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"source": "a", "target": "b"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "texts.tsv").write_text("ein Hund\neine Katze\n")
    (tmp_path / "bad.tsv").write_text("no pair\na\tb\n")  # whose first line is an error when it is read
    names = ["pairs.tsv", "texts.txt", "pairs.jsonl", "texts.jsonl", "texts.tsv", "bad.tsv"]
    found = corpora_of([str(tmp_path / name) for name in names], PARALLEL, MONOLINGUAL)
    assert [Path(path).name for path in found.parallel] == ["pairs.tsv", "pairs.jsonl", "bad.tsv"]
    assert [Path(path).name for path in found.monolingual] == ["texts.txt", "texts.jsonl", "texts.tsv"]


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 6])
def test_stopped_behind_a_checkpoint_or_the_last_step(
    tmp_path: Path, corpora: Corpora, whole: Path, signalled: Callable[[int], None], step: int
) -> None:
    signalled(step)
    with pytest.raises(StoppedError):
        run(tmp_path / "stopped", corpora, corpora)
    signalled(0)
    outcome = run(tmp_path / "stopped", corpora, corpora)
    assert curve(tmp_path / "stopped") == curve(whole)
    assert outcome.steps == 6
    assert set(outcome.figures) == {
        "eval_loss",
        "eval_mmlm_loss",
        "eval_tlm_loss",
        "eval_camlm_loss",
        "eval_btmlm_loss",
    }


@pytest.mark.slow
def test_losses_are_means_over_the_labels_of_each_objective(tmp_path: Path, corpora: Corpora) -> None:
    """Of the evaluation: those that follow from logits. Of training: the mean of all lies between them."""
    changes = {"objectives": {"tlm": 1.0, "mmlm": 3.0}, "steps": 1, "accumulation": 9, "learning_rate": 1e-30}
    outcome = run(tmp_path / "out", corpora, corpora, **changes)
    (step, _) = curve(tmp_path / "out")
    settings, fast = told(**changes), model().eval()
    fast.loss_only = False
    for part in make_parts(tokenizer(), settings, corpora, fast.config, shuffled=False):
        total = count = 0.0
        for batch in once(part, tokenizer(), batch_tokens=150):
            labels = batch.inputs["labels"]
            with torch.no_grad():
                logits = fast(**batch.inputs).logits
            total += float(F.cross_entropy(logits[0], labels[0], reduction="sum"))
            count += int((labels != -100).sum())
        assert outcome.figures[f"eval_{part.name}_loss"] == pytest.approx(total / count, rel=1e-5)
    both = outcome.figures["eval_tlm_loss"], outcome.figures["eval_mmlm_loss"]
    assert outcome.figures["eval_loss"] == pytest.approx((both[0] + 3 * both[1]) / 4)
    assert 9 * 50 < step["tokens"] < 9 * 150
    assert min(step["tlm_loss"], step["mmlm_loss"]) < step["loss"] < max(step["tlm_loss"], step["mmlm_loss"])


@pytest.mark.slow
def test_the_model_learns_all_objectives(tmp_path: Path, corpora: Corpora) -> None:
    """By heart, if it is shown few sentences often."""
    short = tmp_path / "few.tsv"
    short.write_text("".join(Path(corpora.parallel[0]).read_text().splitlines(keepends=True)[:6]))
    few = Corpora([str(short)])
    objectives = {"tlm": 1.0, "camlm": 1.0}
    changes = {"objectives": objectives, "steps": 100, "learning_rate": 2e-2, "save_every": 999, "eval_every": 999}
    encoder = model(hidden_size=64, num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    pretrain(encoder, tokenizer(), str(tmp_path / "out"), told(**changes), few, device="cpu", say=print)
    entries = curve(tmp_path / "out")
    for name in ("tlm_loss", "camlm_loss"):
        losses = [entry[name] for entry in entries if name in entry]
        assert losses[0] > 9
        assert sum(losses[-10:]) / 10 < 4


@pytest.mark.slow
def test_a_loss_of_nan_names_step_and_lines_and_saves_the_state(
    tmp_path: Path, corpora: Corpora, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step's: the weights before it are saved, and the checkpoint of step 2 is whole."""
    broken = model()
    forward = type(broken).forward
    calls = []

    def nan_in_third(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(type(broken), "forward", nan_in_third)
    out = tmp_path / "out"
    with pytest.raises(
        NonFiniteLossError, match=r"the loss is nan at step 3, of the samples .*(pairs.tsv|texts.txt):\d+"
    ):
        pretrain(broken, tokenizer(), str(out), told(), corpora, device="cpu", say=print)
    checkpoints = tmp_path / "out.partial" / "checkpoints"
    saved = torch.load(checkpoints / "failed-step-3" / "batch-0.pt", weights_only=False)
    assert saved["step"] == 3
    assert all(Path(name.rpartition(":")[0]).exists() for name in saved["names"])
    state = weights(checkpoints / "failed-step-3")
    assert all(value.isfinite().all() for value in state.values())
    run(out, corpora)  # goes on from step 2, and has a finite loss this time
    assert steps_of(out) == steps_of(whole)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, corpora: Corpora, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = torch.save, []

    def full(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(path)
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SavingError, match=r"checkpoint-4' can't be saved .*No space left.*checkpoint-2' is whole"):
        run(tmp_path / "out", corpora)
    monkeypatch.undo()
    assert saved
    run(tmp_path / "out", corpora)
    assert steps_of(tmp_path / "out") == steps_of(whole)


@pytest.mark.slow
def test_other_settings_or_files_need_a_restart(
    tmp_path: Path, corpora: Corpora, signalled: Callable[[int], None]
) -> None:
    out = tmp_path / "out"
    signalled(3)
    with pytest.raises(StoppedError):
        run(out, corpora)
    signalled(0)
    with pytest.raises(InputError, match=r"holds an unfinished run with other settings .*--seed was 0, is 1"):
        run(out, corpora, seed=1)
    with (tmp_path / "pairs.tsv").open("a") as file:
        file.write("a\tb\n")
    with pytest.raises(InputError, match=r"other settings .*the files was"):
        run(out, corpora)
    outcome = pretrain(model(), tokenizer(), str(out), told(seed=1), corpora, device="cpu", restart=True, say=print)
    assert outcome.steps == 6
    assert [entry["step"] for entry in curve(out)] == [1, 2, 3, 4, 5, 6]


CODE = """
import json, os, signal, sys
import torch
from helpers.pretraining import model, told, tokenizer
from erniem_fast.training import end_process_group
from erniem_fast.training.callbacks import StoppedError
from erniem_fast.training.pretrain import pretrain
from erniem_fast.training.pretraining_settings import Corpora
from erniem_fast.training.pretraining_trainer import EveryFewSteps, PretrainingTrainer
torch.set_num_threads(1)
folder, rank = sys.argv[1], os.environ.get("RANK", "0")
corpora = Corpora([f"{folder}/pairs.tsv"], [f"{folder}/texts.txt"])


def run(name):
    made = model()
    pretrain(made, tokenizer(), f"{folder}/{name}", told(), corpora, corpora, device="cpu", say=print)
    return made


"""
KILLED = """
save = torch.save


def killing(content, path, *rest, **options):
    save(content, path, *rest, **options)
    if "checkpoint-4" in str(path) and "optimizer" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)


torch.save = killing
run("out")
"""
TWO_PROCESSES = """
step = PretrainingTrainer.training_step
stop = 0


def noting(self, model, inputs, *rest):
    with open(f"{folder}/{self.args.output_dir.count('stopped')}-{rank}.txt", "a") as file:
        file.write(" ".join(place.rpartition("/")[2] for place in inputs["pretraining_batch"].places) + "\\n")
    return step(self, model, inputs, *rest)


def begin(self, args, state, control, **_):
    if state.global_step == stop - 1 and rank == "1":
        os.kill(os.getpid(), signal.SIGTERM)


PretrainingTrainer.training_step = noting
EveryFewSteps.on_step_begin = begin
torch.save(run("whole").state_dict(), f"{folder}/weights-{rank}.pt")
stop = 3
try:
    run("stopped")
except StoppedError as error:
    print(error)
stop = 0
run("stopped")
end_process_group()
"""


def launch(folder: Path, code: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run a script on what `write_corpora` wrote."""
    script = folder / "script.py"
    script.write_text(CODE + code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with(tmp_path: Path, corpora: Corpora, whole: Path) -> None:
    """Killed while a checkpoint is written: the one before serves."""
    done = launch(tmp_path, KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (tmp_path / "out.partial" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    run(tmp_path / "out", corpora, corpora)
    assert curve(tmp_path / "out") == curve(whole)


@pytest.mark.slow
def test_two_processes_read_their_shares_and_go_on(tmp_path: Path, corpora: Corpora) -> None:
    """Both learn the same weights, from samples of their own; stopped and gone on with as one is."""
    done = launch(tmp_path, TWO_PROCESSES, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert done.returncode == 0, done.stderr
    assert "stopped by signal 15 after step 3" in done.stdout
    assert "Going on from" in done.stdout
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    states = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    read = [[(tmp_path / f"{out}-{rank}.txt").read_text() for rank in (0, 1)] for out in (0, 1)]
    assert read[0] == read[1]
    first, second = (set(text.split()) for text in read[0])
    assert first
    assert second
    assert not first & second  # less than an epoch
    settled = json.loads((tmp_path / "whole" / "run.json").read_text())["settled"]["outcome"]
    assert settled["tokens"] == steps_of(tmp_path / "whole")[-1]["tokens"]


@pytest.mark.slow
def test_bfloat16_and_a_checkpoint_of_the_last_step_alone(tmp_path: Path, corpora: Corpora) -> None:
    """A run that is killed between its last checkpoint and its end does no step more."""
    put_in_place = module.RunFolder.put_in_place
    try:
        module.RunFolder.put_in_place = lambda self: (_ for _ in ()).throw(OSError("made up"))  # type: ignore[method-assign]
        with pytest.raises(OSError, match="made up"):
            run(tmp_path / "out", corpora, dtype="bfloat16")
    finally:
        module.RunFolder.put_in_place = put_in_place  # type: ignore[method-assign]
    saved = weights(tmp_path / "out.partial" / "checkpoints" / "checkpoint-6")
    outcome = run(tmp_path / "out", corpora, dtype="bfloat16")
    assert outcome.steps == 6
    steps = [entry["step"] for entry in steps_of(tmp_path / "out")]
    assert steps == [1, 2, 3, 4, 5, 6]
    found = weights(tmp_path / "out")
    assert all(torch.equal(saved[name], value) for name, value in found.items())
