"""A notifier in a process of its own, for tests that kill it.

python -m tests.support.notifier_process SPEC (JSON)
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

from consumers.notifier.database import open_callbacks
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.notifier import Notifier
from pipeline.signal_event import SignalEvent
from schemas.codec import default_codec
from topics.catalogue import TopicSettings, build_catalogue


def main() -> None:
    spec = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = SignalEvent()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    engine = open_callbacks(spec["url"])
    allowed = {"allow_http": True, "allow_private": True}
    Notifier(
        bootstrap_servers=spec["bootstrap"],
        engine=engine,
        catalogue=build_catalogue(
            TopicSettings(prefix=spec["prefix"], partitions=spec["partitions"])
        ),
        codec=default_codec(),
        endpoints=EndpointFile(Path(spec["file"]), **allowed),
        instance_id="killed",
        first_ms=spec["first_ms"],
        **allowed,
    ).run(stop)
    engine.dispose()


if __name__ == "__main__":
    main()
