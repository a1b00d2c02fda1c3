"""The command line in this process, and what its tests share."""

from typing import Any

from typer.testing import CliRunner

from erniem_fast.cli.main import app

TEXTS = [
    "Tom and Mary say they don't want to sing with us anymore.",
    "",
    "我們試試看！",
    "   ",
    "У меня много знакомых, которые не умеют играть в шахматы.",
    "Perdimos.",
    "a\u2028b\x0bc",  # breaks for str.splitlines, not for us
    "word " * 60,
]
MAX_TOKENS = 40
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_TOKENS + 2,
    "initializer_range": 0.2,
}


def run(*arguments: Any, stdin: str | bytes | None = None) -> Any:
    """The result of a command: exit code, stdout and stderr. What it raises but for its exit is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_embed(texts: Any, model: Any, out: Any, *options: Any, stdin: str | bytes | None = None) -> Any:
    return run("embed", texts, "--model", model, "--out", out, "--dtype", "float32", *options, stdin=stdin)


def assert_one_line(result: Any, *parts: Any) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that holds every part."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for part in parts:
        assert str(part) in line
