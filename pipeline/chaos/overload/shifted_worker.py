"""A worker on a machine whose clock is wrong: ``python -m pipeline.chaos.overload.shifted_worker``.

The file that PAYSTREAM_SHIFT_FILE names holds by how many seconds, as eight bytes; it may change at
any time. Whatever Python code asks for the time of day gets the wrong one; the clock that cannot
jump stays right, as on a real machine.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from pathlib import Path

SHIFT_FILE = "PAYSTREAM_SHIFT_FILE"
_DOUBLE = struct.Struct("=d")


def write_shift(path: Path, seconds: float) -> None:
    """In one write: a worker that looks meanwhile sees the old one or the new one."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(_DOUBLE.pack(seconds))


def _shift_clock(path: Path) -> None:
    right = time.time
    with path.open("rb") as file:
        shift = mmap.mmap(file.fileno(), _DOUBLE.size, prot=mmap.PROT_READ)

    def wrong() -> float:
        return right() + float(_DOUBLE.unpack_from(shift)[0])

    # Before anything of the worker is imported: some of it keeps the function.
    time.time = wrong


if __name__ == "__main__":
    _shift_clock(Path(os.environ[SHIFT_FILE]))
    from pipeline.worker import main

    sys.exit(main())
