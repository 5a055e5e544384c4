"""What an embedded broker is told: its properties, its log settings and the JVM's flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.embedded.ports import LOOPBACK

# A 16 MiB dead letter with its headers and the batch's own framing.
MESSAGE_BYTES_MAX = 20 * 1024 * 1024
# Enough to spread a test's groups over three brokers; the default of 50 costs seconds of start-up
# and 50 open files each.
INTERNAL_PARTITIONS = 8


@dataclass(frozen=True)
class BrokerPorts:
    """Where one node listens: clients on the first, the controllers' quorum on the second."""

    node_id: int
    port: int
    controller_port: int


def listeners(
    node: BrokerPorts, between: str = "", *, real_port: int = 0, named_port: int = 0
) -> dict[str, str]:
    """Where a node listens, and by which listener brokers reach each other.

    ``between`` names one more that only they use: it listens on ``real_port``, and others are told
    ``named_port``, where something that stands between them may listen.
    """
    names = ["PLAINTEXT"]
    listens = [f"PLAINTEXT://{LOOPBACK}:{node.port}"]
    named = list(listens)
    if between:
        names.append(between)
        listens.append(f"{between}://{LOOPBACK}:{real_port}")
        named.append(f"{between}://{LOOPBACK}:{named_port}")
    return {
        "listeners": ",".join([*listens, f"CONTROLLER://{LOOPBACK}:{node.controller_port}"]),
        "advertised.listeners": ",".join(named),
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": ",".join(
            f"{name}:PLAINTEXT" for name in [*names, "CONTROLLER"]
        ),
        "inter.broker.listener.name": names[-1],
    }


def server_properties(
    node: BrokerPorts,
    nodes: Sequence[BrokerPorts],
    log_dir: Path,
    extra: Mapping[str, str],
) -> str:
    """The text of one node's ``server.properties``; ``extra`` wins over everything here."""
    replicas = str(len(nodes))
    # Three copies of which two must agree: one broker may die, two may not. One has one.
    in_sync_min = str(max(1, len(nodes) - 1))
    voters = ",".join(f"{n.node_id}@{LOOPBACK}:{n.controller_port}" for n in nodes)
    settings = {
        "node.id": str(node.node_id),
        "process.roles": "broker,controller",
        **listeners(node),
        "controller.quorum.voters": voters,
        "log.dirs": str(log_dir),
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync_min,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": str(INTERNAL_PARTITIONS),
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync_min,
        "transaction.state.log.num.partitions": str(INTERNAL_PARTITIONS),
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync_min,
        "share.coordinator.state.topic.num.partitions": "1",
        # The first member of a group need not wait 3 s for others.
        "group.initial.rebalance.delay.ms": "0",
        # A misspelt topic is an error, not a new topic with defaults.
        "auto.create.topics.enable": "false",
        "message.max.bytes": str(MESSAGE_BYTES_MAX),
        "replica.fetch.max.bytes": str(MESSAGE_BYTES_MAX),
        # A crashed worker's transaction blocks read_committed readers for its time-out plus this.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        # The default takes 128 MB of a heap of 512; 32 MB hold 1.2 million keys a pass.
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
        **extra,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def log4j_properties(log_file: Path) -> str:
    """Warnings and errors into one file of at most three times 10 MB, and who lost a marker."""
    return f"""\
status=ERROR
rootLogger.level=WARN
rootLogger.appenderRef.file.ref=file
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={log_file}
appender.file.filePattern={log_file}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %-5p %c{{1}} - %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
# Says at every start that a file in the working folder could configure it.
logger.logging.name=kafka.utils.Log4jControllerRegistration
logger.logging.level=ERROR
# A marker that is not written is no more than information to Kafka (see pipeline/hanging).
logger.markers.name=kafka.coordinator.transaction.TransactionMarkerChannelManager
logger.markers.level=INFO
"""


# The quick compiler only: half the CPU of a start (2.5 s instead of 4.8), half the speed later on.
# For what lives for seconds: formatting, and the brokers of tests.
SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)


def jvm_command(
    java: Path,
    jars: Sequence[Path],
    main: str,
    *,
    heap_mb: int,
    log4j: Path,
    flags: Sequence[str] = (),
) -> list[str]:
    """The command up to the main class. Serial collection: small heap, two cores, quick start."""
    return [
        str(java),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        # Without it a broker that is out of memory lingers, neither serving nor dead.
        "-XX:+ExitOnOutOfMemoryError",
        *flags,
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={log4j}",
        "-cp",
        ":".join(str(jar) for jar in jars),
        main,
    ]
