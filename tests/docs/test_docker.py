"""The image: what the Dockerfile copies is there and reaches Docker, and its commands are those of the server."""

import fnmatch
import json
import re
import shlex
import tomllib

import typer
from helpers.paths import ROOT

from erniem_fast.cli.main import app

FILE = ROOT / "Dockerfile"
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def instructions() -> list[tuple[str, str]]:
    """Name and argument of each instruction, its lines joined."""
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [argument for found, argument in instructions() if found == name]


def is_sent(path: str) -> bool:
    """True if .dockerignore leaves a path to Docker: the last pattern that matches decides."""
    sent = True
    for pattern in IGNORED:
        bare = pattern.removeprefix("!")
        names = (bare, bare.removeprefix("**/"), f"{bare.removeprefix('**/')}/*", f"*/{bare.removeprefix('**/')}/*")
        if any(fnmatch.fnmatch(path, name) for name in names):
            sent = pattern.startswith("!")
    return sent


def test_what_is_copied_exists_and_is_sent() -> None:
    copies = [argument.split() for argument in arguments("COPY") if not argument.startswith("--from")]
    sources = {source for *copied, _ in copies for source in copied}
    assert sources >= {"pyproject.toml", "erniem_fast", "kernels"}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_sent(source), source
    for path in (".git/config", ".venv/bin/python", "tests/conftest.py", "erniem_fast/__pycache__/version.pyc"):
        assert not is_sent(path), path
    # What the package is made of, beside its modules.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for needed in (project["readme"], *project["license-files"]):
        assert any(needed == source or needed.startswith(f"{source}/") for source in sources), needed


def test_extras_and_build_arguments_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = re.findall(r"\.\[([\w,-]+)\]", " ".join(arguments("RUN")))
    assert installed
    assert set(",".join(installed).split(",")) <= set(project["optional-dependencies"])
    assert f"ARG PYTHON={project['requires-python'].removeprefix('>=')}" in FILE.read_text(encoding="utf-8")
    names = {argument.partition("=")[0] for argument in arguments("ARG")}
    page = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    assert names == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_server_starts_with_options_that_it_has() -> None:
    (entry,), (command,) = map(arguments, ("ENTRYPOINT", "CMD"))
    program, name, *given = json.loads(entry) + json.loads(command)
    assert program == "erniem-fast"
    serve = typer.main.get_command(app).commands[name]
    options = {option for parameter in serve.params for option in parameter.opts}
    assert {one for one in given if one.startswith("--")} <= options
    place = dict(zip(given[::2], given[1::2], strict=True))
    assert place["--host"] == "0.0.0.0"
    assert arguments("EXPOSE") == [place["--port"]]
    (health,) = arguments("HEALTHCHECK")
    assert f"127.0.0.1:{place['--port']}/health" in health
    assert json.loads(health.partition("CMD ")[2])[:2] == ["python", "-c"]
    compile(json.loads(health.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")
    asked = re.findall(r"--env (ERNIEM_FAST\w+)", (ROOT / "docs" / "docker.md").read_text(encoding="utf-8"))
    assert set(asked) <= {str(parameter.envvar) for parameter in serve.params}


def test_the_image_is_not_run_by_root() -> None:
    last = [place for place, (name, _) in enumerate(instructions()) if name == "FROM"][-1]
    after = instructions()[last:]
    (user,) = [argument for name, argument in after if name == "USER"]
    assert int(user) > 0
    assert any("useradd" in argument and user in shlex.split(argument) for name, argument in after if name == "RUN")
    assert [name for name, _ in after].index("USER") < [name for name, _ in after].index("ENTRYPOINT")
