"""Serving the metrics of a supervisor and all its workers on one port."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, multiprocess, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.errors import UserError
from pipeline.observability.stalls import Places, Stalls, lag_of

_log = logging.getLogger(__name__)

# The lag is asked of the cluster at most this often, however often the metrics are scraped.
LAG_INTERVAL_S = 2.0


class LagCollector(Collector):
    """``paystream_consumer_lag`` and ``paystream_consumer_stalled_seconds`` by group and topic,
    kept fresh by a thread of its own.

    ``ask`` tells a group's places; ``delayed`` topics cannot stall.
    """

    def __init__(
        self, ask: Mapping[str, Callable[[], Places]], delayed: Collection[str] = ()
    ) -> None:
        self._ask = ask
        self._lag: dict[tuple[str, str], int] = {}
        self._stalls = {group: Stalls(delayed) for group in ask}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lag", daemon=True)
        self._thread.start()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "paystream_consumer_lag",
            "Records between a group's committed offsets and the ends of a topic, control records "
            "included.",
            labels=["group", "topic"],
        )
        for (group, topic), lag in sorted(self._lag.items()):
            family.add_metric([group, topic], lag)
        stalled = GaugeMetricFamily(
            "paystream_consumer_stalled_seconds",
            "For how long a group has committed nothing while records of a topic waited for it, in "
            "the partition where that is longest. Tiers are left out; orders held back count, and "
            "so do markers, for half a minute.",
            labels=["group", "topic"],
        )
        # By this moment and not the last answer: what stood before a cluster went away stands on.
        now_s = time.monotonic()
        for group, stalls in sorted(self._stalls.items()):
            for topic, seconds in sorted(stalls.seconds(now_s).items()):
                stalled.add_metric([group, topic], seconds)
        return [family, stalled]

    def close(self) -> None:
        self._stop.set()
        self._thread.join(15.0)

    def _watch(self) -> None:
        unknown: set[str] = set()
        while not self._stop.is_set():
            for group, ask in self._ask.items():
                try:
                    self._looked(group, ask())
                    unknown.discard(group)
                except Exception as error:  # a cluster that is away must not end the metrics
                    # Once: a terminal shows it, and a cluster may be away for long.
                    level = logging.DEBUG if group in unknown else logging.WARNING
                    _log.log(level, "the lag of %s cannot be asked: %s", group, _in_words(error))
                    unknown.add(group)
            self._stop.wait(LAG_INTERVAL_S)

    def _looked(self, group: str, places: Places) -> None:
        self._stalls[group].look(places, time.monotonic())
        for topic, records in lag_of(places).items():
            self._lag[(group, topic)] = records


def _in_words(error: Exception) -> str:
    """An error of the Kafka client as its sentence, without its names and numbers."""
    cause: Any = error.args[0] if error.args else None
    return str(cause.str()) if hasattr(cause, "str") else str(error)


class RestartCollector(Collector):
    """``paystream_worker_restarts`` by worker, from the supervisor's own count."""

    def __init__(self, restarts: Callable[[], Mapping[str, int]]) -> None:
        self._restarts = restarts

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "paystream_worker_restarts",
            "How often the supervisor has started a dead worker again.",
            labels=["worker"],
        )
        for worker, count in sorted(self._restarts().items()):
            family.add_metric([worker], count)
        return [family]


class Exposition:
    """An HTTP server with the summed metrics of every worker, and what collectors add."""

    def __init__(
        self, metrics_dir: Path, *, host: str, port: int, collectors: Iterable[Collector] = ()
    ) -> None:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=str(metrics_dir))  # type: ignore[no-untyped-call]
        for collector in collectors:
            registry.register(collector)
        self._registry = registry
        try:
            started: Any = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise UserError(
                f"the metrics cannot be served on {host}:{port} ({error.strerror}). Choose another "
                "port with --metrics-port or PAYSTREAM_METRICS_PORT; 0 takes a free one."
            ) from error
        self._server, self._thread = started
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


def totals(metrics_dir: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    """The counters of all workers by name and label values, for a display on this machine."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(metrics_dir))  # type: ignore[no-untyped-call]
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.endswith(("_total", "_count", "_sum")):
                found[(sample.name, tuple(sample.labels[k] for k in sorted(sample.labels)))] = (
                    sample.value
                )
    return found
