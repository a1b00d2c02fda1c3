"""The GPU suite runs dry on a CPU, and refuses, records and leaves out what it should. No time decides a test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import ROOT
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from bench import (
    closeness,
    compiling,
    gpu,
    gpu_cases,
    gpu_shapes,
    gpu_tables,
    kernel_cases,
    peers,
    plots,
    roofline,
    table,
    timing,
    work,
)  # fmt: skip
from bench.gpu_cases import GpuCase, Measured, measure
from bench.gpu_results import ResultFile
from bench.registry import Operation, Prepared
from bench.shapes import TINY_BATCH, Batch, Setting, Shape
from bench.work import Work
from erniem_fast import reference

CEILINGS = {"matrix_tflops": 1.0, "copy_gbps": 1.0}
CUDA_ONLY = {
    "varlen_attn", "padded sdpa, flash", "padded sdpa, cudnn", "liger", "varlen_attn, compiled", "padding-free, graphs"
}  # fmt: skip
DYNAMO_SETTINGS = ("recompile_limit", "fail_on_recompile_limit_hit", "specialize_float")
FORWARD_ONLY = {"matrix products", "triton, epilogue", "padding-free, batch-invariant"}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Both parts, as `make gpu` would start them."""
    folder = tmp_path_factory.mktemp("results")
    variables = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "bench.gpu", "--tiny", "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    files = {path.name.rsplit("-cpu-", 1)[0]: json.loads(path.read_text("utf-8")) for path in folder.iterdir()}
    assert files.keys() == {"gpu-kernels", "gpu-models"}, "no temporary file stays"
    return files


def test_the_dry_run_goes_through_every_provider(dry_run: dict[str, dict[str, Any]]) -> None:
    for part in gpu_shapes.PARTS:
        content = dry_run[f"gpu-{part}"]
        chosen = gpu_cases.cases(part, "cpu", tiny=True)
        assert content["done"] == [case.name for case in chosen]
        assert (content["left_out"], content["failed"]) == ([], [])
        expected = {(case.name, name) for case in chosen for name in case.operation.providers}
        timed = {(row["case"], row["provider"]) for row in content["rows"]}
        skipped = {(one["case"], one["provider"]) for one in content["skipped"]}
        assert timed | skipped == expected
        assert not timed & skipped
        assert {name for _, name in skipped} <= CUDA_ONLY | FORWARD_ONLY
        assert not {one["provider"] for one in content["rows"]} & CUDA_ONLY
        assert {one["provider"] for one in content["rows"]} >= FORWARD_ONLY & {name for _, name in expected}
        assert all(one["reason"] for one in content["skipped"])


def test_the_dry_run_says_what_it_ran_on_and_how_each_figure_was_checked(dry_run: dict[str, dict[str, Any]]) -> None:
    for content in dry_run.values():
        assert content["tiny"]
        assert {"commit", "dirty", "date", "device", "processor", "driver", "versions"} <= content.keys()
        (run,) = content["runs"]
        assert {"clocks_before", "clocks_after", "seconds"} <= run.keys()
        assert min(run["ceilings"].values()) > 0
        for row in content["rows"]:
            assert row["run"] == 0
            assert 0 < row["min_s"] <= row["p10_s"] <= row["time_s"] <= row["p90_s"]
            assert row["host_s"] > 0
            compared = row["provider"] not in ("XLM-R, sdpa", "matrix products")
            assert (row["checked"] != "not compared") == compared
            assert not compared or 0 <= row["error_share"] <= 1
            assert row["bytes"] > 0
            assert row["gbps"] == pytest.approx(row["bytes"] / row["time_s"] / 1e9, rel=1e-3)
            assert ("gradients" in row["checked"]) == (compared and row["passes"] != work.FORWARD)
            assert "own" in row["note"] or row["provider"] != "XLM-R, sdpa"


def test_models_say_what_their_figures_depend_on(dry_run: dict[str, dict[str, Any]]) -> None:
    for row in dry_run["gpu-models"]["rows"]:
        trains = row["operation"].startswith("training")
        assert row["optimizer"] == ({"training": False, "training+AdamW": True}[row["operation"]] if trains else None)
        assert (row["weights_dtype"], row["autocast"]) == (("float32", "bfloat16") if trains else ("bfloat16", None))
        assert (row["dropout_p"] > 0) == trains
        assert (row["real_tokens"], row["padded_tokens"]) == (24, 46)
        assert {"histogram", "order", "sequences", "batches"} <= row.keys()
        if row["provider"] != "matrix products":
            memory = row["memory_bytes"]
            assert memory["total"] == memory["peak"] + memory["weights"] + memory["optimizer"]
            assert (memory["optimizer"] > 0) == ("AdamW" in row["operation"])


def an_operation(compute: Callable[[], Tensor], results: Callable[[], list[Tensor]] | None = None) -> Operation:
    """With a provider that is right, and `compute`, whose results are `results` or what it returns."""

    class Inputs:
        work = Work(10, 20)

        def expected(self, dropout_p: float) -> tuple[list[Tensor], None]:
            return [torch.ones(3, dtype=torch.float64)], None

    operation = Operation("double", lambda *_: Inputs(), (TINY_BATCH,), TINY_BATCH, "formula", "right", rounds=0)
    operation.provider("right")(lambda _: Prepared(lambda: None, None, results=lambda: [torch.ones(3)]))
    operation.provider("other")(lambda _: Prepared(compute, None, results=results or (lambda: [compute()])))
    return operation


def measured_with(operation: Operation) -> Measured:
    return measure(GpuCase("kernels", operation, TINY_BATCH, Setting()), CEILINGS, 0.0)


@pytest.mark.parametrize("wrong", [torch.ones(3) + 1e-3, torch.full((3,), float("nan")), torch.ones(2)])
def test_a_wrong_result_gets_no_figure(wrong: Tensor) -> None:
    measured = measured_with(an_operation(lambda: wrong))
    assert [row["provider"] for row in measured.rows] == ["right"]
    (failure,) = measured.failed
    assert failure["provider"] == "other"
    assert "WrongResultError" in failure["message"]


def test_a_provider_that_raises_is_recorded_and_the_rest_goes_on() -> None:
    def out_of_memory() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    measured = measured_with(an_operation(out_of_memory))
    assert [row["provider"] for row in measured.rows] == ["right"]
    assert measured.failed[0]["message"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    calls = []

    def raises_later() -> Tensor:
        calls.append(0)
        if len(calls) > 2:
            raise RuntimeError("later")
        return torch.ones(3)

    measured = measured_with(an_operation(raises_later, lambda: [torch.ones(3)]))
    assert [row["provider"] for row in measured.rows] == ["right"]
    assert measured.failed[0]["message"] == "RuntimeError: later"


def test_inputs_that_cannot_be_made_fail_the_case_alone() -> None:
    def make(shape: Shape, setting: Setting) -> None:
        raise torch.OutOfMemoryError("too long")

    operation = Operation("double", make, (TINY_BATCH,), TINY_BATCH, "formula", "right", rounds=0)
    assert measured_with(operation).failed[0]["provider"] == "all"


def test_sixteen_bits_may_be_twice_as_wrong_as_plain_pytorch() -> None:
    right = torch.tensor([1.0, -2.0], dtype=torch.float64)
    plain = (right + torch.tensor([0.01, 0.0])).bfloat16()
    near, far = (right + torch.tensor([0.0, error], dtype=torch.float64) for error in (0.015, 0.05))
    close = closeness.compare([near], [right], [plain])
    assert 0 < close.share <= 1
    assert close.error == pytest.approx(0.015)
    with pytest.raises(closeness.WrongResultError, match="error of the output"):
        closeness.compare([far], [right], [plain])
    with pytest.raises(closeness.WrongResultError, match="error of gradient 1"):
        closeness.compare([right, far], [right, right], [plain, plain])
    with pytest.raises(closeness.WrongResultError, match="1 results, expected 2"):
        closeness.compare([right], [right, right], None)


def some_cases(monkeypatch: pytest.MonkeyPatch, names: str, act: Callable[[str], None]) -> list[GpuCase]:
    """Cases of those names; measuring one calls `act`."""

    def fake(case: GpuCase, ceilings: dict[str, float], seconds: float) -> Measured:
        act(case.operation.name)
        return Measured(rows=[{"case": case.name, "provider": "p", "time_s": 1.0, "host_s": 1.0, "ratio": None}])

    monkeypatch.setattr(gpu, "measure", fake)
    operations = [Operation(name, lambda *_: None, (), TINY_BATCH, "", "", rounds=0) for name in names]
    return [GpuCase("kernels", operation, TINY_BATCH, Setting()) for operation in operations]


def new_file(path: Path, **about: Any) -> ResultFile:
    return ResultFile.new(path, {"device": "cpu", "commit": "c", "dirty": False, "date": "d"} | about)


def test_what_does_not_fit_is_listed_and_a_later_run_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, done = tmp_path / "gpu-kernels-cpu-2030-01-01.json", []

    def slow(name: str) -> None:
        done.append(name)
        time.sleep(0.06)

    chosen = some_cases(monkeypatch, "abcd", slow)
    file = new_file(path)
    begun = time.monotonic()
    gpu.run(file, chosen, time.monotonic() - begun + 0.05, True, time.monotonic())
    content = json.loads(path.read_text("utf-8"))
    assert 1 <= len(done) < 4
    assert content["done"] == [case.name for case in chosen[: len(done)]]
    assert content["left_out"] == [case.name for case in chosen[len(done) :]]
    first = len(done)
    again = ResultFile.read(path)
    about = {"device": "cpu", "commit": "c", "dirty": False, "date": "later"}
    assert again.continues(about)
    assert not again.continues(about | {"commit": "another"})
    assert not again.continues(about | {"dirty": True})
    gpu.run(again, chosen, 60.0, True, time.monotonic())
    content = json.loads(path.read_text("utf-8"))
    assert done == list("abcd")
    assert content["left_out"] == []
    assert [row["run"] for row in content["rows"]] == [0] * first + [1] * (4 - first)
    assert len(content["runs"]) == 2
    assert not again.continues(about), "nothing is left to go on with"


def test_the_command_resumes_the_newest_file_of_the_same_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chosen = some_cases(monkeypatch, "ab", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "cases", lambda part, device, tiny: chosen)
    monkeypatch.setattr(gpu, "git", lambda *arguments: "" if arguments[0] == "status" else "0123abc")
    arguments = ["kernels", "--tiny", "--output", str(tmp_path)]
    assert gpu.main([*arguments, "--seconds", "0"]) == 0
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text("utf-8"))["left_out"] == [case.name for case in chosen]
    assert gpu.main([*arguments, "--resume"]) == 0
    content = json.loads(path.read_text("utf-8"))
    assert content["done"] == [case.name for case in chosen]
    assert [row["run"] for row in content["rows"]] == [1, 1]
    assert gpu.main([*arguments, "--resume"]) == 1
    assert "nothing to go on with" in capsys.readouterr().err


def test_the_suite_needs_no_benchmark_or_plot_package() -> None:
    code = "import sys, bench.gpu; print({'pytest', 'pytest_benchmark', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr


def test_an_interrupted_run_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(name: str) -> None:
        if name == "b":
            raise KeyboardInterrupt

    chosen = some_cases(monkeypatch, "abc", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(new_file(tmp_path / "result.json"), chosen, 60.0, True, time.monotonic())
    content = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert content["done"] == [chosen[0].name]
    assert len(content["rows"]) == 1
    assert content["left_out"] == [chosen[1].name, chosen[2].name]


def test_a_case_that_is_broken_off_is_left_for_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 0.0)
    chosen = some_cases(monkeypatch, "abc", lambda name: time.sleep(30 if name == "b" else 0))
    file = new_file(tmp_path / "result.json")
    gpu.run(file, chosen, 1.5, True, time.monotonic())
    content = json.loads(file.path.read_text("utf-8"))
    assert content["done"] == [chosen[0].name]
    assert content["left_out"] == [chosen[1].name, chosen[2].name]
    assert content["failed"] == []


def test_another_process_goes_on_after_a_lost_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The case that broke it is done, and charged to the provider that came first."""
    lost = False

    def measured(case: GpuCase, *_: Any) -> Measured:
        nonlocal lost
        lost = case.operation.name == "b"
        broken = "AcceleratorError: CUDA error: an illegal memory access was encountered"
        messages = {"large": "OutOfMemoryError: CUDA out of memory", "peer": broken, "triton": broken}
        failed = [{"case": case.name, "provider": name, "message": text} for name, text in messages.items()]
        return Measured(failed=failed if lost else [])

    chosen = some_cases(monkeypatch, "abc", lambda name: None)
    monkeypatch.setattr(gpu, "measure", measured)
    monkeypatch.setattr(gpu, "context_is_lost", lambda device: lost)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "cases", lambda part, device, tiny: chosen)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))
    assert gpu.main(["kernels", "--tiny", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text("utf-8"))
    assert content["done"] == [chosen[0].name, chosen[1].name]
    assert content["left_out"] == [chosen[2].name]
    assert [failure["provider"] for failure in content["failed"]] == ["large", "peer"]
    ((*_, part, resume, _, seconds, _, folder, tiny),) = started
    assert (part, resume, folder, tiny) == ("kernels", "--resume", str(tmp_path), "--tiny")
    assert 0 < float(seconds) <= gpu.SECONDS


def test_an_error_of_the_suite_itself_does_not_end_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def out_of_memory(device: str) -> None:
        raise torch.cuda.OutOfMemoryError("no memory for the suite")

    chosen = some_cases(monkeypatch, "ab", lambda name: None)
    monkeypatch.setattr(gpu, "release", out_of_memory)
    file = new_file(tmp_path / "result.json")
    gpu.run(file, chosen, 60.0, True, time.monotonic())
    assert file.content["done"] == [case.name for case in chosen]
    assert {failure["message"] for failure in file.content["failed"]} == {"OutOfMemoryError: no memory for the suite"}


@pytest.fixture
def _settings_of_the_compiler() -> Iterator[None]:
    """What the suite sets for its whole process stays in this test."""

    def forget() -> None:
        torch._dynamo.reset()
        compiling.compiled.cache_clear()
        compiling._prepare.cache_clear()

    forget()
    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    settings = {name: getattr(dynamo, name) for name in DYNAMO_SETTINGS}
    with dynamo.patch(settings), functorch.patch(donated_buffer=functorch.donated_buffer):
        yield
    forget()


@pytest.mark.usefixtures("_settings_of_the_compiler")
def test_compiled_peers_know_the_model_s_sizes_but_not_the_batch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiling, "backend", lambda device: counter)
    chain = compiling.compiled(kernel_cases.add_norm_chain, "cpu", ((0,), (0,), (), (), ()))
    frames = []
    for rows, size, p in ((8, 16, 0.1), (9, 16, 0.1), (700, 16, 0.1), (8, 32, 0.1), (11, 32, 0.1), (12, 32, 0.0)):
        x, vector = torch.randn(rows, size), torch.randn(size)
        chain(x, x.clone(), vector, vector.clone(), vector.clone(), p)
        frames.append(counter.frame_count)
    assert frames == [1, 1, 1, 2, 2, 3]


def test_a_case_that_hangs_is_broken_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hang(name: str) -> None:
        try:
            time.sleep(30 if name == "b" else 0)
        except Exception:
            pytest.fail("a provider's handler must not catch it")

    monkeypatch.setattr(gpu, "GRACE_SECONDS", 0.0)
    chosen = some_cases(monkeypatch, "b", hang)
    file = new_file(tmp_path / "result.json")
    gpu.run(file, chosen, 1.5, True, time.monotonic())
    (failure,) = file.content["failed"]
    assert failure["message"].startswith("broken off: ")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_write_that_fails_leaves_the_file_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = new_file(tmp_path / "result.json")
    file.write()
    before = file.path.read_text("utf-8")

    def full(*_: Any) -> None:
        raise OSError("no space left")

    file.begin({})
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        file.write()
    assert file.path.read_text("utf-8") == before
    assert list(tmp_path.iterdir()) == [file.path]


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["kernels"]) == 0
    assert "SKIPPED: no CUDA device" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--tiny"])


def test_turns_are_taken_and_rounds_counted() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times, failures = timing.in_turns(runs, "cpu", 0.0)
    assert not failures
    assert calls[2:] == ["a", "b"] * 2
    assert len(times["a"].device_s) == len(times["a"].host_s) == len(times["b"].wall_s) == 2
    assert len(timing.in_turns({"a": lambda: None}, "cpu", 10.0)[0]["a"].device_s) == timing.MAX_ROUNDS
    slow = timing.in_turns({"a": lambda: time.sleep(0.01)}, "cpu", 0.001)[0]["a"]
    assert len(slow.device_s) == timing.MIN_ROUNDS
    assert min(slow.host_s) >= 0.01


def test_the_device_is_timed_with_a_cold_cache_and_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("event")

        def elapsed_time(self, end: "Event") -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append(("wait", cycles)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("done"))
    flushed = torch.ones(4, dtype=torch.int32)

    def run() -> None:
        told.append(("run", int(flushed.sum())))

    assert timing._device(run, flushed, 1e-3) == 2e-3
    assert told == [("wait", int(2e-3 * timing.CYCLES_PER_S)), "event", ("run", 0), "event", "done"]


def test_kernels_are_timed_cold_and_models_from_call_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(runs: Any, device: str, seconds: float, cold: bool) -> tuple[dict, dict]:
        asked.append(cold)
        return {}, {}

    monkeypatch.setattr(gpu_cases, "in_turns", fake)
    operation = an_operation(lambda: torch.ones(3))
    for part in gpu_shapes.PARTS:
        measure(GpuCase(part, operation, TINY_BATCH, Setting()), CEILINGS, 0.0)
    assert asked == [True, False]


def test_clocks_are_read_where_the_tool_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert timing.nvidia_smi(*timing.CLOCKS) is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '1980 MHz, 3201 MHz'\n")
    tool.chmod(0o755)
    assert timing.nvidia_smi("clocks.sm", "clocks.mem") == {"clocks.sm": "1980 MHz", "clocks.mem": "3201 MHz"}
    assert timing.nvidia_smi("clocks.sm") is None, "an answer that does not fit the question"


def test_shapes_hold_the_tokens_that_their_names_say() -> None:
    for shape in gpu_shapes.ATTENTION_SHAPES + gpu_shapes.ROW_SHAPES:
        assert shape.real_tokens == int(shape.name.rsplit("-", 1)[1].removesuffix("k")) * 1024
        assert max(shape.batches[0]) <= 512
        assert min(shape.batches[0]) > 0
    pairs = gpu_shapes.lengths_of("pairs")
    assert 42 < sum(pairs) / len(pairs) < 48
    arrival, by_length = (gpu_shapes.batched("xquad", order, gpu_shapes.BASE_MODEL) for order in ("arrival", "sorted"))
    assert [len(batch) for batch in arrival.batches] == [64] * 8
    assert by_length.padded_tokens < 1.3 * by_length.real_tokens < arrival.padded_tokens


def test_cases_come_once_and_the_most_important_first() -> None:
    for part in gpu_shapes.PARTS:
        names = [case.name for case in gpu_cases.cases(part, "cuda", tiny=False)]
        assert len(set(names)) == len(names)
    kernels, models = (gpu_cases.cases(part, "cuda", tiny=False) for part in gpu_shapes.PARTS)
    assert kernels[0].name == "attention/pairs-64k/2x768/bfloat16/forward/dropout 0"
    assert models[0].name == "inference/pairs-64k/12x768/bfloat16/forward/dropout 0"
    assert {case.setting.dtype for case in models} == {torch.bfloat16, torch.float16}
    assert {case.shape.sizes.num_layers for case in models} == {12, 24}


def plain_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    spans = cu_seqlens.diff().tolist()
    parts = zip(*(operand.split(spans) for operand in (query, key, value)), strict=True)
    heads = [[operand.transpose(0, 1) for operand in part] for part in parts]
    return torch.cat([torch.nn.functional.scaled_dot_product_attention(*part).transpose(0, 1) for part in heads])


def test_the_peers_compute_what_the_reference_does() -> None:
    config = gpu_shapes.TINY_MODEL.config()
    model = reference.ErnieMModel(config, add_pooling_layer=False).eval()
    batch = Batch.random((5, 2, 7), config.vocab_size, "cpu")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    expected = batch.packed.from_grid(model(**inputs).last_hidden_state)
    unpadded = peers.UnpaddedModel(model, plain_attention)(batch.packed)
    assert torch.allclose(unpadded, expected, atol=1e-5)
    peers.use_sdpa(model, unmasked=False)
    assert torch.allclose(batch.packed.from_grid(model(**inputs).last_hidden_state), expected, atol=1e-5)
    drawn = [model.train()(**inputs).last_hidden_state for _ in range(2)]
    assert not torch.equal(*drawn), "it has dropout"


@pytest.fixture
def results(dry_run: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    """The dry run's figures as if a GPU had measured them at 64 k tokens."""
    for part in gpu_shapes.PARTS:
        content = json.loads(json.dumps(dry_run[f"gpu-{part}"]))
        content |= {"tiny": False, "device": "cuda", "processor": "NVIDIA Abacus", "date": "2030-01-02T00:00:00"}
        for row in content["rows"]:
            row["shape"] = "pairs-64k" if row["provider"] != "padded sdpa" else "512-64k"
            row["layers"] = 12
        (tmp_path / f"gpu-{part}-abacus-2030-01-02.json").write_text(json.dumps(content), "utf-8")
    return tmp_path


def test_tables_show_goals_only_where_they_were_measured(results: Path) -> None:
    text = gpu_tables.render(results)
    assert "NVIDIA Abacus" in text
    assert "| Row operations, share of the copy rate, forward |" in text
    assert "| Host time against torch's unfused chain |" in text
    assert "Attention forward, length 512" not in text
    assert "Inference, large" not in text
    assert "| inference | 12 x 32 | pairs-64k, arrival | 24 of 46 | padded, sdpa, compiled | bfloat16 | 0 |  |" in text
    assert "float32, autocast bfloat16 | 0.1 | AdamW in |" in text
    assert gpu_tables.render(results / "none") == gpu_tables.NOT_MEASURED


def row_of(provider: str, **fields: Any) -> dict[str, Any]:
    return {"provider": provider, "dropout_p": 0.0, "operation": "attention", "passes": "forward", **fields}


def test_goals_read_the_right_figures() -> None:
    short, singles = (16, 32, 64, 128), (32, 64, 128)
    model = {"operation": "latency", "layers": 12, "dtype": "bfloat16"}
    rows = gpu_tables.Rows(
        [
            row_of("triton", shape="512-64k", tflops=310.0),
            row_of("varlen_attn", shape="pairs-64k", ratio=1.4),
            *(row_of("triton", shape=f"{n}-64k", passes=work.BOTH, time_s=1.0) for n in short),
            *(row_of("triton", shape=f"{n}-64k", passes=work.BOTH, dropout_p=0.1, time_s=1 + n / 1000) for n in short),
            *(row_of("padding-free, graphs", shape=f"1x{n}", time_s=n * 1e-5, **model) for n in singles),
            *(
                row_of(f"padding-free, {name}", shape=f"{mix}-64k", time_s=time_s, **model | {"operation": "inference"})
                for mix, times in (("pairs", (1.1, 1.0)), ("xquad", (2.5, 2.0)))
                for name, time_s in zip(("batch-invariant", "packed input"), times, strict=True)
            ),
        ]
    )
    goals = [goal for part in gpu_tables.GOALS.values() for goal in part]
    assert [row for goal in goals if (row := goal.row(rows)) is not None] == [
        ["Attention forward, length 512", "310.00 TFLOP/s", "at least 300 TFLOP/s", "yes"],
        ["Attention forward on sentence pairs against varlen_attn", "1.40x", "at least 1.5x", "no"],
        ["Attention with dropout against without, 16 to 128", "1.13x", "at most 1.25x", "yes"],
        ["One sequence of 32 to 128 tokens, CUDA graphs", "1.28 ms", "at most 0.35 ms", "no"],
        ["Batch-invariant mode, 64 k tokens, slower by", "25.00 %", "at most 20 %", "no"],
    ]


def test_plots_are_written(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "plots"
    output.mkdir()
    written = plots.draw(results, output)
    assert [path.name for path in written] == ["gpu-attention.png", "gpu-rows.png", "gpu-inference.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert plots.draw(tmp_path / "none", output) == []


def test_the_roofline_page_is_what_the_formulas_and_results_say(results: Path) -> None:
    assert roofline.main(["--check"]) == 0, "make bench-table"
    assert roofline.main(["--check", "--results", str(results)]) == 1
    assert roofline.main(["--write", "--results", str(results)]) == 0
    text = (results / roofline.PAGE).read_text("utf-8")
    assert "(Abacus) |" in text
    assert "not measured" in text
    assert roofline.main(["--check", "--results", str(results)]) == 0
    peak = roofline.Peak("any", 1.0, 1.0, "")
    assert peak.floor_us([Work(10**6, 0), Work(0, 10**3)]) == pytest.approx(2.0)


def test_readme_says_that_nothing_was_measured_or_what() -> None:
    measured = [gpu_tables.newest(table.RESULTS, part) for part in gpu_shapes.PARTS]
    assert (gpu_tables.NOT_MEASURED in (ROOT / "README.md").read_text("utf-8")) == (measured == [None, None])
