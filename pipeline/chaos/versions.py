"""What a run was made with: its result is of these."""

from __future__ import annotations

import json
import os

from pipeline.embedded.kafka import LOCK_FILE


def kafka_version() -> str:
    return str(json.loads(LOCK_FILE.read_text(encoding="utf-8"))["version"])


def librdkafka_version() -> str:
    import confluent_kafka

    return str(confluent_kafka.libversion()[0])


def machine() -> str:
    """Cores, memory and how busy it was."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores, {memory_gib:.1f} GiB, load {os.getloadavg()[0]:.1f} at the end"
