"""The script behind `make install`, on a small project of its own that needs no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import TOP

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# A build backend of twenty lines, so that installing "the project itself" downloads nothing.
BACKEND = """
import os, zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    name = "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("tiny.pth", os.getcwd() + "\\n")
        info = "tiny-1.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n"
                       "Tag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "tiny.pth,,\\n" + info + "METADATA,,\\n"
                       + info + "WHEEL,,\\n" + info + "RECORD,,\\n")
    return name

def build_wheel(directory, config_settings=None, metadata_directory=None):
    raise NotImplementedError
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny"
version = "1"
"""


@pytest.mark.long
def test_the_life_of_an_environment(tmp_path: Path) -> None:
    """Built once for two at a time, left alone when right, mended when it is not."""
    project = tmp_path / "project"
    (project / ".ci").mkdir(parents=True)
    shutil.copy(TOP / ".ci" / "make_venv.py", project / ".ci")
    (project / "requirements.lock").write_text("# nothing\n")
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "backend.py").write_text(BACKEND)

    # Two at once: one builds, the other waits and finds it done.
    both = [start(project), start(project)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "".join(said).count("creating .venv") == 1
    assert "".join(said).count("waiting for another make") == 1
    assert installed(project)

    # Right already: nothing is said and nothing is written.
    stamp = project / ".venv" / "paystream-stamp"
    before = stamp.stat().st_mtime_ns
    assert finish(project) == ""
    assert stamp.stat().st_mtime_ns == before

    # pyproject changed: installed again, in the same environment, without the locked part.
    (project / "pyproject.toml").write_text(PYPROJECT + "\n# changed\n")
    assert finish(project) == ""
    assert stamp.stat().st_mtime_ns != before

    # The lock changed: its packages are installed, in the same environment.
    (project / "requirements.lock").write_text("# something else\n")
    said_now = finish(project)
    assert "installing the locked dependencies" in said_now
    assert "creating .venv" not in said_now

    # Interrupted half way: nothing can be said of what is there, so it is built anew.
    stamp.write_text("building\n")
    assert "creating .venv" in finish(project)
    assert installed(project)

    # Moved: the scripts inside point to the old place.
    moved = tmp_path / "moved"
    project.rename(moved)
    assert "creating .venv" in finish(moved)
    assert installed(moved)


def test_a_lock_that_cannot_be_installed_is_not_taken_for_done(tmp_path: Path) -> None:
    """A failed installation says so, fails make, and is tried again next time."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(TOP / ".ci" / "make_venv.py", tmp_path / ".ci")
    digest = "0" * 64
    (tmp_path / "requirements.lock").write_text(f"tiny-missing==1 --hash=sha256:{digest}\n")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    process = start(tmp_path, PIP_NO_INDEX="1")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "the dependencies could not be installed" in said
    assert "Traceback" not in said
    assert (tmp_path / ".venv" / "paystream-stamp").read_text() == "building\n"


def start(project: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(project / ".ci" / "make_venv.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def finish(project: Path) -> str:
    """What the script said; it must have succeeded."""
    process = start(project)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return "".join(
        line for line in said.splitlines(keepends=True) if not line.startswith("WARNING")
    )


def installed(project: Path) -> bool:
    """Whether the environment's own Python finds the project in its present place."""
    where = subprocess.run(
        [
            project / ".venv" / "bin" / "python",
            "-I",
            "-c",
            "import backend; print(backend.__file__)",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout.strip()
    return where == str(project / "backend.py")
