"""The Makefile, what it says, and the script that keeps .venv."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import hypothesis
import pytest

from tests.house import TOP
from tests.support.examples import FAST, THOROUGH, share_of

TARGETS = (
    "demo", "test", "test-long", "unit", "check", "bench", "clean", "install", "lock", "help",
    "simulate", "mutate-guarantees", "chaos", "acceptance",
)  # fmt: skip
SCRIPT = TOP / ".ci" / "make_venv.py"


def test_make_alone_lists_every_target() -> None:
    """Somebody who types make learns what there is."""
    shown = make()
    for target in TARGETS:
        assert re.search(rf"^  make {target} +\S", shown, flags=re.MULTILINE), target


def test_the_demo_passes_on_only_what_was_given() -> None:
    """ORDERS and FAULTS are options of the demo and are left out when they are not named."""
    assert "paystream demo\n" in re.sub(r" +\n", "\n", make("-n", "demo"))
    shown = make("-n", "demo", "ORDERS=my.csv", "FAULTS=none")
    assert 'paystream demo --orders "my.csv" --faults "none"' in shown


def test_chaos_takes_minutes_and_a_seed_and_acceptance_is_long() -> None:
    """Twenty minutes at 250 orders a second are 300,000, as documented; each long form of what has
    a short one among the tests is there, with its own sizes."""
    assert "chaos run --minutes 5 --seed 1" in make("-n", "chaos")
    shown = make("-n", "chaos", "MINUTES=7", "SEED=3", "RATE=40")
    assert "chaos run --minutes 7 --seed 3 --rate 40" in shown
    shown = make("-n", "acceptance")
    assert "-m acceptance" in shown, "what `make test` leaves out is left out by nobody"
    told = [line.partition(".venv/bin/")[2] for line in shown.splitlines()]
    for command in (
        "python -m benchmarks kills",
        "python -m tests.simulation.mutate",
        "python -m tests.simulation --seeds 2000",
        "paystream chaos copy",
        "paystream chaos kip890",
        "python -m benchmarks books",
        "paystream chaos overload",
        "paystream chaos run --minutes 20 --seed 1 --rate 250 --every 16",
    ):
        assert command in told, f"{command}: nobody runs it"


def test_ci_runs_the_same_targets_as_a_person() -> None:
    """What passes here passes there: the CI script holds no steps of its own."""
    script = TOP / ".ci" / "run"
    assert script.stat().st_mode & 0o100
    lines = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert lines[:3] == ["set -eu", 'cd "$(dirname "$0")/.."', "make check"]
    # What failed is run again by the same target, and that run's word is the last.
    assert lines[3:9] == [
        "for tests in test test-long; do",
        '  make "$tests" || {',
        '    echo "Some tests failed; the same ones again, one at a time:"',
        '    make "$tests" ARGS="--last-failed --last-failed-no-failures none -n 0"',
        "  }",
        "done",
    ]
    # Five minutes of faults, with the verdict of one run.
    assert lines[9:] == ["make chaos MINUTES=5 RATE=40 SEED=11"]


def test_every_test_is_run_by_some_target() -> None:
    """What `make test` leaves out, another target names."""
    left_out = re.search(r"-m '([^']*)'", (TOP / "pyproject.toml").read_text())
    assert left_out
    assert left_out[1] == "not long and not acceptance"
    assert " -m long" in make("-n", "test-long")
    assert " -m acceptance" in make("-n", "acceptance")


def test_make_test_looks_at_every_example_and_make_unit_at_a_part() -> None:
    """What the fast run leaves out for the sake of seconds is not left out by both."""
    assert f"--hypothesis-profile {THOROUGH}" in make("-n", "test")
    assert "--hypothesis-profile" not in make("-n", "unit") + make("-n", "check")
    now = hypothesis.settings.get_current_profile_name()
    shares = {}
    try:
        for name in (FAST, THOROUGH):
            hypothesis.settings.load_profile(name)
            shares[name] = share_of(60)
    finally:
        hypothesis.settings.load_profile(now)
    assert shares == {FAST: 6, THOROUGH: 60}


@pytest.mark.slow
def test_an_old_python_gets_a_sentence() -> None:
    """Not a traceback and not a failure of pip: what is needed, and how to name it."""
    ast.parse(SCRIPT.read_text(), feature_version=(3, 4))
    pretend = (
        "import runpy, sys; sys.version_info = (3, 8, 1, 'final', 0); "
        f"sys.argv = ['make_venv']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", pretend], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 1
    assert "needs Python 3.11 or newer" in result.stderr
    assert "is 3.8" in result.stderr
    assert "make PYTHON=" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_python_gets_a_sentence() -> None:
    """A misspelt PYTHON is named, with what to do."""
    result = subprocess.run(
        ["make", "install", "PYTHON=python-that-is-not-there"],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode != 0
    assert "There is no 'python-that-is-not-there'" in result.stderr


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
