"""Fixtures of the kernels' tests."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.row_cases import PROGRAMS


@pytest.fixture
def _few_programs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Backward passes of few programs where they are interpreted."""
    from erniem_fast.kernels import activation, configs, embedding, layer_norm

    if device.type == "cpu":
        for module in (layer_norm, activation, embedding):

            def few(*arguments: Any) -> configs.RowConfig:
                return replace(configs.row_config(*arguments), max_programs=PROGRAMS, min_rows=1)

            monkeypatch.setattr(module, "row_config", few)
