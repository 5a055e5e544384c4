"""The command as a process: a reader that leaves, and Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

TOP = Path(__file__).parents[2]

# `trace` stands for every command; what it does is replaced, since no broker is here. More is
# printed than a pipe holds.
COMMAND = """
import sys
from types import SimpleNamespace
import pipeline.audit.render, pipeline.audit.trace, pipeline.audit.verify
from pipeline.cli import main

def interrupted(*_, **__):
    raise KeyboardInterrupt

if {interrupted}:
    pipeline.audit.verify.verify = pipeline.audit.trace.trace = interrupted
else:
    report = SimpleNamespace(exit_code={code}, pending=[])
    pipeline.audit.verify.verify = lambda *_, **__: report
    pipeline.audit.render.report_lines = lambda _report: ["a line"] * 50_000
    pipeline.audit.trace.trace = lambda *_, **__: SimpleNamespace(hops=["a hop"])
    pipeline.audit.render.print_trace = lambda *_, **__: [print("a line") for _ in range(50_000)]
sys.argv = ["paystream", *{words!r}]
main()
"""


def process(words: list[str], *, code: int = 0, interrupted: bool = False) -> list[str]:
    return [
        sys.executable,
        "-c",
        COMMAND.format(words=words, code=code, interrupted=interrupted),
    ]


@pytest.mark.parametrize(
    ("words", "verdict", "code"),
    [
        (["verify"], 0, 0),
        (["verify"], 2, 2),
        (["trace", "m:o"], 0, 141),
    ],
)
def test_a_reader_that_leaves_is_no_failure_of_the_flow(
    tmp_path: Path, words: list[str], verdict: int, code: int
) -> None:
    """`verify | head -1` keeps the verdict's exit code; others say that their reader has gone."""
    with subprocess.Popen(
        process(words, code=verdict),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TOP)},
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        said = running.stderr.read().decode()
        assert running.wait(60) == code
    assert said == ""


@pytest.mark.parametrize("words", [["verify"], ["trace", "m:o"]], ids=lambda words: words[0])
def test_an_interrupted_command_says_so_in_one_line(tmp_path: Path, words: list[str]) -> None:
    """Exit code 130, and no traceback."""
    done = subprocess.run(
        process(words, interrupted=True),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TOP)},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "paystream: interrupted\n")


def test_an_interrupt_while_the_command_is_being_loaded_is_one_line_too(tmp_path: Path) -> None:
    """Of modules that take a moment to load, the first one that is not the standard library's."""
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "verify"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{TOP}"},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "paystream: interrupted\n")
