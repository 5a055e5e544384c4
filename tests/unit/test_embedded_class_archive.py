"""The archive of a JVM's classes: made once, by a run that ends, and never taken for another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.embedded.class_archive import ClassArchive
from pipeline.embedded.kept_file import LEFT_OVER_S, seal_of


@pytest.fixture
def java(tmp_path: Path) -> Path:
    path = tmp_path / "java"
    path.write_text("a JVM")
    return path


def archive(java: Path) -> ClassArchive:
    return ClassArchive(java, [java.parent / "a.jar", java.parent / "b.jar"])


def to_write(flags: tuple[str, ...]) -> Path:
    (flag,) = flags
    assert flag.startswith("-XX:ArchiveClassesAtExit=")
    return Path(flag.partition("=")[2])


def test_the_first_run_writes_it_and_the_next_ones_use_it(java: Path) -> None:
    """Nobody is given it before it is whole: a JVM does better without any than with half."""
    made = archive(java)
    assert made.flags() == ()
    with made.made_by_a_run() as flags:
        to_write(flags).write_text("classes")
        assert made.flags() == ()
    assert made.flags() == (f"-XX:SharedArchiveFile={made.path}",)
    with made.made_by_a_run() as flags:
        assert flags == made.flags()


def test_a_run_that_writes_nothing_or_fails_leaves_nothing(java: Path) -> None:
    """An older JVM, a full disk, Ctrl-C: the start goes on without."""
    made = archive(java)
    with made.made_by_a_run():
        pass

    def interrupted() -> None:
        with made.made_by_a_run() as flags:
            to_write(flags).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert made.flags() == ()
    assert [path.name for path in java.parent.iterdir()] == ["java"]


def test_another_jvm_in_the_same_place_has_another_archive(java: Path) -> None:
    """An upgrade of Java is no reason to start slowly for ever."""
    before = archive(java).path
    java.write_text("a newer JVM")
    assert archive(java).path != before


def test_one_that_was_damaged_is_written_anew(java: Path) -> None:
    """A JVM that maps it ends in its own code, at every start."""
    with archive(java).made_by_a_run() as flags:
        to_write(flags).write_text("classes")
    damaged = archive(java)
    damaged.path.write_text("clasSes")
    assert damaged.flags() == ()
    with damaged.made_by_a_run() as flags:
        to_write(flags).write_text("classes")
    assert damaged.flags() == (f"-XX:SharedArchiveFile={damaged.path}",)
    assert archive(java).flags() == damaged.flags()


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_a_killed_run_has_left_is_removed(java: Path, is_kept: bool) -> None:
    """Old enough that nobody can be writing it any more, whether or not a later run was whole."""
    made = archive(java)
    if is_kept:
        with made.made_by_a_run() as flags:
            to_write(flags).write_text("classes")
    seal = seal_of(made.path)
    names = (f"{made.path.name}.left", f".{seal.name}.77.tmp")
    left = [made.path.with_name(name) for name in names]
    fresh = [made.path.with_name(name.replace("7", "8").replace("left", "new")) for name in names]
    for path in (*left, *fresh):
        path.write_text("half")
    old = fresh[0].stat().st_mtime - LEFT_OVER_S - 1
    for path in (*left, *((made.path, seal) if is_kept else ())):
        os.utime(path, (old, old))
    with archive(java).made_by_a_run():
        pass
    assert [path.exists() for path in (*left, *fresh)] == [False, False, True, True]
    assert (made.path.exists(), seal.exists()) == (is_kept, is_kept)


def test_what_another_process_removes_meanwhile_ends_no_start(java: Path) -> None:
    """Between the look into the folder and the one at the file; a link to nothing looks so."""
    made = archive(java)
    made.path.with_name(f"{made.path.name}.gone").symlink_to(java.parent / "nothing")
    with made.made_by_a_run() as flags:
        to_write(flags).write_text("classes")
    assert made.flags() == (f"-XX:SharedArchiveFile={made.path}",)


@pytest.mark.parametrize("of", ["file", "sum"])
def test_one_that_cannot_be_kept_costs_that_and_no_start(
    java: Path, caplog: pytest.LogCaptureFixture, of: str
) -> None:
    """A folder stands in its place: said in one line, and nothing else is left of the run."""
    made = archive(java)
    place = made.path if of == "file" else seal_of(made.path)
    place.mkdir()
    with made.made_by_a_run() as flags:
        to_write(flags).write_text("classes")
    assert made.flags() == ()
    (said,) = caplog.messages
    assert said.startswith(f"{made.path} is not kept, and ")
    assert str(place) in said
    left = {path.name for path in java.parent.iterdir()}
    assert left <= {"java", made.path.name, seal_of(made.path).name}
