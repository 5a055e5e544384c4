"""Every combination in turn: a broker of its own for each level of transactions, both loops."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.chaos.kip890 import script
from pipeline.chaos.kip890.report import Report
from pipeline.chaos.kip890.run import Seen, run_loop
from pipeline.chaos.proxy import KafkaProxy
from pipeline.chaos.versions import kafka_version, librdkafka_version
from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.errors import UserError

HEAP_MB = 384
INJECTED_LOG = "injected.jsonl"


def run_campaign(
    *,
    faults: int,
    rounds: int,
    seed: int,
    versions: Sequence[int],
    brokers: int,
    command: str,
    log_folder: Path | None,
    say: Callable[[str], None],
) -> Report:
    """``faults``: ends injured under the engine's lane, for each of ``versions``, besides the
    ``rounds`` of pairs that both loops go through. ``log_folder`` keeps a line for each fault."""
    seen: list[Seen] = []
    for version in versions:
        with tempfile.TemporaryDirectory(prefix="paystream-kip890-") as folder:
            say(f"A Kafka with transaction.version {version}")
            handle = start_kafka(
                Path(folder) / "kafka",
                brokers=brokers,
                heap_mb=HEAP_MB,
                die_with_parent=True,
                jvm_flags=SHORT_LIVED,
                features={"transaction.version": version},
            )
            log = None if log_folder is None else log_folder / f"tv{version}-{INJECTED_LOG}"
            try:
                with KafkaProxy(handle.bootstrap_servers, log_file=log, seed=seed) as proxy:
                    found = proxy.features().get("transaction.version", 0)
                    if found != version:
                        raise UserError(
                            f"the cluster has transaction.version {found}, not {version}; this "
                            "Kafka cannot be set to it."
                        )
                    for loop, steps in (
                        ("plain", [*script.pairs(rounds)]),
                        ("engine", [*script.pairs(rounds), *script.many(faults, seed)]),
                    ):
                        injured = sum(step.fault is not None for step in steps)
                        say(f"{loop} loop, {injured:,} ends injured")
                        one = run_loop(
                            loop,
                            steps,
                            direct=handle.bootstrap_servers,
                            proxy=proxy,
                            transaction_version=version,
                            name=f"kip890.{loop}",
                            say=say,
                        )
                        seen.append(one)
                        say(f"  {'EXPOSED' if one.exposed else 'whole'} in {one.took_s:.0f} s")
            finally:
                stop_kafka(handle)
    return Report(
        command=command,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        kafka=kafka_version(),
        librdkafka=librdkafka_version(),
        brokers=brokers,
        seen=seen,
    )
