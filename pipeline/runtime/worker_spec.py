"""What a worker process is told when it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import json

from topics.catalogue import TopicSettings

APP = "paystream"

# What a supervisor starts; it stands above the runtime, since it puts all parts together.
WORKER_MODULE = "pipeline.worker"
# In a worker's environment: whose death it follows.
SUPERVISOR_PID = "PAYSTREAM_SUPERVISOR_PID"

EXIT_USER_ERROR = 2
EXIT_LANE_FATAL = 3
EXIT_NO_MEMORY = 4
EXIT_BUG = 70
# Where a worker that exits with EXIT_USER_ERROR leaves its sentence, in its slot's directory.
LAST_ERROR = "last-error.txt"


@dataclass(frozen=True)
class WorkerSpec:
    """Plain values only: it is sent to a spawned process.

    ``node_id`` is unique in the cluster and ``slot`` on the node, so that the transactional id and
    the group's member id of a worker are the same after a restart and never another's.
    """

    stage: str
    node_id: str
    slot: int
    bootstrap_servers: str
    topics: TopicSettings
    state_dir: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.slot}"

    @property
    def transactional_id(self) -> str:
        """App, prefix, node, stage, slot: a restarted worker fences its own zombie at once.

        Parted by slashes, which no topic's name can hold: with dots the prefix ``a.`` and the
        node ``b`` would be one with no prefix and the node ``a.b``, and fence each other for ever.
        """
        return f"{APP}/{self.topics.prefix}/{self.node_id}/{self.stage}/{self.slot}"

    @property
    def instance_id(self) -> str:
        """The static member id within the stage's consumer group."""
        return f"{self.node_id}.{self.slot}"

    @property
    def slot_dir(self) -> Path:
        return self.state_dir / f"{self.topics.prefix}{self.name}"


def encode_spec(spec: WorkerSpec) -> bytes:
    """The specification as JSON, for a process's standard input."""
    return json.encode(spec, enc_hook=_as_text)


def decode_spec(text: bytes) -> WorkerSpec:
    return json.decode(text, type=WorkerSpec, dec_hook=_as_path)


def _as_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a worker cannot be told a {type(value).__name__}")


def _as_path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value


def configure_logging(level: str, file: str | None = None) -> None:
    """One line a record: time, level, process, logger, text; to standard error or a file."""
    handler: logging.Handler = logging.FileHandler(file) if file else logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
