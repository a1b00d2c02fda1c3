"""Checkpoints and folders for the documentation's code blocks."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import patient_ray
from helpers.blocks import GPU, Block, blocks, script
from helpers.ernie_folders import TINY, write_ernie_checkpoint
from helpers.hub import fill_cache, fill_folders
from helpers.paddle_folders import write_uie_m
from helpers.paths import ROOT
from helpers.processes import PATIENCE

CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE")
ONLINE = ROOT / "tests" / "helpers" / "online.py"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which the names of public checkpoints lead to tiny random ones, and nothing is downloaded."""
    home = tmp_path_factory.mktemp("huggingface")
    fill_cache(home / "hub")
    environment = {name: value for name, value in os.environ.items() if name not in CACHES}
    folder = str(Path(sys.executable).parent)
    return {
        **environment,
        **patient_ray.ENVIRONMENT,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join((folder, environment.get("PATH", ""))),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the checkpoints that a page's reader has."""
    parent = tmp_path_factory.mktemp("folders")
    fill_folders(parent)
    return parent


@pytest.fixture
def run_page(hub: dict[str, str], folders: Path, tmp_path: Path) -> Callable[[Path], str]:
    """A function that runs the blocks of a page left to the tests, and returns what its Python blocks print."""

    def run(page: Path) -> str:
        shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
        if page.stem == "paddle":
            write_uie_m(tmp_path / "uie_m_base")
            write_ernie_checkpoint(tmp_path / "ernie_1.0", "original", TINY, name="ErnieForMaskedLM")
        chosen = [block for block in blocks(page) if block.mark == "" or (block.mark == GPU and _has_gpu())]
        printed = ""
        python = [block for block in chosen if block.language == "python"]
        if python:
            # Not the stem alone: ray.py would be imported in the place of the package.
            file = tmp_path / f"{page.stem}_page.py"
            file.write_text(script(python), encoding="utf-8")
            runner = [str(ONLINE)] if page.stem == "server" else []
            printed = _run([sys.executable, *runner, str(file)], python[0], hub, tmp_path)
        bash = shutil.which("bash")
        for block in chosen:
            if block.language == "sh":
                assert bash, "the shell blocks need bash"
                _run([bash, "-euo", "pipefail", "-c", block.code], block, hub, tmp_path)
        return printed

    return run


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _run(command: list[str], block: Block, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE
    )
    assert done.returncode == 0, f"{block.name}\n{done.stdout}\n{done.stderr}"
    return done.stdout
