"""What a worker takes from its machine."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

AHEAD_S = 1_000
SAYS_TIME = "from pipeline.runtime.surroundings import REAL; print(REAL.monotonic_s())"


def seconds(*before: str) -> float:
    said = subprocess.run(
        [*before, sys.executable, "-c", SAYS_TIME], check=True, capture_output=True, text=True
    )
    return float(said.stdout)


@pytest.mark.slow
def test_the_time_that_a_machine_was_suspended_is_time_that_has_passed() -> None:
    """A worker that wakes may have been expelled, and asks this clock. A namespace of time has one
    whose suspended seconds are more, and nothing else."""
    suspended = ("unshare", "--user", "--time", f"--boottime={AHEAD_S}")
    if shutil.which("unshare") is None or subprocess.run([*suspended, "true"]).returncode:
        pytest.skip("this machine makes no namespaces of time")
    before = seconds()
    assert AHEAD_S <= seconds(*suspended) - before < AHEAD_S + 60
