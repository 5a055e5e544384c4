"""Every command explains itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
        "transactions list",
        "transactions end",
        "positions show",
        "positions move",
        "positions step-over",
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
        "payment resolve-dispute",
        "payment acknowledge",
        "payment show",
        "review list",
        "review approve",
        "review deny",
        "chaos kip890",
        "chaos run",
        "webhooks test",
        "webhooks log",
        "webhooks resend",
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


def test_an_option_of_many_commands_is_said_in_the_same_words_everywhere() -> None:
    """What one command calls its brokers, prefix or JSON, the others call so too."""
    said: dict[str, set[tuple[str | None, str | None]]] = {}
    for option in options(command_of(app)):
        said.setdefault(option.opts[0], set()).add((option.help, option.envvar))
    for name in ("--bootstrap-servers", "--prefix", "--json"):
        assert len(said[name]) == 1, said[name]


def options(of: Any) -> Iterator[Any]:
    for inner in getattr(of, "commands", {}).values():
        yield from options(inner)
    yield from (each for each in of.params if each.param_type_name == "option")


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
