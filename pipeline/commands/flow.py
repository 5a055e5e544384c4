"""``paystream up``, ``run`` and ``simulator``: the flow as processes."""

from __future__ import annotations

import logging
import shlex
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.broker_addresses import broker_addresses
from pipeline.commands.stopping import StopSignals
from pipeline.errors import UserError
from pipeline.kafka_access import reaching

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.local import LocalFlow

_log = logging.getLogger("paystream.up")

TICK_S = 0.2
# As `run` has it: stopped, but what a worker left is resumed by the next start only.
EXIT_NOT_DRAINED = UserError.exit_code


class Stage(StrEnum):
    """A stage of the flow that runs as workers."""

    payments = "payments"
    gateway = "gateway"
    risk = "risk"
    ledger = "ledger"
    webhooks = "webhooks"
    notifications = "notifications"


def up_command(
    payments_workers: Annotated[int, typer.Option(min=1, help="Payments workers.")] = 1,
    gateway_workers: Annotated[int, typer.Option(min=1, help="Gateway workers.")] = 1,
    faults: Annotated[
        str, typer.Option(help="Faults of the simulator: none, default, or a JSON file.")
    ] = "none",
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics; 0 takes a free one.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where brokers' data, caches and books are kept.")
    ] = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="Of every topic.")] = None,
    gateways: Annotated[
        str, typer.Option(help="Simulated gateways to run: names with commas between, or all.")
    ] = "simulator",
) -> None:
    """Run everything on this machine until Ctrl-C: Kafka, simulator, workers, ledger.

    Data is kept in the state directory and found again by the next `up`. Other commands on this
    machine find the running flow by themselves.

    Examples:

    \b
      paystream up

    \b
      paystream up --payments-workers 2 --faults default --metrics-port 0

    \b
      paystream up --gateways simulator,northbank
    """
    from pipeline.config import load_settings
    from pipeline.embedded.cache import make_folder
    from pipeline.gateways.simulator import FaultPlan
    from pipeline.local import LocalFlow, require_free_port, with_kept_partitions

    settings = load_settings(metrics_port=metrics_port, state_dir=state_dir, partitions=partitions)
    # What is wrong with the options is said at once, not after ten seconds of starting.
    FaultPlan.named(faults)
    names = _gateway_names(gateways)
    settings.risk_rules_text()
    if settings.merchant_endpoints:
        _require_endpoints(settings)
    make_folder(settings.state_dir, "state")
    # A flow that runs over this directory has its port as well: that is told, and not the port.
    with StopSignals() as stop, _OnlyOne(settings.state_dir):
        require_free_port(settings.metrics_host, settings.metrics_port)
        settings = with_kept_partitions(settings)
        if "webhook_port" not in settings.model_fields_set:
            # Two of these may run side by side; the simulators are told.
            settings = settings.model_copy(update={"webhook_port": 0})
        log_file = settings.state_dir / "workers.log"
        _log_beside_the_workers(settings.log_level, log_file)
        flow = LocalFlow(
            settings,
            {
                "payments": payments_workers,
                "gateway": gateway_workers,
                "ledger": 1,
                # Rules that count, and attempts with a card, need the stage that counts.
                **({"risk": 1} if settings.counts else {}),
                "webhooks": 1,
                **({"notifications": 1} if settings.merchant_endpoints else {}),
            },
            faults=faults,
            gateways=names,
            log_file=log_file,
            say=_say,
            announce=True,
        )
        with flow:
            _tell_where(flow, log_file)
            stop.ready()
            while not stop.asked.wait(TICK_S):
                flow.tick()
            typer.echo("draining")
    if not flow.drained:
        raise typer.Exit(EXIT_NOT_DRAINED)
    typer.echo("stopped")


def _log_beside_the_workers(level: str, log_file: Path) -> None:
    """What this process says of them stands in their log; a terminal shows what is not well."""
    from pipeline.runtime.worker_spec import configure_logging

    configure_logging(level, str(log_file))
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger().addHandler(shown)


def _tell_where(flow: LocalFlow, log_file: Path) -> None:
    """Each address of a flow that runs, and what to do with it."""
    from pipeline.config import state_home

    s, running = flow.settings, flow.running
    typer.echo(f"broker     {s.bootstrap_servers}")
    for name, handle in flow.simulators.items():
        typer.echo(f"{name:<10} {handle.url}")
    typer.echo(f"webhooks   {flow.webhook_url}/webhooks/GATEWAY")
    typer.echo(f"database   {s.books_url()}")
    typer.echo(f"metrics    {running.metrics.url if running else '-'}")
    typer.echo(f"log        {log_file}")
    typer.echo("Ctrl-C drains and stops everything. In another terminal:")
    if s.state_dir != state_home():
        typer.echo(f"  export PAYSTREAM_STATE_DIR={shlex.quote(str(s.state_dir))}")
    typer.echo(
        "  paystream order submit --merchant shop-a --order-id 1001 --amount 12.50 "
        "--currency GBP --token tok_ok"
    )


def run_command(
    stage: Annotated[Stage, typer.Argument(help="Which stage to run.")],
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(envvar="PAYSTREAM_BOOTSTRAP_SERVERS", help="Kafka brokers, host:port[,...]."),
    ] = None,
    node_id: Annotated[
        str | None,
        typer.Option(
            envvar="PAYSTREAM_NODE_ID",
            help="Cluster-unique name of this machine; part of every transactional id.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics; 0 takes a free one.")
    ] = None,
) -> None:
    """Run one stage's workers against any cluster, until SIGTERM or Ctrl-C.

    The topics must be there: `paystream topics apply`. Workers of one stage share its partitions,
    on as many machines as you like; each machine needs its own --node-id.

    Examples:

    \b
      paystream run payments --workers 4 --bootstrap-servers kafka-1:9092 --node-id app-7

    \b
      paystream run ledger --node-id books-1
    """
    from confluent_kafka.admin import AdminClient

    from pipeline.config import load_settings
    from pipeline.ledger.database import open_ledger
    from pipeline.local import Workers, require_free_place, require_free_port
    from pipeline.runtime.cluster import require_reachable
    from pipeline.runtime.lane_counts import require_co_partitioned
    from pipeline.runtime.worker_spec import configure_logging

    settings = load_settings(
        bootstrap_servers=bootstrap_servers, node_id=node_id, metrics_port=metrics_port
    )
    if stage is Stage.webhooks and workers != 1:
        raise UserError(
            "webhooks have one port on each machine, so one worker; leave --workers out."
        )
    if stage is Stage.notifications:
        _require_endpoints(settings)
    node = _node_id(settings.node_id, settings.bootstrap_servers)
    require_free_place(settings, stage.value)
    require_free_port(settings.metrics_host, settings.metrics_port)
    with StopSignals() as stop:
        configure_logging(settings.log_level)
        admin = AdminClient({**reaching(settings.bootstrap_servers), "log_level": 0})
        require_reachable(admin, settings.bootstrap_servers)
        require_co_partitioned(admin, settings.catalogue(), settings.bootstrap_servers)
        group = Workers(settings, {stage.value: workers}, node_id=node)
        try:
            if stage is Stage.ledger:
                # Told here: its workers wait for a database that is away.
                open_ledger(settings.books_url()).dispose()
            group.start()
            typer.echo(
                f"{workers} {stage.value} workers as node {node}; metrics {group.metrics.url}"
            )
            stop.ready()
            while not stop.asked.wait(TICK_S):
                group.supervisor.tick()
        finally:
            clean = group.stop()
    if not clean:
        raise UserError("not every worker drained in time; what it left is taken over or resumed.")


def simulator_command(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8400,
    host: Annotated[str, typer.Option(help="Where to listen; loopback by default.")] = "127.0.0.1",
    books: Annotated[
        Path | None, typer.Option(help="SQLite file of its books; default in the state directory.")
    ] = None,
    faults: Annotated[str, typer.Option(help="none, default, or a JSON file.")] = "none",
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 7,
    gateway: Annotated[
        str, typer.Option(help="Which gateway it is: simulator, northbank, pacific or legacy.")
    ] = "simulator",
    notice_url: Annotated[
        str | None,
        typer.Option(
            help="Where its webhooks go, signed with SIMULATOR_NOTICE_SECRETS; default: nowhere."
        ),
    ] = None,
) -> None:
    """Run a simulated gateway by itself: a real HTTP server with durable books.

    Example:

    \b
      paystream simulator --port 8400 --faults default

    \b
      paystream simulator --gateway northbank --port 8401
    """
    import asyncio

    from pipeline.config import load_settings
    from pipeline.embedded.cache import make_folder
    from pipeline.gateways.simulator.faults import FaultPlan
    from pipeline.gateways.simulator.personality import personality
    from pipeline.gateways.simulator.server import SimulatorSettings, notice_secrets, serve
    from pipeline.local import books_file

    plan = FaultPlan.named(faults)
    personality(gateway)
    path = books or load_settings().state_dir / books_file(gateway)
    make_folder(path.parent, "books")

    def serving(port: int) -> None:
        typer.echo(f"{gateway} on http://{host}:{port}, books in {path}; Ctrl-C stops it")

    settings = SimulatorSettings(
        books=path,
        plan=plan,
        seed=seed,
        port=port,
        host=host,
        gateway=gateway,
        notice_url=notice_url,
        notice_secrets=notice_secrets(),
    )
    asyncio.run(serve(settings, on_serving=serving))


def _require_endpoints(settings: Settings) -> None:
    """UserError for a file of endpoints that cannot be used, or that nobody named."""
    from consumers.notifier.endpoints import EndpointFile

    if not settings.merchant_endpoints:
        raise UserError(
            "notifications need the merchants' endpoints: name their file in "
            "PAYSTREAM_MERCHANT_ENDPOINTS (see docs/notifications.md)."
        )
    EndpointFile(
        Path(settings.merchant_endpoints).expanduser(),
        allow_http=settings.callback_allow_http,
        allow_private=settings.callback_allow_private,
    ).load()


def _gateway_names(given: str) -> tuple[str, ...]:
    """The simulated gateways that were asked for, each once; UserError names the choices."""
    from pipeline.gateways.simulator.personality import PERSONALITIES, personality

    if given == "all":
        return tuple(PERSONALITIES)
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if not names:
        raise UserError("no gateway was named; leave --gateways out, or name one.")
    for name in names:
        personality(name)
    return names


def _node_id(given: str, bootstrap_servers: str) -> str:
    """The node id, which only a cluster on this very machine may do without."""
    if given:
        return given
    try:
        hosts = {host for host, _ in broker_addresses(bootstrap_servers)}
    except ValueError as error:
        raise UserError(f"{bootstrap_servers} names no brokers as host:port ({error}).") from error
    if hosts and hosts <= {"127.0.0.1", "localhost", "::1"}:
        return "local"
    raise UserError(
        "a cluster that other machines can reach needs --node-id (or PAYSTREAM_NODE_ID): a name "
        "that no other machine uses, the same after a restart. Two machines under one name would "
        "fence each other's producers."
    )


def _say(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}")
    _log.info("%s", line)


class _OnlyOne:
    """Holds the state directory for one `up` at a time."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "up.lock"

    def __enter__(self) -> None:
        import fcntl

        self._file = self._path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another `paystream up` runs over {self._path.parent}. Stop it, or choose another "
                "--state-dir."
            ) from error

    def __exit__(self, *_: object) -> None:
        self._file.close()
