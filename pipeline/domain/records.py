"""Between the domain's Structs and the dicts that the Avro codec reads and writes.

A Struct and its Avro record have the same fields, so flat records convert by msgspec's C code
without a loop in Python; only the lists in Order and Payment are handled by hand. A dict with a
field missing or unknown raises TypeError: schemas and Structs have drifted apart, which is a bug.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import asdict

from pipeline.domain.breaks import ReconciliationBreak
from pipeline.domain.clearing import Clearing
from pipeline.domain.model import (
    Acknowledgement,
    Attempt,
    AttemptCap,
    AttemptMark,
    AttemptWaiting,
    AuditEntry,
    CardBar,
    CommandMark,
    ControlEntry,
    DeadLetterMarker,
    Dispute,
    GatewayNotification,
    GatewayReference,
    GatewayResult,
    LedgerEvent,
    Order,
    OrderLine,
    Payment,
    PaymentCommand,
    PaymentDue,
    PaymentEvent,
    PaymentRequest,
    RiskCheck,
    RiskCounted,
    RiskCounter,
    RiskResult,
    RiskVelocity,
    Settlement,
    VelocityBucket,
    VelocitySeries,
)
from pipeline.domain.payouts import Payout

Record = dict[str, Any]
Noun = (
    Order
    | Payment
    | PaymentRequest
    | GatewayResult
    | Settlement
    | PaymentEvent
    | PaymentDue
    | PaymentCommand
    | GatewayNotification
    | RiskCheck
    | RiskResult
    | GatewayReference
)

# Records that are keyed by something else than an order.
Other = (
    AuditEntry
    | Clearing
    | ControlEntry
    | DeadLetterMarker
    | LedgerEvent
    | Payout
    | ReconciliationBreak
    | RiskVelocity
)


def to_record(noun: Noun | Other) -> Record:
    """The Avro-ready dict of a Struct, lists and nested records included."""
    return TO_RECORD[type(noun)](noun)


def order_to_record(order: Order) -> Record:
    record = asdict(order)
    record["lines"] = [*map(asdict, order.lines)]
    return record


def payment_to_record(payment: Payment) -> Record:
    record = asdict(payment)
    record["attempts"] = [*map(asdict, payment.attempts)]
    record["commands"] = [*map(asdict, payment.commands)]
    record["command_ids"] = list(payment.command_ids)
    record["command_marks"] = [*map(asdict, payment.command_marks)]
    record["letters"] = list(payment.letters)
    record["disputes"] = [*map(asdict, payment.disputes)]
    record["unfounded_disputes"] = [*map(asdict, payment.unfounded_disputes)]
    record["risk_awaited"] = list(payment.risk_awaited)
    record["risk_counted"] = [*map(asdict, payment.risk_counted)]
    record["acknowledged"] = [*map(asdict, payment.acknowledged)]
    return record


def check_to_record(check: RiskCheck) -> Record:
    counters = [*map(asdict, check.counters)]
    return {**asdict(check), "counters": counters, "caps": [*map(asdict, check.caps)]}


def risk_result_to_record(result: RiskResult) -> Record:
    return {**asdict(result), "counted": [*map(asdict, result.counted)]}


def velocity_to_record(velocity: RiskVelocity) -> Record:
    series = [{**asdict(each), "buckets": [*map(asdict, each.buckets)]} for each in velocity.series]
    return {
        **asdict(velocity),
        "series": series,
        "recent": list(velocity.recent),
        "declined": [*map(asdict, velocity.declined)],
        "in_flight": [*map(asdict, velocity.in_flight)],
        "waiting": [*map(asdict, velocity.waiting)],
        "caps": [*map(asdict, velocity.caps)],
        "bars": [*map(asdict, velocity.bars)],
        "taken_back": [*map(asdict, velocity.taken_back)],
    }


def order_from_record(record: Record) -> Order:
    """An Order of a decoded dict, which is left as it was."""
    lines = record["lines"]
    if not lines:
        return Order(**{**record, "lines": ()})
    return Order(**{**record, "lines": tuple([OrderLine(**line) for line in lines])})


def payment_from_record(record: Record) -> Payment:
    """A Payment of a decoded dict, which is left as it was."""
    lists = {
        "attempts": tuple([Attempt(**attempt) for attempt in record["attempts"]]),
        "commands": tuple([PaymentCommand(**command) for command in record["commands"]]),
        "command_ids": tuple(record["command_ids"]),
        "command_marks": tuple([CommandMark(**mark) for mark in record["command_marks"]]),
        "letters": tuple(record["letters"]),
        "disputes": tuple([Dispute(**dispute) for dispute in record["disputes"]]),
        "unfounded_disputes": tuple([Dispute(**d) for d in record["unfounded_disputes"]]),
        "risk_awaited": tuple(record["risk_awaited"]),
        "risk_counted": tuple([RiskCounted(**counted) for counted in record["risk_counted"]]),
        "acknowledged": tuple([Acknowledgement(**each) for each in record["acknowledged"]]),
    }
    return Payment(**{**record, **lists})


def request_from_record(record: Record) -> PaymentRequest:
    return PaymentRequest(**record)


def result_from_record(record: Record) -> GatewayResult:
    return GatewayResult(**record)


def settlement_from_record(record: Record) -> Settlement:
    return Settlement(**record)


def event_from_record(record: Record) -> PaymentEvent:
    return PaymentEvent(**record)


def due_from_record(record: Record) -> PaymentDue:
    return PaymentDue(**record)


def command_from_record(record: Record) -> PaymentCommand:
    return PaymentCommand(**record)


def notification_from_record(record: Record) -> GatewayNotification:
    return GatewayNotification(**record)


def control_entry_from_record(record: Record) -> ControlEntry:
    return ControlEntry(**record)


def ledger_event_from_record(record: Record) -> LedgerEvent:
    return LedgerEvent(**record)


def check_from_record(record: Record) -> RiskCheck:
    counters = tuple([RiskCounter(**counter) for counter in record["counters"]])
    caps = tuple([AttemptCap(**cap) for cap in record["caps"]])
    return RiskCheck(**{**record, "counters": counters, "caps": caps})


def risk_result_from_record(record: Record) -> RiskResult:
    counted = tuple([RiskCounted(**counted) for counted in record["counted"]])
    return RiskResult(**{**record, "counted": counted})


def velocity_from_record(record: Record) -> RiskVelocity:
    series = tuple(
        [
            VelocitySeries(
                **{**each, "buckets": tuple([VelocityBucket(**b) for b in each["buckets"]])}
            )
            for each in record["series"]
        ]
    )
    lists = {
        "series": series,
        "recent": tuple(record["recent"]),
        "declined": tuple([AttemptMark(**each) for each in record["declined"]]),
        "in_flight": tuple([AttemptMark(**each) for each in record["in_flight"]]),
        "waiting": tuple([AttemptWaiting(**each) for each in record["waiting"]]),
        "caps": tuple([AttemptCap(**each) for each in record["caps"]]),
        "bars": tuple([CardBar(**each) for each in record["bars"]]),
        "taken_back": tuple([AttemptMark(**each) for each in record["taken_back"]]),
    }
    return RiskVelocity(**{**record, **lists})


def reference_from_record(record: Record) -> GatewayReference:
    return GatewayReference(**record)


def audit_entry_from_record(record: Record) -> AuditEntry:
    return AuditEntry(**record)


def clearing_from_record(record: Record) -> Clearing:
    return Clearing(**record)


def break_from_record(record: Record) -> ReconciliationBreak:
    return ReconciliationBreak(**record)


def payout_from_record(record: Record) -> Payout:
    return Payout(**record)


def marker_from_record(record: Record) -> DeadLetterMarker:
    return DeadLetterMarker(**record)


TO_RECORD: Mapping[type[Any], Callable[[Any], Record]] = {
    Order: order_to_record,
    Payment: payment_to_record,
    PaymentRequest: asdict,
    GatewayResult: asdict,
    Settlement: asdict,
    PaymentEvent: asdict,
    PaymentDue: asdict,
    PaymentCommand: asdict,
    GatewayNotification: asdict,
    GatewayReference: asdict,
    AuditEntry: asdict,
    ControlEntry: asdict,
    RiskCheck: check_to_record,
    RiskResult: risk_result_to_record,
    RiskVelocity: velocity_to_record,
    DeadLetterMarker: asdict,
    LedgerEvent: asdict,
    Clearing: asdict,
    ReconciliationBreak: asdict,
    Payout: asdict,
}

FROM_RECORD: Mapping[str, Callable[[Record], Noun | Other]] = {
    "order": order_from_record,
    "payment": payment_from_record,
    "payment-request": request_from_record,
    "gateway-result": result_from_record,
    "settlement": settlement_from_record,
    "payment-event": event_from_record,
    "payment-due": due_from_record,
    "payment-command": command_from_record,
    "gateway-notification": notification_from_record,
    "gateway-reference": reference_from_record,
    "audit-entry": audit_entry_from_record,
    "ledger-event": ledger_event_from_record,
    "payout": payout_from_record,
    "control-entry": control_entry_from_record,
    "risk-check": check_from_record,
    "risk-result": risk_result_from_record,
    "risk-velocity": velocity_from_record,
    "dead-letter-marker": marker_from_record,
    "clearing": clearing_from_record,
    "reconciliation-break": break_from_record,
}

SCHEMA_OF: Mapping[type[Any], str] = {
    Order: "order",
    Payment: "payment",
    PaymentRequest: "payment-request",
    GatewayResult: "gateway-result",
    Settlement: "settlement",
    PaymentEvent: "payment-event",
    PaymentDue: "payment-due",
    PaymentCommand: "payment-command",
    GatewayNotification: "gateway-notification",
    GatewayReference: "gateway-reference",
    AuditEntry: "audit-entry",
    ControlEntry: "control-entry",
    RiskCheck: "risk-check",
    RiskResult: "risk-result",
    RiskVelocity: "risk-velocity",
    DeadLetterMarker: "dead-letter-marker",
    LedgerEvent: "ledger-event",
    Clearing: "clearing",
    ReconciliationBreak: "reconciliation-break",
    Payout: "payout",
}
