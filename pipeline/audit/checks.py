"""The judgement: pure functions over what was copied. Why each is sound on a live flow: ``cut``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from pipeline.audit.amounts import amount_of, amount_text
from pipeline.audit.cut import Cut
from pipeline.audit.derivation import idempotency_key
from pipeline.audit.evidence import (
    DeadLetter,
    Evidence,
    OrderSeen,
    PaymentEvidence,
    RequestSeen,
    ResultSeen,
    SettlementSeen,
    key_text,
)
from pipeline.audit.gateway_copy import ChargeSeen, GatewayCopy
from pipeline.audit.ledger_copy import EntrySeen, LedgerCopy
from pipeline.audit.report import Example, Finding, Findings

WAITING_STATUSES = frozenset({"processing", "outcome_unknown"})


def check(
    evidence: Evidence,
    cut: Cut,
    ledger: LedgerCopy | None = None,
    gateway: GatewayCopy | None = None,
) -> list[Finding]:
    """Every finding, broken ones first. Without a ledger or gateway copy those are not judged."""
    return _Judgement(evidence, cut, ledger, gateway).all()


class _Judgement:
    def __init__(
        self,
        evidence: Evidence,
        cut: Cut,
        ledger: LedgerCopy | None,
        gateway: GatewayCopy | None,
    ) -> None:
        self.evidence = evidence
        self.cut = cut
        self.ledger = ledger
        self.gateway = gateway
        self.found = Findings()
        self.found.merge(evidence.findings.sorted())
        self.dead: dict[tuple[str, int, int], DeadLetter] = {
            letter.source: letter for letter in evidence.dead_letters if letter.source is not None
        }
        self.blind_lanes = {partition for _, partition in cut.blind}
        self.topic = {role: spec.name for role, spec in evidence.catalogue.topics.items()}
        self.settlement_lanes: dict[str, tuple[PaymentEvidence, SettlementSeen]] = {}

    def all(self) -> list[Finding]:
        self.machinery()
        self.odd_inputs()
        self.dead_letters()
        rules: tuple[Callable[[PaymentEvidence], None], ...] = (
            self.order_and_payment,
            self.table_and_events,
            self.requests_and_results,
            self.settlements,
        )
        for payment in self.evidence.payments.values():
            for rule in rules:
                rule(payment)
        self.money()
        if self.gateway is not None:
            self.gateway_books(self.gateway)
        if self.ledger is not None:
            self.ledger_entries(self.ledger)
            self.ledger_balances(self.ledger)
        return self.found.sorted()

    # The machinery

    def machinery(self) -> None:
        """Partition counts, offsets, and what could not be seen."""
        cut, found = self.cut, self.found
        counts = Counter(cut.partitions.values())
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            role, partitions = next((r, n) for r, n in cut.partitions.items() if n != usual)
            found.broken(
                "partitions_unequal",
                Example(self.topic[role], None, None, "", f"{partitions}, the others have {usual}"),
            )
        offsets = [
            (stage, role, partition, offset)
            for stage, committed in cut.committed.items()
            for (role, partition), offset in committed.items()
        ]
        if self.ledger is not None:
            offsets += [
                ("ledger", "settlements", partition, offset)
                for (topic, partition), offset in self.ledger.offsets.items()
                if topic == self.topic["settlements"]
            ]
        for stage, role, partition, offset in offsets:
            end = cut.ends.get((role, partition), 0)
            if offset > end:
                found.broken(
                    "consumer_offset_beyond_end",
                    Example(self.topic[role], partition, offset, "", f"{stage}; the end is {end}"),
                )
        for role, partition in sorted(cut.blind):
            if (role, partition) in cut.lows:
                found.pending(
                    "history_deleted_meanwhile",
                    Example(self.topic[role], partition, cut.lows[role, partition], "", ""),
                )
            else:
                end = cut.ends[role, partition]
                found.pending(
                    "open_transaction",
                    Example(self.topic[role], partition, end, "", "not readable up to here"),
                )
        for (role, partition), low in sorted(cut.lows.items()):
            # A table is compacted: only its first offsets go, never a payment.
            if role != "payments":
                found.note(
                    "history_deleted",
                    Example(self.topic[role], partition, low, "", "records before it are gone"),
                    low,
                )

    # Bad input

    def odd_inputs(self) -> None:
        """What belongs to no payment: bad orders need a dead letter, our own records are broken."""
        for place, odd in self.evidence.odd.items():
            example = Example(
                self.topic[odd.role], odd.partition, odd.offset, key_text(odd.key), odd.detail
            )
            if odd.role != "orders":
                self.found.broken(odd.finding, example)
            elif place not in self.dead:
                if not self.cut.processed("payments", "orders", odd.partition, odd.offset):
                    self.found.pending("order_without_outcome", example)
                elif odd.partition not in self.blind_lanes:
                    name = odd.finding
                    if name == "undecodable_record":
                        name = "bad_order_not_dead_lettered"
                    self.found.broken(name, example)

    def dead_letters(self) -> None:
        """Each names a record that is there, has its key and its bytes, and is named once."""
        seen: set[tuple[str, int, int]] = set()
        for letter in self.evidence.dead_letters:
            problem = letter.problem
            if letter.source is not None and letter.first_piece:
                if letter.source in seen:
                    self.found.broken(
                        "dead_letter_duplicated",
                        self._letter_example(letter, f"again of {self._place(letter.source)}"),
                    )
                seen.add(letter.source)
            if problem is None and letter.source is not None:
                problem = self._lineage_problem(letter, letter.source)
            if problem is not None:
                self.found.broken(
                    "dead_letter_without_lineage", self._letter_example(letter, problem)
                )

    def _lineage_problem(self, letter: DeadLetter, source: tuple[str, int, int]) -> str | None:
        role, partition, offset = source
        place = self._place(source)
        if offset < self.cut.lows.get((role, partition), 0) or (role, partition) in self.cut.blind:
            return None
        odd = self.evidence.odd.get(source)
        if odd is not None:
            key, checksum = odd.key, odd.checksum
        else:
            record = self._record_of(letter.key, source)
            if record is None:
                return f"names {place}, where no such record of this key is"
            key = letter.key
            checksum = record.checksum if isinstance(record, OrderSeen) else letter.checksum or 0
        if key != letter.key:
            return f"has another key than {place}"
        if letter.partition != partition:
            return f"lies in another partition than {place}"
        if letter.checksum is not None and letter.checksum != checksum:
            return f"has another value than {place}"
        return None

    def _record_of(self, key: bytes | None, source: tuple[str, int, int]) -> object | None:
        payment = None if key is None else self.evidence.payments.get(key)
        if payment is None:
            return None
        role, partition, offset = source
        records: Iterable[OrderSeen | RequestSeen | ResultSeen | SettlementSeen | object] = {
            "orders": payment.orders,
            "payment-requests": payment.requests,
            "gateway-results": payment.results,
            "settlements": payment.settlements,
        }.get(role, tuple(due for due in payment.dues if due.role == role))
        for record in records:
            if (record.partition, record.offset) == (partition, offset):  # type: ignore[union-attr]
                return record
        return None

    # One payment

    def settled(self, payment: PaymentEvidence) -> bool:
        """Whether every transaction of this payment is wholly in what was read."""
        if payment.home in self.blind_lanes:
            return False
        processed = self.cut.processed
        return (
            all(processed("payments", "orders", o.partition, o.offset) for o in payment.orders)
            and all(
                processed("payments", "gateway-results", r.partition, r.offset)
                for r in payment.results
            )
            and all(processed("payments", d.role, d.partition, d.offset) for d in payment.dues)
        )

    def accepted_orders(self, payment: PaymentEvidence) -> list[OrderSeen]:
        """The orders of a payment that were not dead-lettered; the first one began it."""
        return [o for o in payment.orders if ("orders", o.partition, o.offset) not in self.dead]

    def order_and_payment(self, payment: PaymentEvidence) -> None:
        """An order has a payment, a payment its order, and both say the same."""
        found, snapshot = self.found, payment.snapshot
        accepted = self.accepted_orders(payment)
        if snapshot is None:
            if accepted:
                if self.settled(payment):
                    found.broken(
                        "order_lost", self._order_example(payment, accepted[0], "no payment")
                    )
                else:
                    found.pending(
                        "order_without_outcome",
                        self._order_example(payment, accepted[0], "not processed yet"),
                    )
            return
        if not payment.orders and not self._gone(payment, "orders"):
            found.broken("payment_without_order", self._snapshot_example(payment, snapshot.status))
        if snapshot.status in WAITING_STATUSES:
            self._waiting(payment, snapshot.status, for_a_person=snapshot.for_a_person)
        if not accepted:
            return
        first = accepted[0]
        whole = not self.cut.may_be_deleted("orders", payment.home, snapshot.ordered_at_ms)
        # The table keeps a rejected order's texts shortened and masked, so only its amount counts.
        rejected = snapshot.status == "rejected"
        if whole and (
            first.amount_minor != snapshot.amount_minor
            or (first.currency != snapshot.currency and not rejected)
        ):
            found.broken(
                "payment_differs_from_order",
                self._snapshot_example(
                    payment,
                    f"{amount_of(snapshot)}, ordered were {amount_of(first)}",
                ),
            )
        terms = (first.currency, first.instrument_token)
        for order in accepted[1:]:
            differs = order.amount_minor != first.amount_minor or (
                not rejected and (order.currency, order.instrument_token) != terms
            )
            if whole and differs and self.settled(payment):
                found.broken(
                    "conflict_not_named",
                    self._order_example(payment, order, "differs from the first, no dead letter"),
                )

    def _waiting(self, payment: PaymentEvidence, status: str, *, for_a_person: bool) -> None:
        example = self._snapshot_example(payment, status)
        if for_a_person:
            self.found.pending("waits_for_a_person", example)
        elif not self.settled(payment) or self._outstanding(payment):
            self.found.pending("order_without_outcome", example)
        elif status == "outcome_unknown":
            self.found.broken("unknown_left_behind", example)
        else:
            self.found.broken("processing_left_behind", example)

    def _outstanding(self, payment: PaymentEvidence) -> list[RequestSeen]:
        """Requests without a result or dead letter, newest last."""
        answered = {result.identity for result in payment.results}
        return [
            r
            for r in payment.requests
            if r.identity not in answered
            and ("payment-requests", r.partition, r.offset) not in self.dead
        ]

    def table_and_events(self, payment: PaymentEvidence) -> None:
        """The table's last word on a payment is its last event's."""
        event, snapshot = payment.event, payment.snapshot
        if (
            event is not None
            and payment.first_sequence != 1
            and not self._gone(payment, "payment-events")
        ):
            self.found.broken(
                "event_sequence_gap",
                Example(
                    self.topic["payment-events"],
                    event.partition,
                    event.offset,
                    payment.key,
                    f"begins with {payment.first_sequence}",
                ),
            )
        if not self.settled(payment):
            return
        if snapshot is None:
            if event is not None:
                self.found.broken(
                    "snapshot_differs_from_events",
                    Example(
                        self.topic["payment-events"],
                        event.partition,
                        event.offset,
                        payment.key,
                        f"{event.status} at {event.sequence}, and the table has no payment",
                    ),
                )
        elif event is None:
            if not self._gone(payment, "payment-events"):
                self.found.broken(
                    "snapshot_differs_from_events",
                    self._snapshot_example(payment, f"{snapshot.status}, and no event"),
                )
        elif (event.sequence, event.status) != (snapshot.sequence, snapshot.status):
            self.found.broken(
                "snapshot_differs_from_events",
                self._snapshot_example(
                    payment,
                    f"{snapshot.status} at {snapshot.sequence}, the last event says "
                    f"{event.status} at {event.sequence}",
                ),
            )

    def requests_and_results(self, payment: PaymentEvidence) -> None:
        """One request at a time, one result each, one charged key."""
        found, requests, results = self.found, payment.requests, payment.results
        if not requests and not results:
            return
        if requests and not payment.orders and not self._gone(payment, "orders"):
            found.broken(
                "request_without_order", self._request_example(payment, requests[0], "no order")
            )
        asked: set[tuple[str, str, int, int]] = set()
        snapshot = payment.snapshot
        for request in requests:
            if request.identity in asked:
                found.broken(
                    "request_duplicated",
                    self._request_example(payment, request, f"try {request.try_number} again"),
                )
            asked.add(request.identity)
            if snapshot is not None and (request.amount_minor, request.currency) != (
                snapshot.amount_minor,
                snapshot.currency,
            ):
                found.broken(
                    "request_amount_wrong",
                    self._request_example(
                        payment,
                        request,
                        f"{request.amount_minor} {request.currency}, the payment is of "
                        f"{snapshot.amount_minor} {snapshot.currency}",
                    ),
                )
        answered: set[tuple[str, str, int, int]] = set()
        charged: dict[tuple[str, str, int], ResultSeen] = {}
        for result in results:
            if result.identity in answered:
                found.broken(
                    "result_duplicated",
                    self._result_example(payment, result, f"try {result.try_number} again"),
                )
            answered.add(result.identity)
            if result.outcome == "succeeded":
                charged.setdefault((result.gateway, result.operation_id, result.attempt), result)
            if (
                result.identity not in asked
                and self.cut.processed(
                    "payments", "gateway-results", result.partition, result.offset
                )
                and payment.home not in self.blind_lanes
                and not self._gone(payment, "payment-requests")
            ):
                found.broken(
                    "result_without_request",
                    self._result_example(
                        payment, result, f"attempt {result.attempt}, try {result.try_number}"
                    ),
                )
        if len(charged) > 1:
            found.broken(
                "two_keys_charged",
                self._result_example(
                    payment,
                    list(charged.values())[-1],
                    " and ".join(
                        idempotency_key(payment.payment_id, operation, gateway, attempt)
                        for gateway, operation, attempt in charged
                    ),
                ),
            )
        self._unanswered(payment)

    def _unanswered(self, payment: PaymentEvidence) -> None:
        outstanding = self._outstanding(payment)
        if not outstanding or payment.home in self.blind_lanes:
            return
        if self._gone(payment, "gateway-results"):
            return
        for request in outstanding:
            if self.cut.processed("gateway", "payment-requests", request.partition, request.offset):
                self.found.broken(
                    "request_without_result",
                    self._request_example(
                        payment,
                        request,
                        f"{request.kind}, attempt {request.attempt}, try {request.try_number}",
                    ),
                )
        identities = {request.identity for request in outstanding}
        if len(identities) > 1:
            self.found.broken(
                "more_than_one_request_in_flight",
                self._request_example(
                    payment, outstanding[-1], f"{len(identities)} requests without a result"
                ),
            )

    def settlements(self, payment: PaymentEvidence) -> None:
        """A captured payment is settled once, by what the gateway said it took."""
        found, snapshot, settlements = self.found, payment.snapshot, payment.settlements
        settled = self.settled(payment)
        if not settlements:
            if (
                settled
                and snapshot is not None
                and snapshot.captured_minor != 0
                and not self._gone(payment, "settlements")
            ):
                found.broken(
                    "settlement_missing",
                    self._snapshot_example(
                        payment, f"captured {snapshot.captured_minor} {snapshot.currency}"
                    ),
                )
            elif (
                settled
                and snapshot is not None
                and snapshot.status == "captured"
                and not self._gone(payment, "settlements")
            ):
                found.broken("settlement_missing", self._snapshot_example(payment, "captured"))
            return
        if not payment.orders and not self._gone(payment, "orders"):
            found.broken(
                "settlement_without_order",
                self._settlement_example(payment, settlements[0], "no order"),
            )
        unique: dict[tuple[str, str], SettlementSeen] = {}
        for settlement in settlements:
            self.settlement_lanes.setdefault(settlement.settlement_id, (payment, settlement))
            movement = settlement.operation_id, settlement.kind
            if movement in unique:
                found.broken(
                    "settlement_duplicated",
                    self._settlement_example(
                        payment, settlement, f"{settlement.kind} {settlement.settlement_id} again"
                    ),
                )
            unique[movement] = settlement
            if (
                payment.home not in self.blind_lanes
                and not self._gone(payment, "gateway-results")
                and not any(
                    r.outcome == "succeeded"
                    and r.gateway == settlement.gateway
                    and r.gateway_reference == settlement.gateway_reference
                    for r in payment.results
                )
            ):
                found.broken(
                    "settlement_without_evidence",
                    self._settlement_example(
                        payment,
                        settlement,
                        f"no result names {settlement.gateway} {settlement.gateway_reference}",
                    ),
                )
        if not settled:
            return
        if snapshot is None or snapshot.status != "captured":
            status = "no payment" if snapshot is None else f"the payment is {snapshot.status}"
            found.broken(
                "settlement_without_captured_payment",
                self._settlement_example(payment, settlements[0], status),
            )
            return
        captured = [s for s in unique.values() if s.kind == "capture"]
        sums: Counter[str] = Counter()
        for settlement in captured:
            sums[settlement.currency] += settlement.amount_minor
        if captured and dict(sums) != {snapshot.currency: snapshot.captured_minor}:
            found.broken(
                "settlement_amount_wrong",
                self._settlement_example(
                    payment,
                    captured[-1],
                    f"{captured[-1].amount_minor} {captured[-1].currency}, captured were "
                    f"{snapshot.captured_minor} {snapshot.currency}",
                ),
            )

    # All payments together

    def money(self) -> None:
        """Per currency: ordered = captured (by settlements) + what ended or waits without money.

        Over settled payments, whose order and settlements cannot have been deleted.
        """
        ordered: Counter[str] = Counter()
        accounted: Counter[str] = Counter()
        worst: tuple[PaymentEvidence, OrderSeen] | None = None
        differing = 0
        for payment in self.evidence.payments.values():
            accepted = self.accepted_orders(payment)
            if (
                not accepted
                or not self.settled(payment)
                or self._gone(payment, "settlements")
                or self._gone(payment, "orders")
            ):
                continue
            first, snapshot = accepted[0], payment.snapshot
            mine: Counter[str] = Counter()
            if snapshot is not None and snapshot.status == "captured":
                for settlement in payment.settlements:
                    if settlement.kind == "capture":
                        mine[settlement.currency] += settlement.amount_minor
            elif snapshot is not None:
                rejected = snapshot.status == "rejected"
                mine[first.currency if rejected else snapshot.currency] = snapshot.amount_minor
            ordered[first.currency] += first.amount_minor
            for currency, amount_minor in mine.items():
                accounted[currency] += amount_minor
            if mine.get(first.currency, 0) != first.amount_minor or len(mine) > 1:
                differing += 1
                worst = worst or (payment, first)
        if worst is None:
            return
        payment, first = worst
        differences = ", ".join(
            f"{amount_text(ordered[c], c)} ordered, {amount_text(accounted[c], c)} accounted for"
            for c in sorted({*ordered, *accounted})
            if ordered[c] != accounted[c]
        )
        self.found.broken(
            "money_not_conserved",
            self._order_example(
                payment, first, f"{differing} payments differ; {differences or 'sums agree'}"
            ),
        )

    # The gateways' books

    def gateway_books(self, gateway: GatewayCopy) -> None:
        """One charge a payment at most, asked for, of the right amount, and captured."""
        payments = self.evidence.payments
        for key, charges in gateway.charges.items():
            payment = payments.get(key.encode())
            if len(charges) > 1:
                self.found.broken(
                    "charged_twice",
                    self._charge_example(key, charges[1], f"also {charges[0].id}"),
                )
            if payment is None:
                for charge in charges:
                    self._unasked(key, charge, None)
            else:
                self._charges_of(payment, charges)
        for payment in payments.values():
            self._captured_charges(payment, gateway)

    def _unasked(self, key: str, charge: ChargeSeen, payment: PaymentEvidence | None) -> None:
        if charge.recent:
            return
        home = payment.home if payment else None
        if home in self.blind_lanes or (home is None and self.blind_lanes):
            return
        if payment is not None and self._gone(payment, "payment-requests"):
            return
        if payment is None and any(
            self.cut.may_be_deleted("payment-requests", p, charge.created_at_ms)
            for p in range(self.cut.partitions.get("payment-requests", 0))
        ):
            return
        self.found.broken(
            "charge_without_payment",
            self._charge_example(key, charge, f"no request has the reference {charge.reference}"),
        )

    def _charges_of(self, payment: PaymentEvidence, charges: list[ChargeSeen]) -> None:
        references = {
            idempotency_key(payment.payment_id, r.operation_id, r.gateway, r.attempt)
            for r in payment.requests
        }
        snapshot = payment.snapshot
        settled = self.settled(payment)
        for charge in charges:
            if charge.reference not in references:
                self._unasked(payment.key, charge, payment)
                continue
            if snapshot is None or not settled:
                continue
            if snapshot.status not in WAITING_STATUSES and snapshot.status != "captured":
                self.found.broken(
                    "charged_but_not_captured",
                    self._charge_example(
                        payment.key,
                        charge,
                        f"{charge.amount_minor} {charge.currency} for a payment that is "
                        f"{snapshot.status} ({snapshot.reason})",
                    ),
                )
            if (charge.amount_minor, charge.currency) != (
                snapshot.amount_minor,
                snapshot.currency,
            ):
                self.found.broken(
                    "charge_amount_wrong",
                    self._charge_example(
                        payment.key,
                        charge,
                        f"{charge.amount_minor} {charge.currency}, the payment is of "
                        f"{snapshot.amount_minor} {snapshot.currency}",
                    ),
                )

    def _captured_charges(self, payment: PaymentEvidence, gateway: GatewayCopy) -> None:
        captures = [s for s in payment.settlements if s.kind == "capture"]
        snapshot = payment.snapshot
        if not captures:
            return
        charges = {charge.id: charge for charge in gateway.charges.get(payment.key, ())}
        for capture in captures:
            charge = charges.get(capture.gateway_reference)
            if charge is None:
                self.found.broken(
                    "captured_without_charge",
                    self._settlement_example(
                        payment, capture, f"the books have no charge {capture.gateway_reference}"
                    ),
                )
            elif (
                capture.amount_minor,
                capture.currency,
            ) != (charge.amount_minor, charge.currency) and (
                # Where the settlement contradicts the payment as well, that has been said.
                snapshot is None
                or (capture.amount_minor, capture.currency)
                == (snapshot.captured_minor, snapshot.currency)
            ):
                self.found.broken(
                    "settlement_amount_wrong",
                    self._settlement_example(
                        payment,
                        capture,
                        f"{capture.amount_minor} {capture.currency}, the gateway charged "
                        f"{charge.amount_minor} {charge.currency}",
                    ),
                )

    # The ledger

    def ledger_entries(self, ledger: LedgerCopy) -> None:
        """One entry for each settlement below the ledger's offset, and none for anything else."""
        booked: dict[str, EntrySeen] = {}
        for entry in ledger.entries:
            if entry.settlement_id in booked:
                self.found.broken(
                    "journal_entry_duplicated",
                    self._entry_example(entry, f"again of {entry.settlement_id}"),
                )
                continue
            booked[entry.settlement_id] = entry
            seen = self.settlement_lanes.get(entry.settlement_id)
            if seen is not None:
                self._entry_against(entry, *seen)
            elif not self._source_unreadable(entry):
                self.found.broken(
                    "journal_entry_without_settlement",
                    self._entry_example(entry, f"no settlement {entry.settlement_id or '?'}"),
                )
            place = entry.source_topic, entry.source_partition
            if entry.source_offset >= ledger.offsets.get(place, 0):
                self.found.broken(
                    "journal_entry_beyond_offset",
                    self._entry_example(
                        entry,
                        f"booked from {place[0]}[{place[1]}]@{entry.source_offset}, but the "
                        f"ledger's offset is {ledger.offsets.get(place, 0)}",
                    ),
                )
        for payment, settlement in self.settlement_lanes.values():
            if settlement.settlement_id in booked:
                continue
            if ("settlements", settlement.partition, settlement.offset) in self.dead:
                continue
            example = self._settlement_example(payment, settlement, settlement.settlement_id)
            place = self.topic["settlements"], settlement.partition
            if settlement.offset < ledger.offsets.get(place, 0):
                self.found.broken("settlement_without_journal_entry", example)
            else:
                self.found.pending("settlement_without_journal_entry", example)

    def _source_unreadable(self, entry: EntrySeen) -> bool:
        """Whether the record it was booked from is deleted, or lies behind an open transaction."""
        place = "settlements", entry.source_partition
        return entry.source_topic == self.topic["settlements"] and (
            entry.source_offset < self.cut.lows.get(place, 0) or place in self.cut.blind
        )

    def _entry_against(
        self, entry: EntrySeen, payment: PaymentEvidence, settlement: SettlementSeen
    ) -> None:
        source = self.topic["settlements"], settlement.partition, settlement.offset
        booked_from = entry.source_topic, entry.source_partition, entry.source_offset
        if source != booked_from and not self._source_unreadable(entry):
            self.found.broken(
                "journal_entry_source_wrong",
                self._entry_example(
                    entry,
                    "names {}[{}]@{}, its settlement is {}[{}]@{}".format(*booked_from, *source),
                ),
            )
        moved: Counter[str] = Counter()
        for posting in entry.postings:
            moved[posting.currency] += max(0, posting.amount_minor)
        if dict(moved) != {settlement.currency: abs(settlement.amount_minor)}:
            booked = ", ".join(amount_text(minor, currency) for currency, minor in moved.items())
            self.found.broken(
                "journal_entry_amount_wrong",
                self._entry_example(
                    entry,
                    f"{booked or 'nothing'} booked, the settlement of {payment.key} says "
                    f"{amount_of(settlement)}",
                ),
            )

    def ledger_balances(self, ledger: LedgerCopy) -> None:
        """Each entry is zero in each currency, and balances are the sums of postings."""
        debits: Counter[tuple[str, str]] = Counter()
        credits: Counter[tuple[str, str]] = Counter()
        for entry in ledger.entries:
            balance: Counter[str] = Counter()
            for posting in entry.postings:
                amount_minor = posting.amount_minor
                balance[posting.currency] += amount_minor
                side = debits if amount_minor > 0 else credits
                side[posting.account, posting.currency] += abs(amount_minor)
            if not entry.postings:
                self.found.broken(
                    "journal_unbalanced", self._entry_example(entry, "it has no postings")
                )
            for currency, difference in balance.items():
                if difference:
                    self.found.broken(
                        "journal_unbalanced",
                        self._entry_example(
                            entry, f"debits less credits are {amount_text(difference, currency)}"
                        ),
                    )
        for place in sorted({*debits, *credits, *ledger.balances}):
            stored, summed = ledger.balances.get(place, (0, 0)), (debits[place], credits[place])
            if stored != summed:
                account, currency = place
                self.found.broken(
                    "balance_differs_from_postings",
                    Example(
                        "ledger",
                        None,
                        None,
                        account,
                        f"debits {amount_text(stored[0], currency)} and credits "
                        f"{amount_text(stored[1], currency)}, its postings sum to "
                        f"{amount_text(summed[0], currency)} and "
                        f"{amount_text(summed[1], currency)}",
                    ),
                )

    # Examples

    def _gone(self, payment: PaymentEvidence, role: str) -> bool:
        """Whether retention may have taken records of this payment from the topic."""
        return self.cut.may_be_deleted(role, payment.home, payment.ordered_at_ms)

    def _place(self, source: tuple[str, int, int]) -> str:
        return f"{self.topic[source[0]]}[{source[1]}]@{source[2]}"

    def _letter_example(self, letter: DeadLetter, detail: str) -> Example:
        return Example(
            self.topic["dead-letters"],
            letter.partition,
            letter.offset,
            key_text(letter.key),
            detail,
        )

    def _order_example(self, payment: PaymentEvidence, order: OrderSeen, detail: str) -> Example:
        return Example(self.topic["orders"], order.partition, order.offset, payment.key, detail)

    def _snapshot_example(self, payment: PaymentEvidence, detail: str) -> Example:
        snapshot = payment.snapshot
        return Example(
            self.topic["payments"],
            None if snapshot is None else snapshot.partition,
            None if snapshot is None else snapshot.offset,
            payment.key,
            detail,
        )

    def _request_example(
        self, payment: PaymentEvidence, request: RequestSeen, detail: str
    ) -> Example:
        return Example(
            self.topic["payment-requests"], request.partition, request.offset, payment.key, detail
        )

    def _result_example(self, payment: PaymentEvidence, result: ResultSeen, detail: str) -> Example:
        return Example(
            self.topic["gateway-results"], result.partition, result.offset, payment.key, detail
        )

    def _settlement_example(
        self, payment: PaymentEvidence, settlement: SettlementSeen, detail: str
    ) -> Example:
        return Example(
            self.topic["settlements"],
            settlement.partition,
            settlement.offset,
            payment.key,
            detail,
        )

    @staticmethod
    def _charge_example(key: str, charge: ChargeSeen, detail: str) -> Example:
        return Example("gateway", None, None, key, f"{charge.id}: {detail}")

    @staticmethod
    def _entry_example(entry: EntrySeen, detail: str) -> Example:
        return Example("ledger", None, None, entry.entry_id, detail)
