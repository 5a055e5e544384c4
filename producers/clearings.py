"""Publishing what reconciliation says: rows of reports, breaks, a row's word to its payment, and
what a person has given back.

Each at least once, delivered before anything is noted of it. A row is known by its key, a break by
its version, a word by the attempt it is about, an order by its charge: none has a second effect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from msgspec.structs import replace

from pipeline.domain.breaks import ReconciliationBreak
from pipeline.domain.clearing import CAPTURE_FAILED, Clearing, clearing_key
from pipeline.domain.disputes import INQUIRY, OPENED, WON
from pipeline.domain.ids import payment_id, unasked_order_id
from pipeline.domain.keys import record_key
from pipeline.domain.matching import ReportedSide
from pipeline.domain.model import GatewayNotification, PaymentCommand
from pipeline.domain.posting import DISPUTE, DISPUTE_FEE, REFUND_FAILED, REVERSAL
from pipeline.domain.records import to_record
from pipeline.domain.unasked_charges import NO_MERCHANT
from pipeline.errors import UserError
from producers.publisher import check_topic, producer_config
from schemas.codec import Codec
from topics.catalogue import Catalogue

DELIVERY_TIMEOUT_S = 120.0
CHECK_TIMEOUT_S = 10.0
ROOM_SLICE_S = 0.1

Message = tuple[str, bytes, bytes]
_NONE: Final[Mapping[str, str]] = {}
_OF_DISPUTES = frozenset({DISPUTE, DISPUTE_FEE, REVERSAL})


class ReconciliationPublisher:
    """One producer for all their topics. UserError when something was not certainly delivered."""

    def __init__(self, bootstrap_servers: str, catalogue: Catalogue, codec: Codec) -> None:
        self._servers = bootstrap_servers
        self._catalogue = catalogue
        self._codec = codec
        self._producer = Producer(
            {
                **producer_config(bootstrap_servers, "paystream.reconciliation"),
                "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
                "on_delivery": self._on_failure,
                "log_level": 0,
            }
        )
        self._failed: list[str] = []

    def rows(self, rows: Sequence[Clearing]) -> None:
        encode = self._codec.encoder("clearing")
        topic = self._checked("clearings")
        self._send(
            (topic, clearing_key(r.gateway, r.file_id, r.row_number).encode(), encode(to_record(r)))
            for r in rows
        )

    def breaks(self, found: Sequence[ReconciliationBreak]) -> None:
        encode = self._codec.encoder("reconciliation-break")
        topic = self._checked("reconciliation-breaks")
        self._send((topic, each.break_id.encode(), encode(to_record(each))) for each in found)

    def words(self, words: Iterable[GatewayNotification]) -> None:
        """Tell payments what rows say of them, as their gateway's notice would have."""
        encode = self._codec.encoder("gateway-notification")
        topic = self._checked("gateway-notifications")
        self._send(
            (topic, record_key(word.merchant_id, word.order_id), encode(to_record(word)))
            for word in words
        )

    def commands(self, commands: Iterable[PaymentCommand]) -> None:
        """Ask the flow to give back charges that nobody asked for."""
        encode = self._codec.encoder("payment-command")
        topic = self._checked("payment-commands")
        self._send(
            (topic, record_key(each.merchant_id, each.order_id), encode(to_record(each)))
            for each in commands
        )

    def _checked(self, role: str) -> str:
        topic = self._catalogue.name(role)
        check_topic(self._producer, self._servers, topic, CHECK_TIMEOUT_S)
        return topic

    def _send(self, messages: Iterable[Message]) -> None:
        for topic, key, value in messages:
            while True:
                try:
                    self._producer.produce(topic, value=value, key=key)
                    break
                except BufferError:
                    self._producer.poll(ROOM_SLICE_S)
                except KafkaException as error:
                    raise self._not_delivered(error.args[0].str()) from error
            self._producer.poll(0)
        left = self._producer.flush(DELIVERY_TIMEOUT_S + 10)
        if self._failed or left:
            raise self._not_delivered(self._failed[0] if self._failed else f"{left} waiting")

    def _on_failure(self, error: KafkaError | None, _message: Any) -> None:
        if error is not None:
            self._failed.append(error.str())

    def _not_delivered(self, why: str) -> UserError:
        return UserError(
            f"not everything was certainly delivered to {self._servers} ({why}): run the same "
            "command again, which is safe."
        )


def words_of(
    rows: Iterable[ReportedSide],
    now_ms: int,
    unasked: Mapping[str, str] = _NONE,
    charged_twice: Collection[tuple[str, str]] = (),
) -> list[tuple[GatewayNotification, tuple[ReportedSide, ...]]]:
    """What rows say to their payments, each with the rows that say it: one for an operation, those
    of a dispute together. Rows that name no payment of ours say nothing. ``unasked``: by their ids,
    the orders of payments of charges nobody asked for. Rows of such a refund may repeat the order
    that its charge was made with; those of such a charge, given back already, tell no other payment
    of it, which would give it back again. ``charged_twice``: gateways and payments of which there
    are two charges. Their disputes' rows do not say which of them, so they say nothing.

    Who takes a word for news decides for himself: the same evidence again changes nothing.
    """
    told = []
    given_back = frozenset(unasked.values())
    disputes: dict[tuple[str, str, str], list[ReportedSide]] = {}
    for row in rows:
        if row.payment_id in unasked:
            row = replace(row, merchant_id=NO_MERCHANT, order_id=unasked[row.payment_id])
        elif unasked_order_id(row.gateway, row.gateway_reference) in given_back:
            continue
        if not (row.merchant_id and row.order_id) or row.payment_id != payment_id(
            row.merchant_id, row.order_id
        ):
            continue
        if row.operation_id and row.kind != CAPTURE_FAILED:
            told.append((_of_operation(row, now_ms), (row,)))
        elif row.kind in _OF_DISPUTES and (row.gateway, row.payment_id) not in charged_twice:
            whose = row.gateway, row.gateway_reference, row.payment_id
            disputes.setdefault(whose, []).append(row)
    return [*told, *((_of_dispute(each, now_ms), tuple(each)) for each in disputes.values())]


def _of_dispute(rows: Sequence[ReportedSide], now_ms: int) -> GatewayNotification:
    """What was taken for a dispute is withdrawn, what was given back is won; a fee alone says no
    more than that there is a dispute.

    A row does not say which of the dispute's events it is, so the word has no number: where the
    gateway has told and numbered its events, those hold.
    """
    taken, given, fees = (
        sum(abs(row.amount_minor) for row in rows if row.kind == kind)
        for kind in (DISPUTE, REVERSAL, DISPUTE_FEE)
    )
    state = WON if given else OPENED if taken else INQUIRY
    first = rows[0]
    return GatewayNotification(
        merchant_id=first.merchant_id,
        order_id=first.order_id,
        payment_id=first.payment_id,
        notification_id=_named(first),
        gateway=first.gateway,
        type="dispute",
        dispute_id=first.gateway_reference,
        dispute_state=state,
        amount_minor=taken or given,
        fee_minor=fees,
        currency=first.currency,
        received_at_ms=now_ms,
    )


def _named(row: ReportedSide) -> str:
    return f"report:{clearing_key(row.gateway, row.file_id, row.row_number)}"


def _of_operation(row: ReportedSide, now_ms: int) -> GatewayNotification:
    """A charge that a report lists has succeeded."""
    return GatewayNotification(
        merchant_id=row.merchant_id,
        order_id=row.order_id,
        payment_id=row.payment_id,
        notification_id=_named(row),
        gateway=row.gateway,
        type="operation",
        operation_id=row.operation_id,
        attempt=row.attempt,
        kind=row.operation_kind,
        outcome="failed" if row.kind == REFUND_FAILED else "succeeded",
        gateway_reference=row.gateway_reference,
        amount_minor=abs(row.amount_minor),
        currency=row.currency,
        received_at_ms=now_ms,
    )
