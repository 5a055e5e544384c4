"""The judgement: pure functions over what was copied. Why each is sound on a live flow: ``cut``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from pipeline.audit.amounts import amount_of, amount_text
from pipeline.audit.books import LedgerChecks
from pipeline.audit.cut import Cut, Unreadable, judged_roles
from pipeline.audit.derivation import idempotency_key
from pipeline.audit.evidence import (
    EXTERNAL,
    MAIN_KINDS,
    UNDER_WAY,
    DeadLetter,
    Evidence,
    OrderSeen,
    PaymentEvidence,
    RequestSeen,
    ResultSeen,
    SettlementSeen,
    SnapshotSeen,
    key_text,
)
from pipeline.audit.found_charges import is_unasked
from pipeline.audit.gateway_copy import ChargeSeen, GatewayCopy
from pipeline.audit.justification import JustificationChecks
from pipeline.audit.ledger_copy import LedgerCopy
from pipeline.audit.operations import (
    REFUNDS,
    WAITING_STATUSES,
    OperationChecks,
    evidenced,
    given_back,
    is_late,
)
from pipeline.audit.references import settled_twice
from pipeline.audit.report import Example, Finding, Findings

# A letter has no key where its input's was longer: no record of the flow has one like that.
LETTER_KEY_BYTES_MAX = 1024 * 1024

# What the letter of a batch says that no client can decompress.
UNREADABLE_BATCH = "unreadable_batch"

# Commands alone make these.
WITHOUT_ORDER_STATUSES = frozenset({"awaiting_order", "credit_held"})
# Where the word that a settlement rests on may stand.
EVIDENCE_ROLES = ("gateway-results", "gateway-notifications", "payment-commands")


def check(
    evidence: Evidence,
    cut: Cut,
    ledger: LedgerCopy | None = None,
    gateway: GatewayCopy | None = None,
) -> list[Finding]:
    """Every finding, broken ones first. Without a ledger or gateway copy those are not judged."""
    return Judgement(evidence, cut, ledger, gateway).all()


class Judgement:
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
        for letter in evidence.dead_letters:
            if letter.source is not None and letter.to_offset is not None:
                role, partition, first = letter.source
                for offset in range(first, letter.to_offset + 1):
                    self.dead.setdefault((role, partition, offset), letter)
        for (role, partition, offset), letter in self.dead.items():
            payment = evidence.payments.get(letter.key or b"")
            if role == "payment-commands" and payment is not None:
                payment.dead_commands += ((partition, offset),)
        self.unreadable = {batch[:3]: batch for batch in cut.unreadable}
        self.payments = self._as_redriven()
        self.blind_lanes = {partition for _, partition in cut.blind}
        self.topic = {role: spec.name for role, spec in evidence.catalogue.topics.items()}
        self.operations = OperationChecks(self)
        self.justification = JustificationChecks(self)
        self.judged = judged_roles(evidence.catalogue)
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
            self.justification.instruments,
            self.justification.successes,
            self.justification.dates,
            self.justification.foreign_notices,
            self.operations.amounts,
            self.operations.commands,
            self.operations.given_back,
        )
        for payment in self.payments.values():
            for rule in rules:
                rule(payment)
        self.operations.found_charges()
        self.references()
        self.money()
        if self.gateway is not None:
            self.operations.gateway_books(self.gateway)
        if self.ledger is not None:
            LedgerChecks(self, self.ledger).all()
        return self.found.sorted()

    def _as_redriven(self) -> Mapping[bytes, PaymentEvidence]:
        """The payments without those inputs that a redriven one stands for.

        An input that was refused had no effect; the same record came again later and is judged in
        its place. A header alone does not take an input away: it has to be dead-lettered, or so
        fresh that its letter may be beyond what was read.
        """
        changed: dict[bytes, PaymentEvidence] = {}
        for copy in self.evidence.redriven:
            source = copy.role, copy.partition, copy.source_offset
            payment = None if copy.key is None else self.evidence.payments.get(copy.key)
            if payment is None or copy.key is None:
                continue
            if source not in self.dead and self._processed_anywhere(source):
                continue
            changed[copy.key] = _without(changed.get(copy.key, payment), source)
        return {**self.evidence.payments, **changed} if changed else self.evidence.payments

    def _processed_anywhere(self, source: tuple[str, int, int]) -> bool:
        return any(self.cut.processed(stage, *source) for stage in self.cut.committed)

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
        for batch in cut.unreadable:
            self._unreadable(batch)
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
            if odd.role not in EXTERNAL:
                self.found.broken(odd.finding, example)
            elif place not in self.dead:
                order = odd.role == "orders"
                if not self.cut.processed("payments", odd.role, odd.partition, odd.offset):
                    self.found.pending(
                        "order_without_outcome" if order else "command_without_outcome", example
                    )
                elif odd.partition not in self.blind_lanes:
                    name = odd.finding
                    if name == "undecodable_record":
                        name = f"bad_{'order' if order else 'command'}_not_dead_lettered"
                    self.found.broken(name, example)

    def dead_letters(self) -> None:
        """Each names a record that is there, has its key and its bytes, and is named once."""
        seen: set[tuple[str, int, int]] = set()
        for letter in self.evidence.dead_letters:
            problem = letter.problem
            if letter.source is not None and letter.first_piece:
                if letter.source in seen:
                    again = self._letter_example(letter, f"again of {self._place(letter.source)}")
                    if letter.stage in ("ledger", "notifications", "webhooks"):
                        # Their letters and their databases cannot be one transaction.
                        self.found.note("dead_letter_repeated", again, 1)
                    else:
                        self.found.broken("dead_letter_duplicated", again)
                seen.add(letter.source)
            if problem is None and letter.source is not None:
                problem = self._lineage_problem(letter, letter.source)
            if problem is not None:
                self._without_lineage(letter, problem)
            else:
                self.justification.letter(letter, self._letter_example(letter, letter.cause))
        self._redrives()

    def _without_lineage(self, letter: DeadLetter, problem: str) -> None:
        """One that names no input of this flow is a stranger's, and kept for ever: whoever set it
        aside has acknowledged it. One that names an input falsely stays broken."""
        marker = self.evidence.markers.get((letter.partition, letter.offset))
        name = "dead_letter_without_lineage"
        if letter.problem is None or marker is None or marker.state != "discarded":
            self.found.broken(name, self._letter_example(letter, problem))
            return
        by = self.evidence.discards.get(marker.entry_id, f"audit entry {marker.entry_id}")
        self.found.acknowledged(name, self._letter_example(letter, f"{problem}; discarded by {by}"))

    def _redrives(self) -> None:
        """What was redriven is there again, once."""
        there: set[tuple[str, int, int]] = set()
        for copy in self.evidence.redriven:
            source = copy.role, copy.partition, copy.source_offset
            if source in there and source in self.dead:
                self.found.broken(
                    "input_redriven_twice",
                    Example(
                        self.topic[copy.role], copy.partition, copy.offset, key_text(copy.key),
                        f"stands for offset {copy.source_offset}, as another record does",
                    ),
                )  # fmt: skip
            there.add(source)
        for (partition, offset), marker in self.evidence.markers.items():
            role, source_partition, _ = marker.source
            if (
                marker.state == "redriven"
                and marker.source not in there
                and (role, source_partition) not in self.cut.blind
                and not self.cut.may_be_deleted(role, source_partition, marker.at_ms)
            ):
                self.found.broken(
                    "redriven_input_missing",
                    Example(
                        self.topic["dead-letter-markers"], marker.partition, marker.offset, "",
                        f"letter {partition}:{offset}, {self._place(marker.source)}",
                    ),
                )  # fmt: skip

    def _unreadable(self, batch: Unreadable) -> None:
        """Whoever read that far has put the whole batch to the dead letters."""
        role, partition, first, last = batch[:4]
        letter = self.dead.get((role, partition, first))
        if letter is not None and letter.cause == UNREADABLE_BATCH:
            return
        told = Example(
            self.topic[role], partition, first, "",
            f"{batch.records} records, to offset {last}, which no client can decompress",
        )  # fmt: skip
        catalogue = self.evidence.catalogue
        stages = [
            stage
            for stage in self.cut.committed
            if any(spec.role == role for spec in catalogue.inputs(stage))
        ]
        if role == "settlements":
            booked = {} if self.ledger is None else self.ledger.offsets
            waits = booked.get((self.topic[role], partition), 0) <= last
        else:
            waits = any(not self.cut.processed(stage, role, partition, last) for stage in stages)
        if waits:
            self.found.pending("unreadable_batch", told)
        else:
            self.found.broken("unreadable_batch", told)

    def _lineage_problem(self, letter: DeadLetter, source: tuple[str, int, int]) -> str | None:
        role, partition, offset = source
        place = self._place(source)
        if role not in self.judged:
            return None
        if offset < self.cut.lows.get((role, partition), 0) or (role, partition) in self.cut.blind:
            return None
        odd = self.evidence.odd.get(source)
        batch = self.unreadable.get(source)
        if batch is not None:
            # Buried without its bytes where they do not fit.
            key, checksum = None, letter.checksum and batch.checksum
        elif letter.cause == UNREADABLE_BATCH and letter.to_offset is not None:
            key, checksum = None, letter.checksum
        elif odd is not None:
            key, checksum = odd.key, odd.checksum
        else:
            record = self._record_of(letter.key, source)
            if record is None:
                return f"names {place}, where no such record of this key is"
            key = letter.key
            checksum = record.checksum if isinstance(record, OrderSeen) else letter.checksum or 0
        left_out = letter.key is None and key is not None and len(key) > LETTER_KEY_BYTES_MAX
        if not left_out and not _kept_key(letter.key, key):
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
            "payment-commands": payment.commands,
            "gateway-notifications": payment.notifications,
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
        processed, waits = self.cut.processed, self.cut.waits
        return (
            all(processed("payments", "orders", o.partition, o.offset) for o in payment.orders)
            and all(
                processed("payments", "payment-commands", c.partition, c.offset)
                for c in payment.commands
            )
            and all(
                processed("payments", "gateway-notifications", n.partition, n.offset)
                for n in payment.notifications
            )
            and all(
                processed("payments", "gateway-results", r.partition, r.offset)
                for r in payment.results
            )
            and all(
                processed("payments", d.role, d.partition, d.offset)
                or waits(d.role, d.partition, d.offset)
                for d in payment.dues
            )
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
        if (
            not payment.orders
            and snapshot.status not in WITHOUT_ORDER_STATUSES
            and not is_unasked(payment)
            and not self.gone(payment, "orders")
        ):
            found.broken("payment_without_order", self.snapshot_example(payment, snapshot.status))
        self._waiting(payment, snapshot)
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
                self.snapshot_example(
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

    def _waiting(self, payment: PaymentEvidence, snapshot: SnapshotSeen) -> None:
        """What is not done has something on its way, or is named as waiting for somebody."""
        found, status = self.found, snapshot.status
        example = self.snapshot_example(payment, status)
        busy = [a for a in snapshot.attempts if a.state in UNDER_WAY]
        if snapshot.for_a_person or status == "risk_review":
            found.pending("waits_for_a_person", example)
        elif status == "requires_customer_action":
            found.pending("waits_for_the_customer", example)
        elif status == "awaiting_order" and self.settled(payment):
            found.pending("commands_wait_for_their_order", example)
        elif status in WAITING_STATUSES or busy:
            if (
                not self.settled(payment)
                or self._outstanding(payment)
                or self._being_counted(payment)
                or self._timed(payment)
            ):
                found.pending("order_without_outcome", example)
            elif status == "outcome_unknown":
                found.broken("unknown_left_behind", example)
            elif status == "processing":
                found.broken("processing_left_behind", example)
            else:
                found.broken(
                    "operation_left_behind",
                    self.snapshot_example(
                        payment, f"{busy[0].kind} {busy[0].operation_id} is {busy[0].state}"
                    ),
                )

    def _timed(self, payment: PaymentEvidence) -> bool:
        """Whether an attempt waits for a time: to be asked about what takes days, or to be given
        back to a gateway that is away."""
        return any(
            due.of_attempt
            and not self.cut.processed("payments", due.role, due.partition, due.offset)
            for due in payment.dues
        )

    def _being_counted(self, payment: PaymentEvidence) -> bool:
        """Whether the risk stage has still to answer for this order.

        What asks for a permit may wait in a card's row although its question was read.
        """
        snapshot = payment.snapshot
        if snapshot is not None and any(a.state == "permit_waiting" for a in snapshot.attempts):
            return True
        return any(
            check.about not in payment.answered
            and not self.cut.processed("risk", "risk-checks", check.partition, check.offset)
            for check in payment.checks
        )

    def _outstanding(self, payment: PaymentEvidence) -> list[RequestSeen]:
        """Requests without a result or dead letter, newest last. What was heard of one too late is
        not its result: that is told beside it."""
        answered = {each.identity for each in payment.results if not each.is_late_answer}
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
            and not self.gone(payment, "payment-events")
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
            if not self.gone(payment, "payment-events"):
                self.found.broken(
                    "snapshot_differs_from_events",
                    self.snapshot_example(payment, f"{snapshot.status}, and no event"),
                )
        elif (event.sequence, event.status) != (snapshot.sequence, snapshot.status):
            self.found.broken(
                "snapshot_differs_from_events",
                self.snapshot_example(
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
        if (
            requests
            and not payment.orders
            and not is_unasked(payment)
            and not self.gone(payment, "orders")
        ):
            found.broken(
                "request_without_order", self.request_example(payment, requests[0], "no order")
            )
        asked: set[tuple[str, str, int, int]] = set()
        snapshot = payment.snapshot
        for request in requests:
            if request.identity in asked:
                found.broken(
                    "request_duplicated",
                    self.request_example(payment, request, f"try {request.try_number} again"),
                )
            asked.add(request.identity)
            expected = None if snapshot is None else _asked_minor(snapshot, request)
            if (
                snapshot is not None
                and expected is not None
                and (
                    request.amount_minor,
                    request.currency,
                )
                != (expected, snapshot.currency)
            ):
                found.broken(
                    "request_amount_wrong",
                    self.request_example(
                        payment,
                        request,
                        f"{request.amount_minor} {request.currency} for a "
                        f"{request.operation_kind} of {expected} {snapshot.currency}",
                    ),
                )
        main = {
            (request.gateway, request.operation_id, request.attempt)
            for request in requests
            if request.operation_kind in MAIN_KINDS
        }
        answered: set[tuple[str, str, int, int]] = set()
        charged: dict[tuple[str, str, int], ResultSeen] = {}
        for result in results:
            if result.outcome == "dead_lettered" and not result.operation_id:
                # The word of a request that could not be read: nobody knows which.
                continue
            if result.identity in answered and not result.is_late_answer:
                found.broken(
                    "result_duplicated",
                    self.result_example(payment, result, f"try {result.try_number} again"),
                )
            if not result.is_late_answer:
                answered.add(result.identity)
            attempt = result.gateway, result.operation_id, result.attempt
            if (
                result.outcome == "succeeded"
                and (attempt in main or not requests)
                and not given_back(payment, result.operation_id, result.attempt)
            ):
                charged.setdefault(attempt, result)
            if (
                result.identity not in asked
                and self.cut.processed(
                    "payments", "gateway-results", result.partition, result.offset
                )
                and payment.home not in self.blind_lanes
                and not self.gone(payment, "payment-requests")
            ):
                found.broken(
                    "result_without_request",
                    self.result_example(
                        payment, result, f"attempt {result.attempt}, try {result.try_number}"
                    ),
                )
        if len(charged) > 1 and self.settled(payment):
            found.broken(
                "two_keys_charged",
                self.result_example(
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
        if self.gone(payment, "gateway-results"):
            return
        for request in outstanding:
            if self.cut.processed("gateway", "payment-requests", request.partition, request.offset):
                self.found.broken(
                    "request_without_result",
                    self.request_example(
                        payment,
                        request,
                        f"{request.kind}, attempt {request.attempt}, try {request.try_number}",
                    ),
                )
        # Several tries of one attempt, or two charges: nobody may ask before the last one is known.
        # A webhook may have been faster than an answer, which then is of no consequence; one that
        # says "pending" leads to the question what became of it, while the answer is still to come.
        # So may what a call heard that was given up, whose request is read again meanwhile.
        heard = {result.identity for result in payment.results}
        outstanding = [request for request in outstanding if request.identity not in heard]
        identities = {
            request.identity
            for request in outstanding
            if request.operation_kind in MAIN_KINDS and not payment.own_notifications
        }
        told = {notice.operation_id for notice in payment.own_notifications}
        tries = Counter(
            identity[:3]
            for identity in {request.identity for request in outstanding}
            if identity[1] not in told
        )
        most = max(len(identities), max(tries.values(), default=0))
        if most > 1:
            self.found.broken(
                "more_than_one_request_in_flight",
                self.request_example(payment, outstanding[-1], f"{most} requests without a result"),
            )

    def settlements(self, payment: PaymentEvidence) -> None:
        """What the payment says has moved is settled once, and rests on somebody's word."""
        found, snapshot, settlements = self.found, payment.snapshot, payment.settlements
        if settlements and (
            not payment.orders
            and not all(settlement.kind == "credit" for settlement in settlements)
            and not is_unasked(payment)
            and not self.gone(payment, "orders")
        ):
            found.broken(
                "settlement_without_order",
                self.settlement_example(payment, settlements[0], "no order"),
            )
        unique: dict[tuple[str, str], SettlementSeen] = {}
        for settlement in settlements:
            self.settlement_lanes.setdefault(settlement.settlement_id, (payment, settlement))
            movement = settlement.operation_id, settlement.kind
            if movement in unique:
                found.broken(
                    "settlement_duplicated",
                    self.settlement_example(
                        payment, settlement, f"{settlement.kind} {settlement.settlement_id} again"
                    ),
                )
            unique[movement] = settlement
            if (
                payment.home not in self.blind_lanes
                and not any(self.gone(payment, role) for role in EVIDENCE_ROLES)
                and not evidenced(payment, settlement)
            ):
                found.broken(
                    "settlement_without_evidence",
                    self.settlement_example(
                        payment,
                        settlement,
                        f"nobody names {settlement.gateway} {settlement.gateway_reference}",
                    ),
                )
        if not self.settled(payment) or self.gone(payment, "settlements"):
            return
        if snapshot is None:
            if settlements:
                found.broken(
                    "settlement_without_captured_payment",
                    self.settlement_example(payment, settlements[0], "no payment"),
                )
            return
        for kinds, expected_minor, what in (
            (("capture",), snapshot.captured_minor, "captured"),
            (REFUNDS, -snapshot.refunded_minor, "refunded"),
            (("dispute", "reversal"), -snapshot.withdrawn_minor, "withdrawn for disputes"),
            (("dispute_fee",), -snapshot.dispute_fee_minor, "kept as dispute fees"),
        ):
            movements = [s for s in unique.values() if s.movement in kinds]
            self._settled_sum(payment, snapshot, movements, expected_minor, what)
        captured = snapshot.captured_minor or any(
            each.movement == "capture" for each in unique.values()
        )
        if snapshot.status == "captured" and not captured:
            found.broken("settlement_missing", self.snapshot_example(payment, "captured"))

    def _settled_sum(
        self,
        payment: PaymentEvidence,
        snapshot: SnapshotSeen,
        movements: Sequence[SettlementSeen],
        expected_minor: int,
        what: str,
    ) -> None:
        """The settlements of one kind come to what the payment says."""
        sums: Counter[str] = Counter()
        for settlement in movements:
            sums[settlement.currency] += settlement.amount_minor
        if not movements:
            if expected_minor:
                self.found.broken(
                    "settlement_missing",
                    self.snapshot_example(
                        payment, f"{what} {abs(expected_minor)} {snapshot.currency}"
                    ),
                )
        elif what == "captured" and not expected_minor:
            self.found.broken(
                "settlement_without_captured_payment",
                self.settlement_example(payment, movements[0], f"the payment is {snapshot.status}"),
            )
        elif {c: s for c, s in sums.items() if s} != (
            {snapshot.currency: expected_minor} if expected_minor else {}
        ):
            self.found.broken(
                "settlement_amount_wrong",
                self.settlement_example(
                    payment,
                    movements[-1],
                    f"{sum(sums.values())} {movements[-1].currency} in all, {what} were "
                    f"{abs(expected_minor)} {snapshot.currency}",
                ),
            )

    # All payments together

    def references(self) -> None:
        """What a gateway moved once, under one id of its own, is settled once."""
        for payment, settlement, other in settled_twice(self.payments.values()):
            self.found.broken(
                "reference_settled_twice",
                self.settlement_example(
                    payment,
                    settlement,
                    f"{settlement.gateway} {settlement.gateway_reference} is {other}'s as well",
                ),
            )

    def money(self) -> None:
        """Per currency: ordered = captured (by settlements) + what ended, waits or is left.

        Over settled payments, whose order and settlements cannot have been deleted.
        """
        ordered: Counter[str] = Counter()
        accounted: Counter[str] = Counter()
        worst: tuple[PaymentEvidence, OrderSeen] | None = None
        differing = 0
        for payment in self.payments.values():
            accepted = self.accepted_orders(payment)
            if (
                not accepted
                or not self.settled(payment)
                or self.gone(payment, "settlements")
                or self.gone(payment, "orders")
            ):
                continue
            first, snapshot = accepted[0], payment.snapshot
            mine: Counter[str] = Counter()
            if snapshot is not None:
                for settlement in payment.settlements:
                    # What came too late is given back whole, and was never part of the order.
                    if settlement.kind == "capture" and not is_late(payment, settlement):
                        mine[settlement.currency] += settlement.amount_minor
                rejected = snapshot.status == "rejected"
                late_minor = sum(
                    s.amount_minor
                    for s in payment.settlements
                    if s.kind == "capture" and is_late(payment, s)
                )
                rest_minor = snapshot.amount_minor - (snapshot.captured_minor - late_minor)
                if rest_minor:
                    mine[first.currency if rejected else snapshot.currency] += rest_minor
            ordered[first.currency] += first.amount_minor
            for currency, amount_minor in mine.items():
                accounted[currency] += amount_minor
            mine = Counter({c: amount for c, amount in mine.items() if amount})
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

    def unasked(self, key: str, charge: ChargeSeen, payment: PaymentEvidence | None) -> None:
        if charge.recent:
            return
        home = payment.home if payment else None
        if home in self.blind_lanes or (home is None and self.blind_lanes):
            return
        if payment is not None and self.gone(payment, "payment-requests"):
            return
        if payment is None and any(
            self.cut.may_be_deleted("payment-requests", p, charge.created_at_ms)
            for p in range(self.cut.partitions.get("payment-requests", 0))
        ):
            return
        self.found.broken(
            "charge_without_payment",
            self.charge_example(key, charge, f"no request has the reference {charge.reference}"),
        )

    # Examples

    def gone(self, payment: PaymentEvidence, role: str) -> bool:
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

    def snapshot_example(self, payment: PaymentEvidence, detail: str) -> Example:
        snapshot = payment.snapshot
        return Example(
            self.topic["payments"],
            None if snapshot is None else snapshot.partition,
            None if snapshot is None else snapshot.offset,
            payment.key,
            detail,
        )

    def request_example(
        self, payment: PaymentEvidence, request: RequestSeen, detail: str
    ) -> Example:
        return Example(
            self.topic["payment-requests"], request.partition, request.offset, payment.key, detail
        )

    def result_example(self, payment: PaymentEvidence, result: ResultSeen, detail: str) -> Example:
        return Example(
            self.topic["gateway-results"], result.partition, result.offset, payment.key, detail
        )

    def settlement_example(
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
    def charge_example(key: str, charge: ChargeSeen, detail: str) -> Example:
        return Example("gateway", None, None, key, f"{charge.id}: {detail}")


def _asked_minor(snapshot: SnapshotSeen, request: RequestSeen) -> int | None:
    """What the request should ask for: the payment's amount, or its operation's own."""
    if request.operation_kind in MAIN_KINDS:
        return snapshot.amount_minor
    for attempt in snapshot.attempts:
        if (attempt.operation_id, attempt.attempt) == (request.operation_id, request.attempt):
            return attempt.amount_minor or snapshot.amount_minor
    # The payment has not reached it yet in what was read.
    return None


def _without(payment: PaymentEvidence, source: tuple[str, int, int]) -> PaymentEvidence:
    """The same evidence without one input."""
    role, partition, offset = source
    place = partition, offset
    return replace(
        payment,
        **{
            field: tuple(
                record
                for record in getattr(payment, field)
                if (record.partition, record.offset) != place
                or (field == "dues" and record.role != role)
            )
            for field in (_INPUTS.get(role, "dues"),)
        },
    )


# Where the evidence keeps the records of a topic; those of the waits are together.
_INPUTS = {
    "orders": "orders",
    "payment-commands": "commands",
    "gateway-notifications": "notifications",
    "payment-requests": "requests",
    "gateway-results": "results",
    "settlements": "settlements",
}


def _kept_key(kept: bytes | None, given: bytes | None) -> bool:
    """Whether a letter's key is its input's, or what masking card numbers leaves of it."""
    if kept is None or given is None or len(kept) != len(given):
        return kept == given
    return all(
        a == b or (a == b"*"[0] and chr(b).isdecimal()) for a, b in zip(kept, given, strict=True)
    )
