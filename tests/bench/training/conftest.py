"""Dry runs of training."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def dry_run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What runs a module of `bench.training` with `--tiny` and other arguments, and gives its result file's content."""

    def run(module: ModuleType, *arguments: object) -> dict[str, Any]:
        before, output = torch.get_num_threads(), tmp_path / "results"
        try:
            options = [*map(str, arguments), "--tiny", "--threads", "1", "--output", str(output)]
            assert module.main(options) == 0
        finally:
            torch.set_num_threads(before)
        (path,) = output.glob("training-*.json")
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        assert content["tiny"]
        return content

    return run
