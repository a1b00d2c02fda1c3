"""Which layers computed rows; transformers' common tests only where they run: collecting them fetches their source."""

from pathlib import Path

import pytest

from erniem_fast import encoder

THEIR_MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config: pytest.Config) -> None:
    for name in THEIR_MARKERS:
        config.addinivalue_line("markers", f"{name}: in transformers' common tests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "test_common.py" and config.option.markexpr == "not slow" else None


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every layer that computed packed rows."""
    seen: list[int] = []
    run_layer = encoder.run_layer
    monkeypatch.setattr(encoder, "run_layer", lambda parts, x, *a: seen.append(len(x)) or run_layer(parts, x, *a))
    return seen
