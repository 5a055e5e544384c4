"""A broker of its own, once directly and once by way of the proxy that injures requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.chaos.proxy import KafkaProxy
from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED

# Far below any time-out of a test's own transactions, so that the broker ends them in time.
ABORT_LOOK_INTERVAL_MS = 200


@dataclass(frozen=True)
class ProxiedKafka:
    """Clients of ``direct`` reach the broker itself, those of ``proxied`` through the proxy."""

    direct: str
    proxied: str
    proxy: KafkaProxy


@contextlib.contextmanager
def proxied_kafka(
    folder: Path, *, brokers: int = 1, features: Mapping[str, int] | None = None
) -> Iterator[ProxiedKafka]:
    """Start a cluster and a proxy in front of it; both are stopped on leaving."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = start_kafka(
        folder / "kafka",
        brokers=brokers,
        heap_mb=320,
        die_with_parent=True,
        jvm_flags=SHORT_LIVED,
        features=features,
        extra_config={
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": str(
                ABORT_LOOK_INTERVAL_MS
            ),
        },
    )
    try:
        with KafkaProxy(handle.bootstrap_servers, log_file=folder / "injected.jsonl") as proxy:
            yield ProxiedKafka(handle.bootstrap_servers, proxy.bootstrap_servers, proxy)
    finally:
        stop_kafka(handle)
