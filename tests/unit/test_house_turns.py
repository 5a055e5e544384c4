"""Which files of a run begin first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import TOP


def run(folder: Path, *options: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PAYSTREAM_T"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_starts_servers_begins_first_and_fast_unit_tests_last() -> None:
    """However they are named to pytest; slow ones first where both start servers or none does."""
    files = [
        "tests/integration/test_reconciliation.py",
        "tests/integration/test_audit_log.py",
        "tests/simulation/test_seeds.py",
        "tests/unit/test_house_turns.py",
        "tests/unit/test_crc32c.py",
    ]
    named = [files[n] for n in (4, 1, 2, 3, 0)]
    ids = [line for line in run(TOP, "--co", "-n", "0", *named).splitlines() if "::" in line]
    shown = list(dict.fromkeys(line.split("::")[0] for line in ids))
    assert shown == files
