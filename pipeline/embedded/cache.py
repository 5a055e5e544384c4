"""Where downloads are kept between runs, and how two processes share them without harm."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError


def cache_dir() -> Path:
    """``PAYSTREAM_CACHE_DIR``, else ``paystream`` under the user's cache folder. Not created."""
    own = os.environ.get("PAYSTREAM_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "paystream"


def make_folder(path: Path, what: str) -> None:
    """Create a folder and its parents, or say in one sentence why it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot create the {what} folder {path}: {error.strerror}. Choose another one."
        ) from error


@contextmanager
def exclusive(
    lock_path: Path, *, timeout_s: float, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock between processes; it goes with the process, so a crash never leaves it held.

    ``on_wait`` is called once when somebody else holds it. UserError after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    told = False
    with lock_path.open("a+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Another process has held {lock_path} for {timeout_s:.0f} s. Wait for it "
                        "or stop it, then try again."
                    ) from None
                if not told and on_wait is not None:
                    on_wait()
                told = True
                time.sleep(0.05)
        yield


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a small file whole: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.touch(mode=mode)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
