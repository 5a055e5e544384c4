"""Everything on one machine: broker, topics, simulator, workers, metrics; started and stopped.

``paystream up`` keeps it running over a directory that lasts, the demo runs it over one that goes
with it. Both leave no process behind, however they end.
"""

from __future__ import annotations

import base64
import fcntl
import json
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.config import RUNNING_FILE, Settings
from pipeline.embedded.cache import make_folder, write_atomically
from pipeline.errors import UserError
from pipeline.kafka_access import use_access
from pipeline.runtime.worker_spec import WorkerSpec

# What ends again this soon after it was started again will not stay.
STEADY_S = 30.0
# A worker starts and joins in two to five seconds; what takes longer is not waited for.
JOIN_S_MAX = 60.0

# Transactions that hung, told one by one.
HANGING_SHOWN = 5

Say = Callable[[str], None]

STAGES = ("payments", "gateway", "ledger")


def books_file(gateway: str) -> str:
    """The file of a simulated gateway's books in the state directory."""
    return "gateway-books.sqlite" if gateway == "simulator" else f"gateway-books-{gateway}.sqlite"


def simulated(simulators: Mapping[str, Any], notice_secret: str = "") -> dict[str, Any]:
    """The setting ``gateways`` for running simulators: what their documents say of them, and the
    secret of their notices for those that send any."""
    from pipeline.gateways.configured import adapters
    from pipeline.gateways.simulator.personality import PERSONALITIES

    entries: dict[str, Any] = {}
    for place, (name, handle) in enumerate(simulators.items()):
        own = PERSONALITIES[name]
        fee = {"basis_points": own.fee_bps, "fixed_minor": own.fee_fixed_minor}
        entries[name] = {
            "url": handle.url,
            "adapter": name,
            "priority": 100 + place,
            "key_retention_ms": own.key_retention_ms,
            "authorization_ms": own.authorization_ms,
            "idempotent": own.idempotent,
            "fees": dict.fromkeys(sorted(own.currencies or ("GBP", "EUR", "USD")), fee),
        }
        if own.currencies is not None:
            entries[name]["currencies"] = sorted(own.currencies)
        if notice_secret and adapters()[name].sends_notices:
            entries[name]["notice_secrets"] = [notice_secret]
    return entries


def worker_specs(
    settings: Settings, workers: Mapping[str, int], *, node_id: str, log_file: Path | None = None
) -> list[WorkerSpec]:
    """One specification for each worker slot of this machine."""
    options: dict[str, Any] = settings.worker_options()
    if "payments" in workers:
        options["risk_rules"] = settings.risk_rules_text()
    if log_file is not None:
        options["log_file"] = str(log_file)
    return [
        WorkerSpec(
            stage=stage,
            node_id=node_id,
            slot=slot,
            bootstrap_servers=settings.bootstrap_servers,
            topics=settings.topic_settings(),
            state_dir=settings.state_dir,
            options=options,
        )
        for stage, count in workers.items()
        for slot in range(count)
    ]


def require_free_port(host: str, port: int) -> None:
    """Refuse a metrics port that somebody else listens on before anything is started."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server will: a port whose last connections have only just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"the metrics cannot be served on {host}:{port} ({error.strerror}). Choose another "
                "port with --metrics-port or PAYSTREAM_METRICS_PORT; 0 takes a free one."
            ) from error


class Workers:
    """Supervised workers with their metrics on one port.

    One at a time for each stage and state directory: two would fence each other's producers and
    want the same caches.
    """

    def __init__(
        self,
        settings: Settings,
        workers: Mapping[str, int],
        *,
        node_id: str,
        log_file: Path | None = None,
    ) -> None:
        from pipeline.observability.exposition import Exposition, LagCollector, RestartCollector
        from pipeline.runtime.lag import GroupLag
        from pipeline.runtime.supervisor import Supervisor

        catalogue = settings.catalogue()
        self._locks = ExitStack()
        try:
            for stage in workers:
                self._locks.enter_context(_held(settings, stage))
        except BaseException:
            self._locks.close()
            raise
        # In the state directory and not a temporary one, which a SIGKILL would leave behind.
        self._metrics_dir = (
            settings.state_dir / f"{settings.topic_prefix}metrics-{'-'.join(workers)}"
        )
        shutil.rmtree(self._metrics_dir, ignore_errors=True)
        self._metrics_dir.mkdir()
        self.supervisor = Supervisor(
            worker_specs(settings, workers, node_id=node_id, log_file=log_file),
            metrics_dir=self._metrics_dir,
        )
        self._lags = {
            stage: GroupLag(
                settings.bootstrap_servers,
                catalogue.group(stage),
                {spec.name: spec.partitions for spec in catalogue.inputs(stage)},
            )
            for stage in workers
            if catalogue.inputs(stage)
        }
        self._lag_collector = LagCollector(
            {stage: lag.places for stage, lag in self._lags.items()},
            delayed=[t.name for t in catalogue.topics.values() if t.delay_ms is not None],
        )
        try:
            self.metrics = Exposition(
                self.supervisor.metrics_dir,
                host=settings.metrics_host,
                port=settings.metrics_port,
                collectors=(
                    self._lag_collector,
                    RestartCollector(lambda: self.supervisor.restarts),
                ),
            )
        except BaseException:
            self._lag_collector.close()
            self.supervisor.stop()
            self._let_go()
            raise

    def start(self) -> None:
        self.supervisor.start()

    def stop(self) -> bool:
        """Drain; True when every worker did in time."""
        clean = self.supervisor.stop()
        self.metrics.close()
        self._lag_collector.close()
        for lag in self._lags.values():
            lag.close()
        self._let_go()
        return clean

    def _let_go(self) -> None:
        shutil.rmtree(self._metrics_dir, ignore_errors=True)
        self._locks.close()


@contextmanager
def _held(settings: Settings, stage: str) -> Iterator[None]:
    """The stage's place in this state directory; it goes with the process, however that ends."""
    make_folder(settings.state_dir, "state")
    path = settings.state_dir / f"{settings.topic_prefix}{stage}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{stage} workers run over {settings.state_dir} already. For more of them stop "
                "those and start them again with more, or give these a PAYSTREAM_STATE_DIR and a "
                "--node-id of their own."
            ) from error
        yield


def require_free_place(settings: Settings, stage: str) -> None:
    """Refuse a stage whose workers run over this state directory, before anything is started."""
    with _held(settings, stage):
        pass


def with_kept_partitions(settings: Settings) -> Settings:
    """The settings with the partition count that the topics of this state directory were made with.

    UserError when another one was asked for: counts never change on a live flow.
    """
    try:
        kept = int(_partitions_file(settings).read_text())
    except (OSError, ValueError):
        return settings
    if "partitions" not in settings.model_fields_set:
        return settings.model_copy(update={"partitions": kept})
    if settings.partitions != kept:
        raise UserError(
            f"the topics in {settings.state_dir} have {kept} partitions, not "
            f"{settings.partitions}, and keep them: leave --partitions (PAYSTREAM_PARTITIONS) "
            "out, or choose another --state-dir."
        )
    return settings


def _partitions_file(settings: Settings) -> Path:
    """Beside the topics' data, so that it goes with them."""
    return settings.state_dir / "kafka" / f"{settings.topic_prefix}partitions"


@dataclass
class LocalFlow:
    """The whole flow on this machine, as a context manager.

    ``settings`` afterwards hold the real addresses. ``faults`` is a plan's name or file for the
    simulator, or for each of several ``gateways``, which then replace the configured ones.
    ``metrics_port`` and the simulator's port are taken from the settings; 0 means free.
    """

    settings: Settings
    workers: Mapping[str, int]
    faults: str = "none"
    seed: int = 7
    simulator_port: int = 0
    # Which simulated gateways run; the first one has ``simulator_port``.
    gateways: tuple[str, ...] = ("simulator",)
    log_file: Path | None = None
    say: Say = print
    announce: bool = False
    jvm_flags: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    kafka: Any = None
    # The first of ``simulators``, which are by name.
    simulator: Any = None
    simulators: dict[str, Any] = field(default_factory=dict)
    running: Workers | None = None
    # Whether every worker drained in time when the flow was closed.
    drained: bool = True
    _restarted_s: dict[str, float] = field(default_factory=dict)
    # Of the webhooks, for this run alone; empty where none are sent.
    _notice_secret: str = ""
    # What starts beside the broker; a flow that is closed in the middle of it waits until it has.
    _beside: ThreadPoolExecutor | None = None

    def _start(self) -> None:
        from pipeline.embedded.kafka import start_kafka
        from pipeline.embedded.ports import free_ports
        from pipeline.hanging.transaction_log import TOPIC as TRANSACTION_LOG
        from pipeline.ledger.database import open_ledger
        from topics.provisioning import provision

        s = self.settings
        make_folder(s.state_dir, "state")
        had_transactions = any((s.state_dir / "kafka").glob(f"broker-*/log/{TRANSACTION_LOG}-*"))
        # This machine's own broker asks for nothing, whatever a production cluster does.
        s = s.model_copy(update={"kafka": {}})
        use_access({})
        if "webhooks" in self.workers:
            s = s.model_copy(update={"webhook_port": s.webhook_port or free_ports(1)[0]})
            self._notice_secret = f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
        self.settings = s
        # Neither simulators nor books need the broker, whose start is mostly waited for.
        beside = self._beside = ThreadPoolExecutor(2)
        simulators = beside.submit(self._start_simulators)
        # There before the first worker, so that an audit finds it from the beginning; and a
        # database that cannot be had is told here.
        books = beside.submit(lambda: open_ledger(s.books_url()).dispose())
        self.kafka = start_kafka(
            s.state_dir / "kafka",
            heap_mb=s.broker_heap_mb,
            on_progress=self.say,
            die_with_parent=True,
            jvm_flags=self.jvm_flags,
            # The first look for timed-out transactions had better not come while a broker that
            # was killed still starts: their markers would be lost (see pipeline/hanging), to be
            # written afterwards. Nor much later: for offsets that such a transaction holds up,
            # a worker waits 30 s.
            extra_config={"transaction.abort.timed.out.transaction.cleanup.interval.ms": "10000"},
        )
        simulators.result()
        books.result()
        if self.kafka.started_here and had_transactions:
            # Before a worker: its next transaction would end what hangs from before like itself.
            self._end_what_hangs()
        plain = self.gateways == ("simulator",) and "webhooks" not in self.workers
        several = {} if plain else simulated(self.simulators, self._notice_secret)
        self.settings = s = s.model_copy(
            update={
                # There is one broker, whatever a production cluster is told.
                "replication_factor": 1,
                "min_insync_replicas": 1,
                "bootstrap_servers": self.kafka.bootstrap_servers,
                "gateway_url": self.simulator.url,
                "gateways": several,
            }
        )
        catalogue = s.catalogue()
        self.say(f"Applying {len(catalogue.topics)} topics of {s.partitions} partitions")
        provision(s.bootstrap_servers, catalogue)
        write_atomically(_partitions_file(s), f"{s.partitions}\n")
        self.say("Starting workers: " + ", ".join(f"{n} {st}" for st, n in self.workers.items()))
        self.running = Workers(
            s, self.workers, node_id=s.node_id or "local", log_file=self.log_file
        )
        self.running.start()
        if self.announce:
            self._announce()

    def _announce(self) -> None:
        """Let commands on this machine find the running flow without options."""
        from pipeline.embedded.processes import this_process

        running = self.running
        write_atomically(
            self.settings.state_dir / RUNNING_FILE,
            json.dumps(
                {
                    **asdict(this_process()),
                    "bootstrap_servers": self.settings.bootstrap_servers,
                    "gateway_url": self.settings.gateway_url,
                    "gateways": {
                        name: {k: v for k, v in entry.items() if k != "notice_secrets"}
                        for name, entry in self.settings.gateways.items()
                    },
                    "ledger_url": self.settings.books_url(),
                    "topic_prefix": self.settings.topic_prefix,
                    "partitions": self.settings.partitions,
                    "metrics_url": running.metrics.url if running else "",
                },
                indent=2,
            ),
        )

    def wait_until_joined(self) -> None:
        """Return once every stage's workers are members of a settled group, or after a minute."""
        from pipeline.runtime.cluster import groups_joined

        catalogue = self.settings.catalogue()
        waiting = {
            catalogue.group(stage): count
            for stage, count in self.workers.items()
            if catalogue.inputs(stage)
        }
        deadline = time.monotonic() + JOIN_S_MAX
        for missing in groups_joined(self.settings.bootstrap_servers, waiting):
            if not missing or time.monotonic() > deadline:
                return
            self.tick()
            time.sleep(0.1)

    def tick(self) -> None:
        """Keep broker, simulator and workers alive; call it a few times a second.

        UserError when one of them does not stay.
        """
        if self.running is None:
            return
        self._keep_kafka()
        self._keep_simulators()
        self.running.supervisor.tick()

    def _keep_kafka(self) -> None:
        for broker in self.kafka.brokers:
            if not broker.is_running():
                self._will_restart("Kafka", broker.log_files[1])
                # On its own ports and data: the workers find it again by themselves.
                broker.start()
                self._end_what_hangs()
                self.say("Kafka serves again")

    def _end_what_hangs(self) -> None:
        """A broker that was killed loses markers while it starts (see `pipeline/hanging`)."""
        from pipeline.hanging.repair import end_what_hangs

        try:
            repair = end_what_hangs(self.kafka.bootstrap_servers)
        except UserError as error:
            # The flow goes on as far as it can; what hangs can be ended later on.
            self.say(f"Could not look for transactions that hang: {error}")
            return
        for what, found in (
            ("ended as it was decided", repair.ended),
            ("left, see `paystream transactions list`", (*repair.left, *repair.overtaken)),
        ):
            for each in found[:HANGING_SHOWN]:
                self.say(f"A transaction hung after Kafka had ended, {what}: {each.text}")
            if len(found) > HANGING_SHOWN:
                self.say(f"and {len(found) - HANGING_SHOWN} more of these")

    def _start_simulators(self) -> None:
        for name in self.gateways:
            self._start_simulator(name, self.simulator_port if not self.simulators else 0)

    def _start_simulator(self, name: str, port: int) -> None:
        from pipeline.gateways.configured import adapters
        from pipeline.gateways.simulator import start_simulator

        s = self.settings
        secret = self._notice_secret if adapters()[name].sends_notices else ""
        self.simulators[name] = start_simulator(
            s.state_dir / books_file(name),
            faults=self.faults,
            seed=self.seed,
            port=port,
            gateway=name,
            notice_url=f"{self.webhook_url}/webhooks/{name}" if secret else None,
            notice_secrets=[secret] if secret else (),
        )
        self.simulator = self.simulators[self.gateways[0]]

    @property
    def webhook_url(self) -> str:
        """Where the gateways' webhooks are heard, if they are."""
        return f"http://{self.settings.webhook_host}:{self.settings.webhook_port}"

    def _keep_simulators(self) -> None:
        for name, before in list(self.simulators.items()):
            if before.process.poll() is None:
                continue
            what = "The simulator" if name == "simulator" else f"The simulator of {name}"
            self._will_restart(what, before.books.with_name(f"{before.books.name}.log"))
            # Its books are durable, and the gateway workers keep its address.
            self._start_simulator(name, before.port)
            self.say(f"{what} answers again")

    def _will_restart(self, what: str, log: Path) -> None:
        now_s = time.monotonic()
        if now_s - self._restarted_s.get(what, -STEADY_S) < STEADY_S:
            raise UserError(f"{what} ended again soon after it was started again; see {log}.")
        self._restarted_s[what] = now_s
        self.say(f"{what} has ended by itself; starting it again")

    def close(self) -> bool:
        """Drain the workers, then stop simulator and broker; safe to repeat."""
        from pipeline.embedded.kafka import stop_kafka
        from pipeline.gateways.simulator import stop_simulator

        if self.announce:
            (self.settings.state_dir / RUNNING_FILE).unlink(missing_ok=True)
        if self._beside is not None:
            self._beside.shutdown(cancel_futures=True)
        clean = True
        if self.running is not None:
            clean = self.drained = self.running.stop()
            self.running = None
            if not clean:
                self.say("Not every worker drained in time; the next start resumes what it left")
        # All at once: each takes a moment to end.
        for simulator in self.simulators.values():
            simulator.process.terminate()
        if self.kafka is not None:
            if self.kafka.started_here:
                stop_kafka(self.kafka)
            self.kafka = None
        for simulator in self.simulators.values():
            stop_simulator(simulator)
        self.simulators, self.simulator = {}, None
        return clean
