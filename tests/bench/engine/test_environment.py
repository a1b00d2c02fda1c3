"""Facts about the machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

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


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_is_this_project_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git climbs into a repository above a tree that was copied without its own."""

    def git(folder: Path, *arguments: str) -> None:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)

    copied = tmp_path / "above" / "copied"
    copied.mkdir(parents=True)
    monkeypatch.setattr(environment, "ROOT", copied)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert environment.git("rev-parse", "HEAD") is None
    git(copied.parent, "init")
    git(copied.parent, "commit", "--allow-empty", "-m", "another project")
    assert environment.git("rev-parse", "HEAD") is None
    git(copied, "init")
    git(copied, "commit", "--allow-empty", "-m", "this one")
    found = environment.git("rev-parse", "HEAD")
    assert found
    (tmp_path / "link").symlink_to(copied)
    monkeypatch.setattr(environment, "ROOT", tmp_path / "link")
    assert environment.git("rev-parse", "HEAD") == found


def test_the_digest_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "RESULTS", tmp_path / "bench" / "results")
    for name in ("kernels/one.py", "kernels/tuned.json", "bench/results/cpu.json", "bench/page.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1", encoding="utf-8")
    found = [environment.digest("kernels", "bench")]
    for name in ("bench/results/cpu.json", "bench/page.md", "kernels/one.py", "kernels/tuned.json"):
        (tmp_path / name).write_text("2", encoding="utf-8")
        found.append(environment.digest("kernels", "bench"))
    assert found[0] == found[1] == found[2]
    assert len(set(found)) == 3


def test_caches_are_named_before_anything_compiles() -> None:
    """Where nobody has named them; and before torch and triton are imported, which ask once."""
    code = """
import os, sys
import bench
print(os.environ["TRITON_CACHE_DIR"], os.environ["TORCHINDUCTOR_CACHE_DIR"], "torch" in sys.modules)
"""
    usual = {name: value for name, value in os.environ.items() if "CACHE_DIR" not in name and name != "TRITON_HOME"}

    def found(**variables: str) -> list[str]:
        command = [sys.executable, "-S", "-c", code]
        return subprocess.check_output(command, cwd=ROOT, env=usual | variables, text=True).split()

    home = {"HOME": "/home/one"}
    assert found(**home) == ["/home/one/.triton/cache", "/home/one/.cache/torchinductor", "False"]
    assert found(**home, TRITON_HOME="/two")[0] == "/two/.triton/cache"
    assert found(**home, TRITON_CACHE_DIR="/three", TORCHINDUCTOR_CACHE_DIR="/four")[:2] == ["/three", "/four"]
