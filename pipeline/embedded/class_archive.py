"""The classes of a Java program, kept ready to be mapped instead of loaded and verified each time.

An archive belongs to one build of the JVM and one class path. A JVM that is given another's starts
without it, so an archive can be old and never wrong (JEP 350, from Java 13 on).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from pipeline.embedded.kept_file import is_sound, keep, told_if_not_kept


class ClassArchive:
    """The archive of ``jars`` for one ``java``, beside the jars; it need not be there."""

    def __init__(self, java: Path, jars: Sequence[Path]) -> None:
        real = java.resolve()
        seen = real.stat()
        # Another JVM in the same place is another file.
        named = f"{real}:{seen.st_size}:{seen.st_mtime_ns}:{':'.join(map(str, jars))}"
        # Looked at once: it has tens of megabytes.
        self._is_sound: bool | None = None
        self.path = jars[0].parent / f"classes-{sha256(named.encode()).hexdigest()[:16]}.jsa"

    def flags(self) -> tuple[str, ...]:
        """For a JVM that is to use it; none while it is not there as it was written."""
        if self._is_sound is None:
            self._is_sound = is_sound(self.path)
        return (f"-XX:SharedArchiveFile={self.path}",) if self._is_sound else ()

    @contextmanager
    def made_by_a_run(self) -> Iterator[tuple[str, ...]]:
        """Flags for a JVM that ends within the block; it writes the archive if there is none yet.

        Several may do so at once: each writes a file of its own, and the last one is kept. The JVM
        writes the header last and removes what it cannot write whole, so half a file is no archive.
        """
        if self.flags() or not os.access(self.path.parent, os.W_OK):
            yield self.flags()
            return
        written = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            yield (f"-XX:ArchiveClassesAtExit={written}",)
            if written.exists():
                with told_if_not_kept(self.path):
                    keep(written, self.path)
                    self._is_sound = True
        finally:
            written.unlink(missing_ok=True)
