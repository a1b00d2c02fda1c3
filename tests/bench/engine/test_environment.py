"""Facts about the machine."""

from pathlib import Path

import pytest

from bench.engine import environment


def test_clocks_are_read_where_the_tool_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.nvidia_smi(*environment.CLOCKS) is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '1980 MHz, 3201 MHz'\n")
    tool.chmod(0o755)
    assert environment.nvidia_smi("clocks.sm", "clocks.mem") == {"clocks.sm": "1980 MHz", "clocks.mem": "3201 MHz"}
    assert environment.nvidia_smi("clocks.sm") is None, "an answer that does not fit the question"


def test_a_result_says_what_it_was_measured_on() -> None:
    about = environment.describe("cpu")
    assert {"date", "commit", "dirty", "device", "processor", "cores", "threads", "cpu_capability"} <= about.keys()
    assert {"python", "torch", "transformers", "erniem_fast", "interpreted"} <= about["versions"].keys()
