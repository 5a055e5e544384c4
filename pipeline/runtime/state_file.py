"""A few bytes that a worker's slot keeps over the deaths of its processes.

The file is written in place, since it is written often: a process that is killed leaves what it
wrote. A machine that fails may leave a part of it, so what is read has to be looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

# What is longer is not state, and is not read.
BYTES_MAX = 1024 * 1024


class StateFile(Protocol):
    """``read`` before the first ``write``; neither after ``close``."""

    def read(self) -> bytes: ...

    def write(self, raw: bytes) -> None: ...

    def close(self) -> None: ...


class InPlaceFile:
    """Opened, and made with its directory, at once. Its length stands before the content, because
    a longer one may have been there."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def read(self) -> bytes:
        """What was written last; of a file that was cut off, or that is older than this form of it,
        whatever is there."""
        if self._file is None:
            return b""
        raw = os.pread(self._file, BYTES_MAX, 0)
        size = int.from_bytes(raw[:4], "big")
        return raw[4 : 4 + size] if 4 + size <= len(raw) else raw

    def write(self, raw: bytes) -> None:
        if self._file is not None:
            os.pwrite(self._file, len(raw).to_bytes(4, "big") + raw, 0)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
