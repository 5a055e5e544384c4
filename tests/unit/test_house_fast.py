"""The run of the fast tests in several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fast import shares, verdict
from tests.house import TOP

# Of a folder: its own files and settings.
RUN = """
import sys
from pathlib import Path
from tests.fast import run
folder = Path(sys.argv[1])
sys.exit(run(sorted(folder.glob("test_*.py")), ["-q", "-c", str(folder / "pytest.ini")], 2))
"""


def test_each_file_is_in_one_share_and_the_shares_are_of_a_length(tmp_path: Path) -> None:
    """Nothing is left out or run twice; with more cores than files some have nothing to do."""
    files = [tmp_path / f"test_{n}.py" for n in range(9)]
    for n, file in enumerate(files):
        file.write_text("#" * (n + 1))
    for count in (1, 2, 4, 20):
        made = shares(files, count)
        assert sorted(file for share in made for file in share) == files
        lengths = [sum(file.stat().st_size for file in share) for share in made]
        assert max(lengths) <= max(9, min(lengths) + 9)
    assert len(shares(files, 20)) == 9


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0), 0), ((0, 1), 1), ((0, 5), 0), ((5, 5), 5), ((5, 2), 2), ((0, -9), -9)],
)
def test_what_fails_in_any_share_fails_the_run(codes: tuple[int, ...], code: int) -> None:
    """A share of which no test was asked for is no failure, if another had some."""
    assert verdict(codes) == code


@pytest.mark.slow
def test_every_share_is_run_and_shown(tmp_path: Path) -> None:
    """The second one fails, and so does the run; what the first one said is shown as well."""
    (tmp_path / "test_a.py").write_text("def test_a(): pass\n" + "#" * 99)
    (tmp_path / "test_b.py").write_text("def test_b(): assert False\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path], cwd=TOP, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "1 failed" in done.stdout
