"""What an audit says: findings by name, each with a count and one example to start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final


class Severity(Enum):
    """``BROKEN``: a guarantee does not hold. ``PENDING``: something is still on its way.
    ``ACKNOWLEDGED``: it does not hold, and somebody has said why that is left so. ``NOTE``: what
    the audit could not see; it says nothing about the flow."""

    BROKEN = "broken"
    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    NOTE = "note"


# Every finding there is, with the guarantee that it breaks (or waits for).
GUARANTEES: Final[Mapping[str, str]] = {
    # Nothing is lost
    "order_lost": "Every order that was processed has a payment or a dead letter.",
    "order_without_outcome": "Every order reaches one outcome (this one is still on its way).",
    "two_outcomes": "A payment has exactly one outcome.",
    "unknown_left_behind": "An unknown outcome has an inquiry on its way, or says it has none.",
    "processing_left_behind": "A payment that is processing has a request or a timer on its way.",
    "operation_left_behind": "An operation that is under way has something on its way for it.",
    "waits_for_a_person": "An outcome that nobody could tell us, a review, or what is still owed.",
    "waits_for_the_customer": "A step that the customer has not taken yet.",
    "commands_wait_for_their_order": "Commands that came before their order wait for it.",
    "command_without_outcome": "Every command is taken, is rejected by name, or waits.",
    "notice_outstanding": "What a gateway did by itself is told by a notice.",
    "request_without_result": "Every processed request has a result or a dead letter.",
    "open_transaction": "A transaction that began also ends.",
    # Charged at most once
    "charged_twice": "A payment is charged at most once at the gateways.",
    "two_keys_charged": "Results report a charge for at most one idempotency key of a payment.",
    "charge_of_two_payments": "A charge that was found as nobody's is no sale of another payment.",
    "operation_without_request": "Every capture, void and refund at a gateway was asked for.",
    "void_and_capture": "What was voided is not captured as well.",
    "movement_of_another_charge": "What a gateway does for an order is of that order's charge.",
    "late_success_not_reversed": "What was taken too late, or for nothing, was given back.",
    "command_answered_twice": "A command is taken or rejected once.",
    "charge_without_payment": "Every charge at a gateway was asked for by a payment request.",
    "charged_but_not_captured": "No payment that ended without money has a charge at a gateway.",
    "charge_amount_wrong": "A gateway charged what the payment says.",
    "more_than_one_request_in_flight": "A payment has at most one request without a result.",
    "request_duplicated": "Each try of a payment request is in the log once.",
    "result_duplicated": "Each try of a payment request has one result.",
    "request_amount_wrong": "A request asks for the amount of its payment.",
    "request_instrument_wrong": "A request names the order's instrument, or a command's.",
    "idempotency_key_wrong": "An idempotency key is payment:operation:gateway:attempt.",
    "conflict_not_named": "What contradicts the order or command that was taken is refused.",
    # The books balance
    "captured_without_charge": "Every captured payment has its charge in the gateway's books.",
    "amounts_out_of_order": "Refunded is at most captured, captured at most authorized.",
    "refund_without_settlement": "Every refund in the gateway's books has its settlement.",
    "settlement_without_refund": "Every settled refund is in the gateway's books.",
    "settlement_without_dispute": "Every settled dispute is in the gateway's books.",
    "settlement_missing": "What a payment says has moved has its settlement.",
    "settlement_duplicated": "Each money movement is settled once.",
    "reference_settled_twice": "What a gateway moved once, under one id, is settled once.",
    "settlement_amount_wrong": "A settlement moves what the payment and the gateway say.",
    "settlement_date_wrong": "A capture is booked under its order's business date.",
    "success_without_settlement": "What a gateway said has moved is settled, or contradicted.",
    "settlement_without_order": "Every settlement belongs to an order.",
    "settlement_without_captured_payment": "Every settlement belongs to a captured payment.",
    "settlement_without_evidence": "Every settlement rests on the word of a gateway or a person.",
    "settlement_without_journal_entry": "Every settlement is one journal entry.",
    "journal_entry_without_settlement": "Every journal entry belongs to one settlement.",
    "journal_entry_duplicated": "A settlement is booked once.",
    "journal_entry_amount_wrong": "A journal entry books what its settlement says.",
    "journal_entry_accounts_wrong": "A journal entry debits and credits the accounts of its kind.",
    "journal_entry_fees_wrong": "Fees and costs follow from the terms of the first capture.",
    "journal_entry_day_wrong": "What comes after a period's close counts under the next day.",
    "journal_entry_without_decision": "What no settlement books, a published decision does.",
    "decision_not_booked": "What is decided about the books is published and booked.",
    "clearing_wrong": "A report's row and the bank's line post what they say, once.",
    "tier_correction_wrong": "A closed month's tiers are set right, each once.",
    "payout_decision_wrong": "A payout goes its way, approved by a second person, each day once.",
    "journal_entry_source_wrong": "A journal entry names the record it was booked from.",
    "journal_entry_beyond_offset": "Entries and the ledger's offsets are committed together.",
    "journal_unbalanced": "Debits equal credits in every entry and currency.",
    "balance_differs_from_postings": "A balance is the sum of its postings.",
    "money_not_conserved": "What was ordered is captured, left, failed, not due or waiting.",
    # Order per payment, and the table
    "event_sequence_gap": "The events of a payment are numbered without gaps.",
    "event_sequence_not_monotonic": "The events of a payment are in order, each once.",
    "snapshot_differs_from_events": "The table says what the last event says.",
    "payment_regressed": "A payment's snapshots follow one another.",
    "payment_erased": "A payment is not removed from the table.",
    "payment_without_order": "Every payment began with an order.",
    "payment_differs_from_order": "A payment has its order's amount and currency.",
    "request_without_order": "Every request belongs to an order.",
    "result_without_request": "Every result answers a request.",
    "misplaced_key": "A record lies in its key's partition.",
    "key_differs_from_payload": "A record's key is its merchant and order.",
    "derived_id_wrong": "Ids are derived from what they identify.",
    # Bad input cannot stop the flow
    "dead_letter_without_lineage": "A dead letter names the record it came from.",
    "dead_letter_unjustified": "What is refused is what its cause says.",
    "dead_letter_repeated": "A letter of the ledger may be written twice when its process died.",
    "dead_letter_duplicated": "An input is dead-lettered once.",
    "bad_command_not_dead_lettered": "A command that cannot be handled is dead-lettered.",
    "dead_letter_closed_twice": "A dead letter is redriven or discarded once.",
    "input_redriven_twice": "A dead-lettered input is redriven once.",
    "redriven_input_missing": "A dead letter that was redriven came again as an input.",
    "notice_of_another_payment": "A notice that names another payment than its order's is refused.",
    "notice_not_dead_lettered": "A notice that names another payment is dead-lettered.",
    "bad_order_not_dead_lettered": "An order that cannot be handled is dead-lettered.",
    "undecodable_record": "Our own topics hold only records of their schema.",
    # The machinery
    "consumer_offset_beyond_end": "No consumer is ahead of the log.",
    "partitions_unequal": "The topics of the flow have equal partition counts.",
    "unreadable_batch": "A batch that no client can decompress is dead-lettered.",
    "headers_unreadable": "The headers of a record can be read.",
    "history_deleted": "The whole log is there to be judged.",
    "history_deleted_meanwhile": "The log was not deleted while it was read.",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One place to look at. Topic is a name on the cluster, or ``ledger`` or ``gateway``."""

    topic: str
    partition: int | None
    offset: int | None
    key: str
    detail: str

    def __str__(self) -> str:
        place = self.topic
        if self.partition is not None:
            place += f"[{self.partition}]@{self.offset}"
        return ": ".join(part for part in (f"{place} {self.key}".rstrip(), self.detail) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """A guarantee with the number of times it does not hold, and the first such place."""

    name: str
    severity: Severity
    count: int
    example: Example

    @property
    def guarantee(self) -> str:
        return GUARANTEES[self.name]


class Findings:
    """Collects findings: counts all, keeps the first example of each name and severity."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Severity], tuple[int, Example]] = {}

    def add(self, name: str, severity: Severity, example: Example, count: int = 1) -> None:
        if name not in GUARANTEES:
            raise KeyError(name)
        known = self._found.get((name, severity))
        self._found[name, severity] = (
            (count, example)
            if known is None
            else (
                known[0] + count,
                known[1],
            )
        )

    def broken(self, name: str, example: Example) -> None:
        self.add(name, Severity.BROKEN, example)

    def pending(self, name: str, example: Example) -> None:
        self.add(name, Severity.PENDING, example)

    def acknowledged(self, name: str, example: Example) -> None:
        self.add(name, Severity.ACKNOWLEDGED, example)

    def note(self, name: str, example: Example, count: int = 1) -> None:
        self.add(name, Severity.NOTE, example, count)

    def merge(self, others: Iterable[Finding]) -> None:
        for other in others:
            self.add(other.name, other.severity, other.example, other.count)

    def sorted(self) -> list[Finding]:
        """Broken first, then pending, acknowledged, notes; each in the order of GUARANTEES."""
        severities = list(Severity)
        names = list(GUARANTEES)
        return sorted(
            (Finding(n, s, count, example) for (n, s), (count, example) in self._found.items()),
            key=lambda f: (severities.index(f.severity), names.index(f.name)),
        )


@dataclass(frozen=True)
class Report:
    """``exit_code``: 0 whole, 1 broken, 2 something is still on its way."""

    findings: list[Finding]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> list[Finding]:
        return [f for f in self.findings if f.severity is Severity.BROKEN]

    @property
    def pending(self) -> list[Finding]:
        return [f for f in self.findings if f.severity is Severity.PENDING]

    @property
    def acknowledged(self) -> list[Finding]:
        return [f for f in self.findings if f.severity is Severity.ACKNOWLEDGED]

    @property
    def exit_code(self) -> int:
        return 1 if self.broken else 2 if self.pending else 0

    @property
    def verdict(self) -> str:
        return ("whole", "broken", "pending")[self.exit_code]

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "findings": [
                {
                    "name": f.name,
                    "severity": f.severity.value,
                    "guarantee": f.guarantee,
                    "count": f.count,
                    "example": asdict(f.example),
                }
                for f in self.findings
            ],
            "summary": self.summary,
        }
