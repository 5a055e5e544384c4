"""What a worker takes from outside itself: clients, clock, threads and disk, in one place.

Production uses ``REAL``. A simulation gives others of the same surface, and runs the very code that
production runs, whole workers with their threads, over a simulated log and clock.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from pipeline.runtime.group_consumer import GroupConsumer
from pipeline.runtime.standstill import Standstill
from pipeline.runtime.state_file import InPlaceFile, StateFile
from pipeline.runtime.table_store import RocksTableStore, TableStore


def _rocks_table_store(path: Path, keep_s: int | None) -> TableStore:
    return RocksTableStore(path, keep_s=keep_s)


def _steady_clock() -> Callable[[], float]:
    """Linux's own monotonic clock stands while the machine is suspended, and a worker that wakes
    with it would not know that others have taken over. This one goes on."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    return time.monotonic


@dataclass(frozen=True)
class Surroundings:
    """Each field is called the way production's own default is."""

    consumer: Callable[..., Any] = GroupConsumer
    producer: Callable[..., Any] = Producer
    admin: Callable[..., Any] = AdminClient
    table_store: Callable[[Path, int | None], TableStore] = _rocks_table_store
    state_file: Callable[[Path], StateFile] = InPlaceFile
    # Epoch seconds; seconds of a clock that nobody sets.
    time_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = field(default_factory=_steady_clock)
    sleep: Callable[[float], None] = time.sleep
    thread: Callable[..., Any] = threading.Thread
    event: Callable[[], Any] = threading.Event
    queue: Callable[[], Any] = queue.SimpleQueue
    # Whether its brokers take requests of our own (``BrokerConnection``).
    has_brokers: bool = True
    standstill: Callable[[Callable[[], float]], Standstill] = Standstill
    event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop


REAL = Surroundings()
