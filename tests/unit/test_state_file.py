"""What a worker's slot keeps over the deaths of its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime.state_file import InPlaceFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot" / "state.json"


def test_the_next_process_reads_what_was_written_last(path: Path) -> None:
    """Also where it is shorter than what stood there before, and though nobody closed the file."""
    first = InPlaceFile(path)
    assert first.read() == b""
    first.write(b'{"deaths":100}')
    first.write(b"{}")
    assert InPlaceFile(path).read() == b"{}"


def test_a_file_of_an_older_version_is_read_as_it_is(path: Path) -> None:
    """It has no length before its content; suspects outlive the upgrade."""
    path.parent.mkdir()
    path.write_bytes(b'{"deaths":2}')
    assert InPlaceFile(path).read() == b'{"deaths":2}'


def test_what_is_closed_is_written_no_more(path: Path) -> None:
    """A process that has let go of its slot changes nothing of what its successor has there."""
    first = InPlaceFile(path)
    first.write(b"first")
    first.close()
    first.close()
    first.write(b"late")
    assert InPlaceFile(path).read() == b"first"
