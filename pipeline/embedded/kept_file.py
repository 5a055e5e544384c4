"""A file that is made once on a machine and used for months, with its sum beside it.

What of it was lost or changed meanwhile is noticed before anybody uses it: a JVM that maps damaged
classes, or a broker that is given a damaged checkpoint, ends at each start and cannot say why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.embedded.artifacts import sha256_of
from pipeline.embedded.cache import write_atomically

# What a run that was killed has left; one that still writes is done within seconds.
LEFT_OVER_S = 3_600

_log = logging.getLogger(__name__)


def is_sound(path: Path) -> bool:
    """Whether the file is there as it was kept. One without a sum is not.

    What runs that were killed have left beside it is removed.
    """
    _remove_left_overs(path)
    try:
        return seal_of(path).read_text(encoding="ascii").strip() == sha256_of(path)
    except (OSError, ValueError):
        return False


def keep(written: Path, path: Path) -> None:
    """Put a whole file in its place. Of two that do so at once one may be made anew later."""
    write_atomically(seal_of(path), f"{sha256_of(written)}\n")
    written.replace(path)


@contextmanager
def told_if_not_kept(path: Path) -> Iterator[None]:
    """Keeping makes later starts shorter: where it fails that is told, and this start goes on."""
    try:
        yield
    except OSError as error:
        _log.warning("%s is not kept, and Kafka's next start takes longer: %s", path, error)


def seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _remove_left_overs(path: Path) -> None:
    for named in (f"{path.name}.*", f".{path.name}.*"):
        for left_over in path.parent.glob(named):
            # Another process may remove it first, and what cannot be removed is in nobody's way.
            with suppress(OSError):
                if (
                    left_over != seal_of(path)
                    and time.time() - left_over.stat().st_mtime > LEFT_OVER_S
                ):
                    left_over.unlink()
