"""A flow of its own for one test of the engine: topics, workers as threads, and what they wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline.domain.ids import idempotency_key, payment_id
from pipeline.domain.keys import record_key
from pipeline.domain.model import GatewayResult, Order, Payment, PaymentDue, PaymentRequest
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.records import FROM_RECORD, to_record
from pipeline.gateways.in_process import InProcessGateway
from pipeline.observability.metrics import Metrics
from pipeline.runtime.calls import Calls
from pipeline.runtime.gateway_stage import GatewayStage
from pipeline.runtime.gateway_worker import GatewayWorker
from pipeline.runtime.payments_stage import PaymentsStage
from pipeline.runtime.table_worker import TableWorker
from pipeline.runtime.worker_spec import WorkerSpec
from schemas.codec import Codec, default_codec
from tests.support.topics import read_all
from tests.support.waiting import WAIT_S, wait_until
from topics.catalogue import Catalogue, TopicSettings, build_catalogue
from topics.provisioning import provision

GATEWAY = "simulator"
LOADING_GROUPS = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}


@dataclass
class RunningWorker:
    """A worker in a thread. Leaving the ``with`` drains it and raises what it died of."""

    worker: Any
    stop: threading.Event
    error: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error

    def ended(self, timeout_s: float = 30.0) -> BaseException | None:
        """What it died of by itself, within that time; None if it had to be asked to end."""
        self.thread.join(timeout_s)
        self.end()
        return self.error

    def end(self, timeout_s: float = WAIT_S) -> None:
        self.stop.set()
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the worker did not drain"


@dataclass
class EngineFlow:
    """``Flow(...).provisioned()`` makes the topics; all names begin with the prefix."""

    bootstrap: str
    prefix: str
    state_dir: Path
    partitions: int = 2
    topic_overrides: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> TopicSettings:
        return TopicSettings(
            prefix=self.prefix, partitions=self.partitions, **dict(self.topic_overrides)
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        return build_catalogue(self.settings)

    @cached_property
    def codec(self) -> Codec:
        return default_codec()

    def provisioned(self) -> EngineFlow:
        provision(self.bootstrap, self.catalogue)
        return self

    def topic(self, role: str) -> str:
        return self.catalogue.name(role)

    # Writing ------------------------------------------------------------------------------------

    @cached_property
    def _producer(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "partitioner": "murmur2_random",
                "message.max.bytes": 32 * 1024 * 1024,
                "compression.type": "lz4",
            }
        )

    def send(
        self,
        role: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int = -1,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> tuple[int, int]:
        """Append one record as an upstream system would; its (partition, offset)."""
        where: list[tuple[int, int]] = []
        failed: list[Any] = []

        def report(error: Any, message: Message) -> None:
            if error is not None:
                failed.append(error)
            else:
                where.append((message.partition() or 0, message.offset() or 0))

        self._producer.produce(
            self.topic(role), value, key, partition, headers=[*(headers or [])], on_delivery=report
        )
        self._producer.flush(30)
        assert not failed, failed
        return where[0]

    def encode(self, name: str, noun: Any) -> bytes:
        return self.codec.encoder(name)(to_record(noun))

    def order(self, order_id: str, **more: Any) -> Order:
        fields: dict[str, Any] = {
            "merchant_id": "shop",
            "amount_minor": 1_000,
            "currency": "GBP",
            "instrument_token": "tok_ok",
            "business_date": "2027-01-15",
            "submitted_at_ms": int(time.time() * 1000),
        }
        return Order(order_id=order_id, **{**fields, **more})

    def send_order(self, order: Order, *, partition: int = -1) -> tuple[int, int]:
        key = record_key(order.merchant_id, order.order_id)
        return self.send("orders", key, self.encode("order", order), partition=partition)

    def request(self, order: Order) -> PaymentRequest:
        """The first charge of an order, as the payments stage would ask for it."""
        pid = payment_id(order.merchant_id, order.order_id)
        return PaymentRequest(
            merchant_id=order.merchant_id,
            order_id=order.order_id,
            payment_id=pid,
            operation_id=order.order_id,
            kind="charge",
            gateway=GATEWAY,
            amount_minor=order.amount_minor,
            currency=order.currency,
            instrument_token=order.instrument_token,
            idempotency_key=idempotency_key(pid, order.order_id, GATEWAY, 1),
            attempt=1,
            try_number=1,
            send_within_ms=60_000,
            ordered_at_ms=order.submitted_at_ms,
        )

    def send_request(self, order: Order) -> tuple[int, int]:
        key = record_key(order.merchant_id, order.order_id)
        return self.send(
            "payment-requests", key, self.encode("payment-request", self.request(order))
        )

    def result(self, order: Order, outcome: str = "succeeded") -> GatewayResult:
        """What the gateway stage would say about the order's first charge."""
        request = self.request(order)
        return GatewayResult(
            merchant_id=order.merchant_id,
            order_id=order.order_id,
            payment_id=request.payment_id,
            operation_id=request.operation_id,
            kind="charge",
            gateway=GATEWAY,
            attempt=1,
            try_number=1,
            outcome=outcome,
            amount_minor=order.amount_minor,
            currency=order.currency,
            observed_at_ms=int(time.time() * 1000),
            gateway_reference=f"ch_{order.order_id}",
        )

    def due(self, order: Order, purpose: str = "retry") -> PaymentDue:
        """A timer of the order's first charge."""
        request = self.request(order)
        return PaymentDue(
            merchant_id=order.merchant_id,
            order_id=order.order_id,
            payment_id=request.payment_id,
            operation_id=request.operation_id,
            attempt=1,
            try_number=1,
            purpose=purpose,
        )

    def send_result(self, order: Order, outcome: str = "succeeded") -> tuple[int, int]:
        """What the gateway stage would write about the order's first charge."""
        result = self.result(order, outcome)
        key = record_key(order.merchant_id, order.order_id)
        return self.send("gateway-results", key, self.encode("gateway-result", result))

    # Workers ------------------------------------------------------------------------------------

    def spec(self, stage: str, slot: int = 0, *, node_id: str = "n1") -> WorkerSpec:
        return WorkerSpec(
            stage, node_id, slot, self.bootstrap, self.settings, self.state_dir / node_id
        )

    def stage(self) -> PaymentsStage:
        policy = Policy(gateways=(GatewayProfile(name=GATEWAY, grace_ms=0),))
        return PaymentsStage(self.catalogue, self.codec, policy)

    def payments_worker(
        self, slot: int = 0, *, stage: PaymentsStage | None = None, **more: Any
    ) -> tuple[TableWorker[Payment], threading.Event]:
        stop = threading.Event()
        worker = TableWorker(
            self.spec("payments", slot),
            catalogue=self.catalogue,
            stage=stage or self.stage(),
            metrics=Metrics(),
            stop=stop,
            **more,
        )
        return worker, stop

    def gateway_worker(
        self,
        slot: int = 0,
        *,
        calls: Calls | None = None,
        stage: GatewayStage | None = None,
        **more: Any,
    ) -> tuple[GatewayWorker, threading.Event]:
        """Over a gateway that answers at once, unless other calls are given."""
        stop = threading.Event()
        worker = GatewayWorker(
            self.spec("gateway", slot),
            catalogue=self.catalogue,
            stage=stage or GatewayStage(self.catalogue, self.codec),
            calls=calls or Calls({GATEWAY: InProcessGateway(name=GATEWAY)}),
            metrics=Metrics(),
            stop=stop,
            **more,
        )
        return worker, stop

    @contextmanager
    def running_payments(self, slot: int = 0, **more: Any) -> Iterator[RunningWorker]:
        running = RunningWorker(*self.payments_worker(slot, **more))
        try:
            yield running
        finally:
            running.end()
        if running.error is not None:
            raise running.error

    # Reading ------------------------------------------------------------------------------------

    def messages(self, role: str, isolation: str = "read_committed") -> list[Message]:
        return read_all(self.bootstrap, self.topic(role), isolation)

    def nouns(self, role: str) -> list[Any]:
        """What is committed to a topic, decoded, in the order of partitions and offsets."""
        name = self.catalogue[role].schema
        assert name is not None
        decode, build = self.codec.decoder(name), FROM_RECORD[name]
        return [build(decode(m.value() or b"")) for m in self.messages(role)]

    def payments(self) -> dict[str, Payment]:
        """The newest snapshot of each payment by order id."""
        return {p.order_id: p for p in self.nouns("payments")}

    def committed(self, stage: str, role: str) -> dict[int, int]:
        """The stable committed offset of a group in each partition of an input."""
        with self._asking(stage, role) as committed:
            return committed()

    @contextmanager
    def _asking(self, stage: str, role: str) -> Iterator[Callable[[], dict[int, int]]]:
        """``committed``, by one client for as often as it is called."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": self.catalogue.group(stage),
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        asked = [TopicPartition(self.topic(role), p) for p in range(self.partitions)]
        try:
            yield lambda: offsets_of(consumer, asked)
        finally:
            consumer.close()

    def wait_consumed(
        self,
        ends: Mapping[int, int],
        *,
        running: RunningWorker | None = None,
        stage: str = "payments",
        role: str = "orders",
        timeout_s: float = WAIT_S,
    ) -> None:
        """Until the group's offsets reach the given ones; what the worker died of is raised."""

        with self._asking(stage, role) as committed:

            def reached() -> bool:
                if running is not None and running.error is not None:
                    raise running.error
                now = committed()
                return all(now[p] >= end for p, end in ends.items())

            what = f"{stage} consumed {role} up to {dict(ends)}"
            wait_until(reached, timeout_s, what, interval_s=0.1)


def offsets_of(consumer: Consumer, asked: list[TopicPartition]) -> dict[int, int]:
    """Committed offsets by partition; a broker that stood still a while loads its groups anew."""

    def offsets() -> list[TopicPartition] | None:
        try:
            return consumer.committed(asked, timeout=30)
        except KafkaException as error:
            if error.args[0].code() not in LOADING_GROUPS:
                raise
            return None

    found = wait_until(offsets, WAIT_S, "the group's coordinator answers", interval_s=0.1)
    return {tp.partition: tp.offset for tp in found}


def ends_of(*positions: tuple[int, int]) -> dict[int, int]:
    """The offsets to wait for, from the (partition, offset) of records sent."""
    ends: dict[int, int] = {}
    for partition, offset in positions:
        ends[partition] = max(ends.get(partition, 0), offset + 1)
    return ends


def headers_of(message: Message) -> dict[str, str]:
    """A dead letter's headers as text."""
    found: list[Any] = list(message.headers() or [])
    return {
        name: value.decode() if isinstance(value, bytes) else str(value) for name, value in found
    }


def until(predicate: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    return wait_until(predicate, timeout_s, what, interval_s=0.05)
