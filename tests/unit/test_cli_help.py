"""Every command explains itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.cli import app
from tests.support.cli_runner import CliRunner, command_of

runner = CliRunner()


def commands(of: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Each command's words, and whether it is a group of others."""
    inner = getattr(of, "commands", None)
    yield path, inner is not None
    for name, command in (inner or {}).items():
        yield from commands(command, (*path, name))


ALL = list(commands(command_of(app)))


def test_the_commands_of_the_documents_are_there() -> None:
    """What the README and the operator's guide type exists."""
    known = {" ".join(path) for path, _ in ALL}
    assert {
        "demo",
        "up",
        "run",
        "simulator",
        "topics plan",
        "topics apply",
        "schemas check",
        "schemas lock",
        "schemas register",
        "orders import",
        "order submit",
        "dead-letters list",
        "dead-letters show",
        "dead-letters redrive",
        "dead-letters discard",
        "payment capture",
        "payment cancel",
        "payment refund",
        "payment retry",
        "payment resolve",
        "payment show",
        "review list",
        "review approve",
        "review deny",
        "trace",
        "verify",
    } <= known


@pytest.mark.parametrize("path", [p for p, is_group in ALL if not is_group], ids=" ".join)
def test_every_command_shows_an_example(path: tuple[str, ...]) -> None:
    """--help ends in something to type, which names the command itself."""
    result = runner.invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    _, found, example = result.stdout.partition("Example")
    assert found
    assert f"paystream {' '.join(path)}" in example


@pytest.mark.parametrize("path", [p for p, is_group in ALL if is_group], ids=lambda p: " ".join(p))
def test_every_group_lists_its_commands(path: tuple[str, ...]) -> None:
    """--help of a group, and the group alone, show what there is and something to type."""
    result = runner.invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    example = "Example: " + " ".join(("paystream", *path))
    assert example in " ".join(result.stdout.split())
    for inner in (p for p, _ in ALL if len(p) == len(path) + 1 and p[: len(path)] == path):
        assert inner[-1] in result.stdout
    assert "Usage" in runner.invoke(app, [*path]).output


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["topics", "nonsense"],
        ["verify", "--nonsense"],
        ["run", "nonsense"],
        ["order", "submit"],
        ["up", "--partitions", "0"],
        ["up", "--metrics-port", "http"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_exit_code_2(words: list[str]) -> None:
    """A misspelt command or option is told apart from a command that failed."""
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    assert "Error" in result.output
