"""What formatting a broker's folder writes, kept beside the jars: a JVM is started for it once on a
machine and not for each new broker.

A formatted folder is two files. ``bootstrap.checkpoint`` holds the levels of the features, the same
for every cluster of this Kafka; ``meta.properties`` says whose the folder is (KIP-853, KIP-858).
"""

from __future__ import annotations

import base64
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from pipeline.embedded.cache import write_atomically
from pipeline.embedded.kept_file import is_sound, keep, told_if_not_kept

CHECKPOINT = "bootstrap.checkpoint"
# There once a folder is formatted, so it is written last.
META = "meta.properties"


class KeptFormat:
    """The checkpoint of these jars and levels of features; it need not be there."""

    def __init__(self, jars: Sequence[Path], features: Mapping[str, int]) -> None:
        named = f"{sorted(features.items())}:{':'.join(map(str, jars))}"
        self.path = jars[0].parent / f"format-{sha256(named.encode()).hexdigest()[:16]}.checkpoint"

    def is_there(self) -> bool:
        # A machine that lost its power may have kept the name and lost the bytes.
        return is_sound(self.path)

    def keep(self, log_dir: Path) -> None:
        """Keep what the program of Kafka has written into this folder."""
        if self.is_there() or not os.access(self.path.parent, os.W_OK):
            return
        copy = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
        with told_if_not_kept(self.path):
            try:
                shutil.copyfile(log_dir / CHECKPOINT, copy)
                keep(copy, self.path)
            finally:
                copy.unlink(missing_ok=True)

    def put(self, log_dir: Path, *, cluster_id: str, node_id: int) -> None:
        """Make of a folder what that program would."""
        log_dir.mkdir(exist_ok=True)
        shutil.copyfile(self.path, log_dir / CHECKPOINT)
        said = {
            "version": "1",
            "cluster.id": cluster_id,
            "node.id": str(node_id),
            "directory.id": kafka_uuid(),
        }
        write_atomically(log_dir / META, "".join(f"{key}={said[key]}\n" for key in said))


def kafka_uuid() -> str:
    """Kafka's own form of a UUID; one that begins with a dash would read as an option."""
    text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return f"p{text[1:]}" if text[0] == "-" else text
