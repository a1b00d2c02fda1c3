"""transformers' common tests are collected only where they run: collecting them fetches and imports their source."""

from pathlib import Path

import pytest

THEIR_MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")


def pytest_configure(config: pytest.Config) -> None:
    for name in THEIR_MARKERS:
        config.addinivalue_line("markers", f"{name}: in transformers' common tests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "test_common.py" and config.option.markexpr == "not slow" else None
