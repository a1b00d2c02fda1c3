"""The tool that measures formats of weights and sentence-transformers, and the tables of its results."""

import json
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT

from bench.engine.environment import RESULTS
from bench.engine.results import dump
from bench.report import readme, texts


def a_file(folder: Path, date: str, time_s: float, busy: float) -> None:
    row = {"layers": 12, "hidden_size": 768, "texts": 96, "time_s": time_s, "ratio": 0.25}
    sizes = {"relative_error": 0.0123, "tokens": 1234, "model_bytes": 3 * 2**20}
    content = {
        "suite": "texts", "date": date, "commit": None, "dirty": False, "device": "cpu", "processor": "Abacus",
        "cores": 2, "threads": 1, "versions": {"torch": "2.13", "transformers": "5.23", "torchao": "0.18"},
        "checkpoint": None, "runs": [{"others_busy_cores": busy}], "left_out": [], "failed": [],
        "rows": [
            row | {"operation": "formats", "provider": "int8 weights, float32"} | sizes,
            row | {"operation": "sentence-transformers", "provider": "packed"},
        ],
    }  # fmt: skip
    (folder / f"texts-{date[:10]}.json").write_text(dump(content), encoding="utf-8")


def test_tables_show_the_newest_file(tmp_path: Path) -> None:
    assert texts.formats(tmp_path) == texts.embedders(tmp_path) == texts.NOT_MEASURED.format("texts")
    assert texts.zero_shot(tmp_path) == texts.NOT_MEASURED.format("zero_shot")
    a_file(tmp_path, "2030-01-01T00:00:00+00:00", 1.0, 1.5)
    assert "Other processes kept 1.5 cores busy: its times are preliminary." in texts.formats(tmp_path)
    a_file(tmp_path, "2030-01-02T00:00:00+00:00", 2.0, 0.1)
    table = texts.formats(tmp_path)
    assert table.splitlines()[2] == "| int8 weights, float32 | 1.23% | 0.25 | 3 MiB |"
    assert "by `python -m bench.tools.texts` ([texts-2030-01-02.json](../bench/results/texts-2030-01-02.json))" in table
    assert "Abacus, 2 cores, 1 threads, torch 2.13, transformers 5.23, torchao 0.18, commit unknown." in table
    assert "busy" not in table
    assert table.endswith("12 layers of 768, random weights and the demo's small vocabulary, a batch of 1,234 tokens.")
    assert texts.embedders(tmp_path).splitlines()[2].endswith("| 48 | 0.25 |")
    assert texts.embedders(tmp_path).endswith("12 layers of 768, random weights and the demo's small vocabulary.")


@pytest.mark.parametrize("name", ["quantisation.md", "sentence_embeddings.md", "zero_shot.md"])
def test_the_pages_are_current(name: str) -> None:
    page = ROOT / "docs" / name
    wanted = dict(readme.texts(RESULTS))
    assert page.read_text("utf-8") == wanted[page], "python -m bench.report --write"


@pytest.mark.slow
def test_a_dry_run(tmp_path: Path) -> None:
    from bench.tools import texts as tool

    before = torch.get_num_threads()
    try:
        assert tool.main(["--tiny", "--threads", "1", "--output", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(before)
    (path,) = tmp_path.glob("texts-*.json")
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [row["provider"] for row in rows if row["operation"] == "formats"] == [*tool.FORMATS]
    errors = {row["provider"]: row["relative_error"] for row in rows if row["operation"] == "formats"}
    assert errors["float32"] == 0
    assert all(0 < error < 0.1 for name, error in errors.items() if name != "float32")
    sizes = {row["provider"]: row["model_bytes"] for row in rows if row["operation"] == "formats"}
    assert sizes["int8 weights, float32"] < sizes["float32"]
    assert all(row["max_error"] < 1e-5 for row in rows if row["operation"] == "sentence-transformers")
