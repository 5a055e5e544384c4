"""The notifications worker: one thread reads events, one delivers callbacks, a database between.

At least once: a delivery that was answered and not yet written down is made again after a crash,
with the same ``webhook-id``, by which a receiver tells a repetition from something new.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from consumers.notifier.deliverer import Deliverer
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.event_reader import EventReader, Start
from consumers.notifier.patience import TRIES_MAX
from consumers.notifier.store import CallbackStore
from consumers.notifier.watch import NotifierMetrics
from schemas.codec import Codec
from topics.catalogue import Catalogue

_log = logging.getLogger(__name__)


class Notifier:
    """``run`` until it is told to stop. The engine comes from ``open_callbacks``."""

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        engine: Engine,
        catalogue: Catalogue,
        codec: Codec,
        endpoints: EndpointFile,
        instance_id: str,
        first_ms: int,
        tries_max: int = TRIES_MAX,
        start: Start = "earliest",
        allow_http: bool = False,
        allow_private: bool = False,
        metrics: NotifierMetrics | None = None,
        consumer_overrides: Mapping[str, Any] | None = None,
    ) -> None:
        store = CallbackStore(engine)
        self._endpoints = endpoints
        self.reader = EventReader(
            store,
            endpoints,
            bootstrap_servers=bootstrap_servers,
            catalogue=catalogue,
            codec=codec,
            instance_id=instance_id,
            start=start,
            on_new=lambda names: self.deliverer.wake(names),
            metrics=metrics,
            consumer_overrides=consumer_overrides,
        )
        self.deliverer = Deliverer(
            store,
            endpoints,
            lanes=lambda: self.reader.lanes,
            first_ms=first_ms,
            tries_max=tries_max,
            allow_http=allow_http,
            allow_private=allow_private,
            metrics=metrics,
        )

    def run(self, stop: threading.Event) -> None:
        """UserError when something outside has to be put right first."""
        self._endpoints.load()
        ending = threading.Event()
        failed: list[BaseException] = []

        def deliver() -> None:
            try:
                self.deliverer.run(ending)
            except BaseException as error:
                failed.append(error)
            finally:
                ending.set()

        thread = threading.Thread(target=deliver, name="deliveries")
        follower = threading.Thread(target=_follow, args=(stop, ending), daemon=True)
        thread.start()
        follower.start()
        try:
            self.reader.run(ending)
        finally:
            ending.set()
            thread.join()
        if failed:
            raise failed[0]


def _follow(stop: threading.Event, ending: threading.Event) -> None:
    """Either of the two ends both."""
    while not ending.wait(0.1):
        if stop.is_set():
            ending.set()
