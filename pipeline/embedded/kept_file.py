"""A file that is made once on a machine and used for months, with its sum beside it.

What of it was lost or changed meanwhile is noticed before anybody uses it: a JVM that maps damaged
classes, or a broker that is given a damaged checkpoint, ends at each start and cannot say why.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.embedded.artifacts import sha256_of
from pipeline.embedded.cache import write_atomically


def is_sound(path: Path) -> bool:
    """Whether the file is there as it was kept. One without a sum is not."""
    try:
        return seal_of(path).read_text(encoding="ascii").strip() == sha256_of(path)
    except (OSError, ValueError):
        return False


def keep(written: Path, path: Path) -> None:
    """Put a whole file in its place. Of two that do so at once one may be made anew later."""
    write_atomically(seal_of(path), f"{sha256_of(written)}\n")
    written.replace(path)


def seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
