"""A ledger sink in a process of its own, for tests that kill it.

python -m tests.support.ledger_sink_process BOOTSTRAP URL PREFIX PARTITIONS INSTANCE
"""

from __future__ import annotations

import logging
import signal
import sys

from consumers.ledger_sink import LedgerSink
from pipeline.ledger.database import open_ledger
from pipeline.signal_event import SignalEvent
from schemas.codec import default_codec
from topics.catalogue import TopicSettings, build_catalogue


def main() -> None:
    bootstrap, url, prefix, partitions, instance = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = SignalEvent()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    engine = open_ledger(url)
    LedgerSink(
        bootstrap_servers=bootstrap,
        engine=engine,
        catalogue=build_catalogue(TopicSettings(prefix=prefix, partitions=int(partitions))),
        codec=default_codec(),
        instance_id=instance,
        # Many small batches, so that a kill meets one half way.
        batch_records_max=20,
        batch_age_ms_max=20,
        # The least a broker accepts: a killed member's partitions move after it.
        consumer_overrides={"session.timeout.ms": 6_000},
    ).run(stop)
    engine.dispose()


if __name__ == "__main__":
    main()
