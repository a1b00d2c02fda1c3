"""The benchmarks run and their tables are made. No time decides a test."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import ROOT

from bench import gpu_check, make_lengths, memory, run, shapes, table
from bench.registry import Operation, cases, prepare
from bench.shapes import Batch, Setting, Shape


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)  # else pytest-benchmark would measure nothing
        assert run.main(["--tiny", "--threads", "1", "--output", str(folder)]) == 0
    (path,) = folder.iterdir()
    return path, json.loads(path.read_text(encoding="utf-8"))


def case(operation: str, shape: str, provider: str, **fields: Any) -> dict[str, Any]:
    return {
        "operation": operation, "shape": shape, "provider": provider, "dtype": "float32", "rounds": 5,
        "median_s": 0.002, "p10_s": 0.0019, "p90_s": 1.5, "baseline": "padding-free", "ratio": 1.0,
        "real_tokens": 1000, "padded_tokens": 4000, "real_tokens_per_s": 500000.0, "max_error": 0.0, **fields,
    }  # fmt: skip


def result(date: str, *measured: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    versions = {"torch": "2.11.0", "transformers": "5.17.0"}
    about = {
        "commit": "0123456789abcdef",
        "dirty": False,
        "tiny": False,
        "processor": "Abacus",
        "cores": 2,
        "threads": 2,
    }
    return {"date": date, "device": device, **about, "versions": versions, "cases": list(measured)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    skewed = "training-step", "1x500+15x20"
    measured = [
        case("encoder", "xquad-arrival", "padding-free"),
        case("encoder", "xquad-arrival", "padded", ratio=7.5),
        case("encoder", "xquad-sorted", "padded", ratio=1.1),
        case("encoder", "xquad-sorted", "matrix products", ratio=0.8),
        case(*skewed, "padding-free", memory_bytes={"saved_for_backward": 2**20, "peak_step": 2**21}),
        case(*skewed, "padded", memory_bytes={"saved_for_backward": 10 * 2**20, "peak_step": 2**24}),
    ]
    for name, content in (
        ("cpu-2030-01-02.json", result("2030-01-02T00:00:00+00:00", *measured)),
        ("cpu-2029-01-02.json", result("2029-01-02T00:00:00+00:00", case("encoder", "old", "padded"))),
        ("cuda-2028-01-02.json", result("2028-01-02T00:00:00+00:00", case("encoder", "gpu", "padded"), device="cuda")),
    ):
        (folder / name).write_text(run.dump(content), encoding="utf-8")
    return folder


def test_the_runner_writes_every_case_and_what_it_ran_on(dry_run: tuple[Path, dict[str, Any]]) -> None:
    path, content = dry_run
    assert path.name == f"cpu-{content['date'][:10]}.json"
    assert {"date", "commit", "dirty", "processor", "cores", "threads", "versions"} <= content.keys()
    assert {"python", "torch", "transformers", "erniem_fast"} <= content["versions"].keys()
    assert content["tiny"]
    expected = [(case.operation.name, case.shape.name, case.provider.name) for case in cases(tiny=True)]
    assert sorted(expected) == sorted((c["operation"], c["shape"], c["provider"]) for c in content["cases"])
    for measured in content["cases"]:
        assert 0 < measured["p10_s"] <= measured["median_s"] <= measured["p90_s"]
        assert measured["ratio"] > 0
        assert measured["padded_tokens"] >= measured["real_tokens"] > 0
        assert (measured["max_error"] is None) == (measured["provider"] == "matrix products")
        assert ("memory_bytes" in measured) == (measured["operation"] == "training-step")


def test_partial_runs_leave_the_results_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "measure", lambda options: [case("encoder", "tiny", "padded")])
    for arguments in (["--tiny"], ["--only", "encoder"]):
        assert run.main(arguments) == 0
        assert not list(tmp_path.iterdir())
    assert run.main([]) == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_wrong_provider_gets_no_time(tmp_path: Path) -> None:
    from bench.test_cases import max_error

    chosen = next(iter(cases(tiny=True)))
    expected = torch.zeros(3, 2)
    assert max_error(chosen, prepare(lambda: expected + 1e-7), expected, torch.float32) == pytest.approx(1e-7)
    for wrong in (expected + 1e-3, expected * float("nan")):
        with pytest.raises(AssertionError, match="its time is not written"):
            max_error(chosen, prepare(lambda wrong=wrong: wrong), expected, torch.float32)


def test_a_provider_is_a_decorated_function_and_registered_once() -> None:
    operation = Operation("double", lambda *_: None, (), shapes.TINY_BATCH, "oracle", "oracle", rounds=1)
    operation.provider("oracle", devices=("cuda",))(lambda _: prepare(lambda: torch.ones(1)))
    assert operation.providers["oracle"].devices == ("cuda",)
    with pytest.raises(ValueError, match="registered twice"):
        operation.provider("oracle")(lambda _: prepare(lambda: torch.ones(1)))


def test_cases_of_one_operation_and_shape_come_together() -> None:
    groups = [(case.operation.name, case.shape.name) for case in cases()]
    assert len(set(groups)) == 1 + sum(here != there for here, there in pairwise(groups))


def test_shapes_are_batches_of_sixteen_of_the_committed_lengths() -> None:
    lengths = json.loads(shapes.LENGTHS_FILE.read_text(encoding="utf-8"))["lengths"]
    assert len(lengths) == len(make_lengths.LANGUAGES) * make_lengths.CONTEXTS_PER_LANGUAGE * 4
    assert max(lengths) <= make_lengths.MAX_TOKENS
    for shape in (shapes.ARRIVAL, shapes.SORTED):
        assert [len(batch) for batch in shape.batches] == [16] * 8
    assert shapes.ARRIVAL.padded_tokens > 3 * shapes.ARRIVAL.real_tokens
    assert shapes.SORTED.padded_tokens < 1.1 * shapes.SORTED.real_tokens
    assert (shapes.SKEWED.real_tokens, shapes.SKEWED.padded_tokens) == (800, 8000)


def test_a_batch_holds_the_same_tokens_padded_and_packed() -> None:
    batch = Batch.random((3, 1, 4), 50, "cpu")
    assert batch.attention_mask.sum(1).tolist() == [3, 1, 4]
    assert torch.equal(batch.packed.input_ids, batch.input_ids[batch.attention_mask.bool()])
    assert batch.packed.total_tokens == Shape("any", ((3, 1, 4),)).real_tokens
    assert Setting().randn(2, 3).shape == (2, 3)


def test_lengths_are_made_from_a_folder_of_xquad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_lengths, "CONTEXTS_PER_LANGUAGE", 2)
    paragraphs = [
        {"context": f"A context, number {i}. " * 60 * i, "qas": [{"question": f"Question {j}?"} for j in range(count)]}
        for i, count in enumerate((3, 4, 2), 1)
    ]
    for language in make_lengths.LANGUAGES:
        content = json.dumps({"data": [{"paragraphs": paragraphs}]})
        (tmp_path / f"xquad.{language}.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(make_lengths, "PAIRS_PER_LANGUAGE", 20)
    pairs = make_lengths.make_pairs(tmp_path, ROOT / "tests/golden/tokenizer")
    assert len(pairs["lengths"]) == 4 * 20
    assert max(pairs["lengths"]) <= make_lengths.MAX_SENTENCE_TOKENS + 20
    made = [make_lengths.make(tmp_path, ROOT / "tests/golden/tokenizer") for _ in range(2)]
    assert made[0] == made[1]
    assert len(made[0]["lengths"]) == 4 * 2 * 4
    assert sum(length == 512 for length in made[0]["lengths"]) >= 4  # the second context of each language is cut
    assert sum(length < 20 for length in made[0]["lengths"]) == 4 * 2 * 3


def test_saved_bytes_counts_each_storage_once_and_no_parameter() -> None:
    linear = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 8)

    def forward() -> torch.Tensor:
        return linear(x) * linear(x).exp()

    # The input once, both factors of the product; the exponential saves its result, which is one of them.
    assert memory.saved_bytes(linear, forward) == (16 * 8 + 2 * 16 * 4) * 4


def test_peak_bytes_counts_what_is_held_at_once() -> None:
    def run_twice() -> None:
        for _ in range(2):
            torch.empty(2**20, dtype=torch.uint8)

    def hold_two() -> None:
        _ = torch.empty(2**20, dtype=torch.uint8), torch.empty(2**20, dtype=torch.uint8)

    if torch.cuda.is_available():
        pytest.skip("counts the GPU's memory")
    assert memory.peak_bytes(run_twice) == 2**20
    assert memory.peak_bytes(hold_two) == 2**21


def test_the_newest_result_of_each_device_is_shown(results: Path) -> None:
    assert [path.name for path in table.newest(results)] == ["cpu-2030-01-02.json", "cuda-2028-01-02.json"]
    text = table.render(results)
    assert "bench/results/cpu-2030-01-02.json" in text
    assert "| encoder | xquad-arrival (1,000 of 4,000) | padded | 2 ms | 1.9 ms to 1.5 s | 500,000 | 7.50 |" in text
    assert "| old" not in text


def test_goals_say_whether_they_are_met(results: Path) -> None:
    rows = [line for line in table.render(results).splitlines() if "at least" in line or "at most" in line]
    cells = [[cell.strip() for cell in row.strip("|").split("|")][1:] for row in rows]
    assert cells == [
        ["7.50x", "at least 5x", "yes"],
        ["1.10x", "at least 1.2x", "no"],
        ["1.25x", "at most 1.3x", "yes"],  # the other shape was not run
        ["0.10", "at most 0.25", "yes"],
    ]


@pytest.fixture
def readme(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n", encoding="utf-8")
    return path


def test_the_table_is_written_between_the_markers_and_checked(results: Path, readme: Path) -> None:
    arguments = [str(readme), "--results", str(results)]
    assert table.main(["--check", *arguments]) == 1
    assert table.main(["--write", *arguments]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text == f"before\n{table.START}\n{table.render(results)}\n{table.END}\nafter\n"
    assert table.main(["--check", *arguments]) == 0
    assert table.main(["--write", *arguments]) == 0
    assert readme.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", ["", table.START, f"{table.END}{table.START}", (table.START + table.END) * 2])
def test_markers_must_be_there_once(text: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    assert table.main(["--write", str(path), "--results", str(results)]) == 1
    assert path.read_text(encoding="utf-8") == text
    assert table.START in capsys.readouterr().err


def test_no_results_is_an_error(readme: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert table.main(["--write", str(readme), "--results", str(tmp_path / "none")]) == 1
    assert "bench.run" in capsys.readouterr().err


def test_committed_results_are_whole() -> None:
    for path in table.RESULTS.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert not content.get("tiny")
        if "cases" in content:
            assert path.name == f"{content['device']}-{content['date'][:10]}.json"
        else:
            assert path.name.startswith("gpu-")
    if table.newest(table.RESULTS):
        assert "xquad-arrival" in table.render(table.RESULTS)


def test_gpu_check_without_a_gpu_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    assert gpu_check.main() == 0
    assert "SKIPPED: no CUDA device" in capsys.readouterr().out


def test_gpu_check_counts_tests_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "TESTS", ("imports",))
    counted = gpu_check.run_tests(100)
    assert counted["passed"] > 20
    assert not counted["failed"]
    assert gpu_check.run_tests(0.2)["failed"] == {"all": "did not end within 0 s"}


def test_gpu_check_names_what_failed(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_gpu" name="one"/>'
        '<testcase classname="tests.test_gpu" name="two"><failure message="wrong by 3">trace</failure></testcase>'
        '<testcase classname="tests.test_gpu" name="three"><skipped/></testcase></testsuite></testsuites>'
    )
    failed = {"tests.test_gpu::two": "wrong by 3"}
    assert gpu_check.summary(report) == {"passed": 1, "skipped": 1, "failed": failed}
