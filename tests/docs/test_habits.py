"""The files around the code: continuous integration, hooks, templates, the citation, and a checkout without links."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.paths import ROOT
from helpers.processes import PATIENCE

from erniem_fast import ops

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Any) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is(path: Path) -> None:
    workflow = load(path)
    assert workflow["name"] == path.stem
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    # PyYAML reads the key `on` as true.
    options = ((workflow[True].get("workflow_dispatch") or {}).get("inputs") or {}).get("target", {}).get("options", [])
    assert set(options) <= targets
    assert list(steps(workflow))
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        for target in re.findall(r"\bmake ([\w-]+)", step.get("run", "")):
            assert target in targets
        for file in re.findall(r"\.ci/[\w.]+", step.get("run", "")):
            assert (ROOT / file).is_file()


def test_the_matrix_reaches_from_the_lowest_to_the_pinned_versions() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["versions"]["strategy"]["matrix"]["include"]
    lowest = {"python": PROJECT["requires-python"]} | {
        match[1]: match[2] for line in PROJECT["dependencies"] if (match := re.match(r"([\w-]+)>=([\d.]+)", line))
    }
    assert {job["python"] for job in jobs} >= {"3.11", "3.12", "3.13"}
    assert lowest["python"] == ">=3.11"
    for package in ("torch", "transformers"):
        assert {job[package] for job in jobs} == {lowest[package], minor(PINNED[package])}
    lowest_job = {"python": "3.11", "torch": lowest["torch"], "transformers": lowest["transformers"]}
    assert lowest_job in jobs


def test_hooks_are_what_make_lint_runs() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = [hook["entry"].removeprefix(".venv/bin/python -m ") for hook in repository["hooks"]]
    linting = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    for line in linting.splitlines()[1:]:
        tool = line.strip().removeprefix("$(BIN)/").removesuffix(" .").removesuffix(" --check")
        assert any(entry.startswith(tool) for entry in hooks), tool
    assert len(hooks) == len(linting.splitlines()) - 1


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_parse(path: Path) -> None:
    form = load(path)
    if path.stem == "config":
        assert isinstance(form["blank_issues_enabled"], bool)
        return
    assert form["name"]
    assert form["description"]
    fields = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(fields) == len(set(fields)) > 0
    assert all(field["attributes"]["label"] for field in form["body"] if field["type"] != "markdown")


def test_the_citation_names_the_version_and_the_paper() -> None:
    citation = load(ROOT / "CITATION.cff")
    version = (ROOT / "erniem_fast" / "version.py").read_text(encoding="utf-8")
    assert f'"{citation["version"]}"' in version
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["url"].endswith("2012.15674")


@pytest.mark.parametrize("link", ["a text file", "missing"])
def test_a_copy_without_the_link_says_so_in_one_sentence(tmp_path: Path, link: str) -> None:
    ignored = shutil.ignore_patterns("kernels", "__pycache__")
    package = Path(shutil.copytree(ROOT / "erniem_fast", tmp_path / "erniem_fast", ignore=ignored))
    if link == "a text file":  # as git leaves it without core.symlinks
        (package / "kernels").write_text("../kernels", encoding="utf-8")
    # -S: no site-packages, where another copy may be installed. The sentence comes before any other import.
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import erniem_fast"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1
    *_, message = done.stderr.strip().splitlines()
    assert message.startswith("ImportError: erniem_fast/kernels is not the folder of kernels")
    assert "core.symlinks=true" in message


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_devices_that_nobody_has_tried_get_the_torch_operations(device: str) -> None:
    assert ops.resolve_backend("auto", torch.device(device)) == "torch"
    with pytest.raises(ValueError, match="backend 'triton' needs"):
        ops.resolve_backend("triton", torch.device(device))
