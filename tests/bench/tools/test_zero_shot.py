"""Zero-shot classification is measured beside the pipeline, after their scores were compared."""

import json
from pathlib import Path

import pytest

from bench.tools import zero_shot

pytestmark = pytest.mark.slow


def test_every_provider_gets_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zero_shot.main(["--tiny", "--threads", "1", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("zero-shot-*.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 4
    assert rows[0]["ratio"] == 1
    printed = capsys.readouterr().out
    for row in rows:
        assert row["time_s"] > 0
        assert row["provider"] in printed


def test_a_provider_that_is_wrong_gets_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zero_shot, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match=r"scores of pipeline.* differ by"):
        zero_shot.main(["--tiny", "--threads", "1", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())
