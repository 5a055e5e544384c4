"""A real Kafka for a machine that has none: one broker, or three that replicate.

Apache Kafka's own jars, held to committed sha256 sums, on any Java 17 or newer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.domain.invariant import InvariantBroken, invariant
from pipeline.embedded import processes
from pipeline.embedded.artifacts import Fetch, ensure_artifacts, read_lock
from pipeline.embedded.broker import (
    START_TIMEOUT_S,
    STARTING_S_MAX,
    BrokerProcess,
    wait_until_serving,
)
from pipeline.embedded.cache import cache_dir, exclusive, make_folder, write_atomically
from pipeline.embedded.class_archive import ClassArchive
from pipeline.embedded.java import find_java
from pipeline.embedded.kafka_config import (
    SHORT_LIVED,
    BrokerPorts,
    jvm_command,
    log4j_properties,
    server_properties,
)
from pipeline.embedded.kept_format import META, KeptFormat, kafka_uuid
from pipeline.embedded.ports import free_ports, is_free
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import UserError

LOCK_FILE = Path(__file__).parent / "kafka.lock.json"
# Kept for the life of the data: which cluster this is and where it listens.
CLUSTER_FILE = "cluster.json"
# There while brokers run: their pids, each with the moment it started.
STATE_FILE = "running.json"
# What Kafka 4's server is compiled for.
JAVA_MAJOR_MIN = 17
STOP_TIMEOUT_S = 20.0
PORT_TRIES_MAX = 3


@dataclass(frozen=True)
class KafkaHandle:
    """A cluster that serves. ``started_here`` is False when it was running already."""

    bootstrap_servers: str
    brokers: tuple[BrokerProcess, ...]
    data_dir: Path
    started_here: bool


def start_kafka(
    data_dir: Path,
    *,
    brokers: int = 1,
    heap_mb: int = 512,
    on_progress: Callable[[str], None] | None = None,
    extra_config: Mapping[str, str] | None = None,
    config_of: Callable[[BrokerPorts], Mapping[str, str]] | None = None,
    die_with_parent: bool = False,
    jvm_flags: Sequence[str] = (),
    features: Mapping[str, int] | None = None,
    timeout_s: float = START_TIMEOUT_S,
    fetch: Fetch | None = None,
) -> KafkaHandle:
    """Serve from ``data_dir``, or find the cluster that already does; returns once it answers.

    ``brokers`` is 1 or 3 and stays what it was for the life of the data. Ports are kept with the
    data, and new ones are taken only if somebody else sits on them. A cluster that already runs
    is handed back as it is: ``heap_mb``, ``extra_config``, ``config_of`` (what one broker gets
    besides), ``die_with_parent`` and ``jvm_flags`` apply to the brokers that this call starts.
    ``features`` are the levels of the cluster's features where they shall not be Kafka's newest
    (``{"transaction.version": 1}``); they are settled when the data is new. The first start on a
    machine downloads 46 MB.

    UserError when the download, the start or the folder fails; nothing started is left running.
    """
    invariant(brokers in (1, 3), "a cluster has one broker, or three to outlive the loss of one")
    data_dir = data_dir.absolute()
    make_folder(data_dir, "Kafka data")
    say = on_progress or (lambda _line: None)
    jars = ensure_artifacts(read_lock(LOCK_FILE), cache_dir(), fetch=fetch, on_progress=on_progress)
    # The other process that starts the same cluster takes seconds; then it is found running.
    with exclusive(data_dir / ".lock", timeout_s=timeout_s + STARTING_S_MAX):
        cluster = _cluster(data_dir, brokers)
        starter = _Starter(
            data_dir,
            cluster,
            jars,
            heap_mb,
            extra_config or {},
            config_of or (lambda _ports: {}),
            die_with_parent,
            jvm_flags,
            features or {},
        )
        begun_s = time.monotonic()
        made, started_here = _start_what_is_down(starter, say, timeout_s)
        wait_until_serving(made, timeout_s)
        if started_here:
            say(f"Kafka serves after {time.monotonic() - begun_s:.1f} s")
        return KafkaHandle(
            bootstrap_servers=",".join(broker.bootstrap_server for broker in made),
            brokers=made,
            data_dir=data_dir,
            started_here=started_here,
        )


def stop_kafka(handle_or_data_dir: KafkaHandle | Path, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop every broker of that cluster and keep its data. Nothing to stop is not an error."""
    if isinstance(handle_or_data_dir, KafkaHandle):
        data_dir = handle_or_data_dir.data_dir
    else:
        data_dir = handle_or_data_dir.absolute()
    if not data_dir.exists():
        return
    with exclusive(data_dir / ".lock", timeout_s=STARTING_S_MAX):
        processes.stop(list(_running(data_dir).values()), timeout_s)
        (data_dir / STATE_FILE).unlink(missing_ok=True)


def running_kafka(data_dir: Path) -> str | None:
    """The bootstrap servers of the cluster that runs from this folder, None when none does."""
    if not _running(data_dir):
        return None
    cluster = _read_cluster(data_dir / CLUSTER_FILE)
    return ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


@dataclass(frozen=True)
class _Cluster:
    cluster_id: str
    nodes: tuple[BrokerPorts, ...]


@dataclass
class _Starter:
    """What it takes to write a broker's files and start it."""

    data_dir: Path
    cluster: _Cluster
    jars: Sequence[Path]
    heap_mb: int
    extra_config: Mapping[str, str]
    config_of: Callable[[BrokerPorts], Mapping[str, str]]
    die_with_parent: bool
    jvm_flags: Sequence[str]
    features: Mapping[str, int]

    def __post_init__(self) -> None:
        self._java = find_java(JAVA_MAJOR_MIN)
        self.classes = ClassArchive(self._java, self.jars)
        self._brokers: tuple[BrokerProcess, ...] = ()

    def brokers(self) -> tuple[BrokerProcess, ...]:
        running = _running(self.data_dir)
        if not running:
            self.cluster = _with_free_ports(self.cluster)
            _write_cluster(self.data_dir, self.cluster)
        self._brokers = tuple(
            BrokerProcess(
                ports=node,
                cluster_id=self.cluster.cluster_id,
                folder=self.data_dir / f"broker-{node.node_id}",
                command=self.command_of(node),
                die_with_parent=self.die_with_parent,
                identity=running.get(node.node_id),
                on_change=self._write_state,
            )
            for node in self.cluster.nodes
        )
        return self._brokers

    def prepare(self, broker: BrokerProcess) -> None:
        """Write the broker's settings, and format its log folder if that was never done."""
        folder = broker.folder
        make_folder(folder, "Kafka data")
        extra = {**self.extra_config, **self.config_of(broker.ports)}
        properties = server_properties(broker.ports, self.cluster.nodes, folder / "log", extra)
        write_atomically(folder / "server.properties", properties)
        write_atomically(folder / "log4j2.properties", log4j_properties(folder / "server.log"))

    def command_of(self, node: BrokerPorts) -> tuple[str, ...]:
        """What starts the broker, with the archive of its classes once there is one."""
        flags = (*self.jvm_flags, *self.classes.flags())
        return tuple(self._command("kafka.Kafka", node, self.heap_mb, flags))

    def format_command(self, broker: BrokerProcess, flags: Sequence[str]) -> list[str]:
        flags = (*SHORT_LIVED, *flags)
        line = self._command("kafka.tools.StorageTool", broker.ports, 128, flags)
        properties = line.pop()
        levels = [
            word for f, n in sorted(self.features.items()) for word in ("--feature", f"{f}={n}")
        ]
        # --ignore-formatted: a start that was interrupted between the two steps can be repeated.
        return [
            *line, "format", "--ignore-formatted", "-t", self.cluster.cluster_id, "-c", properties,
            *levels,
        ]  # fmt: skip

    def _command(
        self, main: str, node: BrokerPorts, heap_mb: int, flags: Sequence[str]
    ) -> list[str]:
        folder = self.data_dir / f"broker-{node.node_id}"
        log4j = folder / "log4j2.properties"
        line = jvm_command(self._java, self.jars, main, heap_mb=heap_mb, log4j=log4j, flags=flags)
        return [*line, str(folder / "server.properties")]

    def _write_state(self) -> None:
        alive = {
            str(broker.node_id): asdict(broker.identity)
            for broker in self._brokers
            if broker.identity is not None and broker.is_running()
        }
        write_atomically(self.data_dir / STATE_FILE, json.dumps(alive, indent=1) + "\n")


def _start_what_is_down(
    starter: _Starter, say: Callable[[str], None], timeout_s: float
) -> tuple[tuple[BrokerProcess, ...], bool]:
    for tries_left in reversed(range(PORT_TRIES_MAX)):
        made = starter.brokers()
        down = [broker for broker in made if not broker.is_running()]
        if not down:
            return made, False
        say("Starting Kafka" if len(down) == 1 else f"Starting {len(down)} Kafka brokers")
        try:
            _start(starter, down, timeout_s)
            return made, True
        except UserError:
            # Between the choice of a port and the broker's taking it, another process can.
            if not tries_left or len(down) < len(made) or not _lost_a_port(down):
                raise
            say("Another process took a port of Kafka; choosing others")
    raise InvariantBroken("the last try returns or raises")


def _lost_a_port(stopped: Sequence[BrokerProcess]) -> bool:
    return not all(is_free(p) for b in stopped for p in (b.ports.port, b.ports.controller_port))


def _start(starter: _Starter, down: Sequence[BrokerProcess], timeout_s: float) -> None:
    for broker in down:
        starter.prepare(broker)
    _format(starter, [b for b in down if not (b.folder / "log" / META).exists()])
    try:
        for broker in down:
            broker.command = starter.command_of(broker.ports)
            broker.launch()
        wait_until_serving(down, timeout_s)
    except BaseException:
        # Ctrl-C included: whoever asked has no handle to stop them by.
        for broker in down:
            broker.kill()
        raise


def _format(starter: _Starter, brokers: Sequence[BrokerProcess]) -> None:
    kept = KeptFormat(starter.jars, starter.features)
    if kept.is_there() and starter.classes.flags():
        for broker in brokers:
            log_dir = broker.folder / "log"
            kept.put(log_dir, cluster_id=broker.cluster_id, node_id=broker.node_id)
        return
    # The classes it loads are most of those that a broker loads until it serves.
    with starter.classes.made_by_a_run() as flags:
        _format_at_once(starter, brokers, flags)
    for broker in brokers[:1]:
        kept.keep(broker.folder / "log")


def _format_at_once(
    starter: _Starter, brokers: Sequence[BrokerProcess], flags: Sequence[str]
) -> None:
    # Each is a second of a JVM that mostly waits for its own start. One of them writes the archive.
    begun: list[tuple[BrokerProcess, ProcessIdentity]] = []
    for broker in brokers:
        command = starter.format_command(broker, starter.classes.flags() if begun else flags)
        output = broker.folder / "format.log"
        begun.append((broker, processes.start_detached(command, output=output)))
    try:
        for broker, identity in begun:
            ended = processes.wait_ended(identity, 60.0)
            if not ended or not (broker.folder / "log" / META).exists():
                logs = processes.last_lines([broker.folder / "format.log"])
                raise UserError(f"Could not format Kafka's folder {broker.folder}.{logs}")
    finally:
        processes.stop([identity for _, identity in begun], timeout_s=1.0)


def _cluster(data_dir: Path, brokers: int) -> _Cluster:
    path = data_dir / CLUSTER_FILE
    if not path.exists():
        ports = free_ports(2 * brokers)
        nodes = tuple(
            BrokerPorts(node_id=i + 1, port=ports[2 * i], controller_port=ports[2 * i + 1])
            for i in range(brokers)
        )
        cluster = _Cluster(kafka_uuid(), nodes)
        _write_cluster(data_dir, cluster)
        return cluster
    cluster = _read_cluster(path)
    if len(cluster.nodes) != brokers:
        raise UserError(
            f"{data_dir} holds a Kafka of {len(cluster.nodes)} broker(s), not {brokers}. "
            "Use another folder, or delete this one with all its data."
        )
    return cluster


def _with_free_ports(cluster: _Cluster) -> _Cluster:
    if all(is_free(port) for node in cluster.nodes for port in (node.port, node.controller_port)):
        return cluster
    ports = iter(free_ports(2 * len(cluster.nodes)))
    nodes = tuple(BrokerPorts(n.node_id, next(ports), next(ports)) for n in cluster.nodes)
    return _Cluster(cluster.cluster_id, nodes)


def _read_cluster(path: Path) -> _Cluster:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        nodes = tuple(BrokerPorts(**node) for node in raw["nodes"])
        return _Cluster(raw["cluster_id"], nodes)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as the description of an embedded Kafka. Use another folder, "
            "or delete this one with all its data."
        ) from error


def _write_cluster(data_dir: Path, cluster: _Cluster) -> None:
    write_atomically(data_dir / CLUSTER_FILE, json.dumps(asdict(cluster), indent=1) + "\n")


def _running(data_dir: Path) -> dict[int, ProcessIdentity]:
    """The brokers of this folder that live, by node id; a state file left over names none."""
    try:
        raw = json.loads((data_dir / STATE_FILE).read_text(encoding="utf-8"))
        found = {int(node): ProcessIdentity(**identity) for node, identity in raw.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        # Written atomically, so only another hand breaks it; brokers are then found by nobody.
        return {}
    return {node: identity for node, identity in found.items() if processes.is_alive(identity)}
