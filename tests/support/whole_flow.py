"""The whole flow for one test: simulator, topics and supervised workers on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.audit.report import Report
from pipeline.audit.verify import Sources, verify
from pipeline.config import Settings, load_settings
from pipeline.domain.model import Order, Payment, PaymentCommand
from pipeline.domain.records import payment_from_record
from pipeline.gateways.simulator import FaultPlan, start_simulator, stop_simulator
from pipeline.ledger.database import open_ledger
from pipeline.local import worker_specs
from pipeline.runtime.supervisor import Supervisor
from producers.command_publisher import CommandPublisher
from producers.order_publisher import OrderPublisher
from schemas.codec import default_codec
from tests.support.topics import read_all
from topics.provisioning import provision

# Everything waits briefly, so that a test sees a retry and an inquiry within seconds.
PACE: dict[str, Any] = {
    "retry_delay_ms": 300,
    # The tiers are short here, so more of them make up the patience that an installation has.
    "retry_max": 24,
    "inquiry_delay_ms": 500,
    "call_timeout_ms": 1_500,
    "gateway_grace_ms": 200,
    "send_within_ms": 20_000,
    "clock_skew_ms": 100,
    "metrics_port": 0,
}


@dataclass
class WholeFlow:
    """A context manager. ``workers`` by stage; ``environment`` is added to every worker's."""

    bootstrap: str
    prefix: str
    folder: Path
    partitions: int = 4
    faults: FaultPlan | str = "none"
    workers: Mapping[str, int] = field(
        default_factory=lambda: {"payments": 1, "gateway": 1, "ledger": 1}
    )
    environment: Mapping[str, str] = field(default_factory=dict)
    settings_given: Mapping[str, Any] = field(default_factory=dict)
    ledger_url: str = ""
    # Called whenever the workers are looked at, several times a second.
    meanwhile: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self.simulator = start_simulator(self.folder / "books.sqlite", faults=self.faults)
        try:
            self.settings: Settings = load_settings(
                **{
                    **PACE,
                    "bootstrap_servers": self.bootstrap,
                    "topic_prefix": self.prefix,
                    "partitions": self.partitions,
                    "state_dir": self.folder / "state",
                    "gateway_url": self.simulator.url,
                    "ledger_url": self.ledger_url or f"sqlite:///{self.folder / 'ledger.sqlite'}",
                    **self.settings_given,
                }
            )
            provision(self.bootstrap, self.settings.catalogue())
            # As `paystream up` does: an audit finds the books before their worker runs.
            open_ledger(self.settings.books_url()).dispose()
            self.supervisor = Supervisor(
                worker_specs(
                    self.settings,
                    self.workers,
                    node_id="test",
                    log_file=self.folder / "workers.log",
                ),
                environment=self.environment,
                restart_pause_s_max=0.2,
            )
            self.supervisor.start()
        except BaseException:
            stop_simulator(self.simulator)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.supervisor.stop()
        stop_simulator(self.simulator)

    def tick(self) -> None:
        """Start again what has died, and do what is to be done meanwhile."""
        self.supervisor.tick()
        self.meanwhile()

    def publish(self, orders: Iterable[Order], *, per_s: float | None = None) -> None:
        """Publish, at a steady rate if one is given, while the workers are kept alive."""
        topic = self.settings.catalogue().name("orders")
        began_s = time.monotonic()
        with OrderPublisher(self.bootstrap, topic=topic, config={"log_level": 0}) as publisher:
            for index, order in enumerate(orders):
                publisher.publish(order)
                if per_s is not None and index % 20 == 0:
                    self.tick()
                    ahead_s = began_s + index / per_s - time.monotonic()
                    if ahead_s > 0:
                        time.sleep(ahead_s)

    def ask(self, *commands: PaymentCommand) -> None:
        """Publish commands."""
        topic = self.settings.catalogue().name("payment-commands")
        with CommandPublisher(self.bootstrap, topic=topic, config={"log_level": 0}) as publisher:
            for command in commands:
                publisher.publish(command)

    def keep_until(
        self,
        done: Callable[[], bool],
        timeout_s: float,
        what: str,
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """Keep the workers alive until a condition holds; each change of ``progress`` begins the
        time anew, so that a slow machine is no failure."""
        deadline, last = time.monotonic() + timeout_s, progress()
        while not done():
            self.tick()
            if (now := progress()) != last:
                deadline, last = time.monotonic() + timeout_s, now
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {timeout_s:.0f} s\n{self.log_tail()}")
            time.sleep(0.1)

    def log_tail(self) -> str:
        """The end of what the workers have said."""
        log = self.folder / "workers.log"
        return log.read_text(errors="replace")[-4_000:] if log.is_file() else ""

    def verify(self) -> Report:
        return verify(
            Sources(
                self.bootstrap,
                self.prefix,
                ledger_url=self.settings.books_url(),
                gateway_urls=self.settings.gateway_urls(),
            )
        )

    def payments(self) -> dict[str, Payment]:
        """Every payment as it is now, by ``merchant:order``: the newest of the table's topic."""
        decode = default_codec().decoder("payment")
        messages = read_all(self.bootstrap, self.settings.catalogue().name("payments"))
        found = (payment_from_record(decode(message.value() or b"")) for message in messages)
        return {f"{each.merchant_id}:{each.order_id}": each for each in found}

    def settle(self, still_s: float) -> Report:
        """The audit's report once nothing is on its way any more.

        AssertionError, with what is still on its way, when the audit has seen nothing move for
        ``still_s``: however slow a machine is, a flow that moves may take its time.
        """
        moved_s = time.monotonic()
        last: dict[str, Any] | None = None
        while True:
            self.supervisor.tick()
            report = self.verify()
            if report.exit_code != 2:
                return report
            # Without what the audit says of itself: its own time is different each time.
            now = {name: said for name, said in report.summary.items() if name != "audit"}
            if now != last:
                moved_s, last = time.monotonic(), now
            elif time.monotonic() - moved_s > still_s:
                pending = "\n".join(str(finding) for finding in report.findings)
                raise AssertionError(
                    f"nothing has moved for {still_s:.0f} s, and this is still on its way:\n"
                    f"{pending}\n{report.summary}\n{self.log_tail()}"
                )
            for _ in range(10):
                self.supervisor.tick()
                time.sleep(0.1)


def orders(count: int, *, token: str = "tok_card", merchant: str = "shop") -> list[Order]:
    """Distinct orders of GBP 1.00 upwards."""
    now_ms = int(time.time() * 1000)
    return [
        Order(
            merchant_id=merchant,
            order_id=f"o-{index}",
            amount_minor=100 + index,
            currency="GBP",
            instrument_token=token,
            business_date="2026-11-01",
            submitted_at_ms=now_ms,
        )
        for index in range(count)
    ]
