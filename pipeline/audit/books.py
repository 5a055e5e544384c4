"""The ledger against the log: one entry for each settlement, as the kind, the terms and the closed
periods make it; entries of decisions; balances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.audit import clearings
from pipeline.audit.amounts import amount_text
from pipeline.audit.evidence import PaymentEvidence, SettlementSeen
from pipeline.audit.ledger_copy import EntrySeen, LedgerCopy
from pipeline.audit.payouts import wrong_payouts
from pipeline.audit.postings import expected_postings
from pipeline.audit.report import Example
from pipeline.audit.terms import (
    CaptureBooked,
    Decisions,
    DecisionSeen,
    Lines,
    Movement,
    PaymentTerms,
    RefundBooked,
    decided_entry,
    next_day,
    tier_corrections,
    tier_returns,
)

if TYPE_CHECKING:
    from pipeline.audit.checks import Judgement

_TRUE_UP = "fee_true_up"
_RETURNED = "fee_true_up_returned"


class LedgerChecks:
    """``all`` once; findings go to the judgement's."""

    def __init__(self, judgement: Judgement, ledger: LedgerCopy) -> None:
        self.found = judgement.found
        self.cut = judgement.cut
        self.dead = judgement.dead
        self.topic = judgement.topic
        self.judgement = judgement
        self.ledger = ledger
        self.settlement_lanes = judgement.settlement_lanes
        seen = judgement.evidence.decisions.values()
        self.decisions = Decisions(tuple(sorted(seen, key=lambda each: each.sequence)))
        # What each settlement's entry says beside its movement, where there are terms at all.
        self.expected: dict[str, tuple[str, Lines]] = {}

    def all(self) -> None:
        self.entries()
        self.of_decisions()
        self.waiting_decisions()
        self.payouts()
        self.balances()

    def entries(self) -> None:
        """One entry for each settlement below the ledger's offset, and none for anything else."""
        ledger = self.ledger
        booked: dict[str, EntrySeen] = {}
        for entry in ledger.entries:
            if entry.source_topic == self.topic["ledger-events"]:
                continue
            if entry.settlement_id in booked:
                self.found.broken(
                    "journal_entry_duplicated",
                    _example(entry, f"again of {entry.settlement_id}"),
                )
                continue
            booked[entry.settlement_id] = entry
        self._expect(booked)
        for entry in ledger.entries:
            place = entry.source_topic, entry.source_partition
            if entry.source_offset >= ledger.offsets.get(place, 0):
                self.found.broken(
                    "journal_entry_beyond_offset",
                    _example(
                        entry,
                        f"booked from {place[0]}[{place[1]}]@{entry.source_offset}, but the "
                        f"ledger's offset is {ledger.offsets.get(place, 0)}",
                    ),
                )
        for entry in booked.values():
            seen = self.settlement_lanes.get(entry.settlement_id)
            if seen is not None:
                self._entry_against(entry, *seen)
            elif not self._source_unreadable(entry):
                self.found.broken(
                    "journal_entry_without_settlement",
                    _example(entry, f"no settlement {entry.settlement_id or '?'}"),
                )
        for payment, settlement in self.settlement_lanes.values():
            if settlement.settlement_id in booked:
                continue
            example = self.judgement.settlement_example(
                payment, settlement, settlement.settlement_id
            )
            if ("settlements", settlement.partition, settlement.offset) in self.dead:
                # Refused by the ledger: the money has moved and is not in the books.
                self.found.broken("settlement_without_journal_entry", example)
                continue
            place = self.topic["settlements"], settlement.partition
            if settlement.offset < ledger.offsets.get(place, 0):
                self.found.broken("settlement_without_journal_entry", example)
            else:
                self.found.pending("settlement_without_journal_entry", example)

    def _expect(self, booked: dict[str, EntrySeen]) -> None:
        """Walk each payment that was ever under terms, in the order of the log."""
        if not self.decisions.schedules():
            return
        for payment in self.judgement.payments.values():
            terms = PaymentTerms(self.decisions)
            merchant = payment.key.partition(":")[0]
            for settlement in sorted(payment.settlements, key=lambda each: each.offset):
                known = settlement.settlement_id
                if known not in booked or known in self.expected:
                    continue
                self.expected[known] = terms.take(
                    Movement(
                        settlement.kind,
                        merchant,
                        settlement.gateway,
                        settlement.currency,
                        settlement.amount_minor,
                        settlement.payment_method,
                        settlement.settled_at_ms,
                    )
                )

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
                _example(
                    entry,
                    "names {}[{}]@{}, its settlement is {}[{}]@{}".format(*booked_from, *source),
                ),
            )
        name, extra = self.expected.get(settlement.settlement_id, ("", Counter()))
        day = self.decisions.later_day(
            settlement.business_date, settlement.partition, settlement.offset
        )
        if entry.booked_date != day:
            self.found.broken(
                "journal_entry_day_wrong",
                _example(
                    entry,
                    f"counts under {entry.booked_date or 'its own day'}, should under "
                    f"{day or 'its own'}",
                ),
            )
        # Under terms the first two lines are the movement, those after it fees and costs.
        priced = bool(name or entry.terms)
        movement = entry.postings[:2] if priced else entry.postings
        moved: Counter[str] = Counter()
        lines: Lines = Counter()
        for posting in movement:
            moved[posting.currency] += max(0, posting.amount_minor)
            lines[posting.account, posting.currency] += posting.amount_minor
        if dict(moved) != {settlement.currency: abs(settlement.amount_minor)}:
            booked = ", ".join(amount_text(minor, currency) for currency, minor in moved.items())
            self.found.broken(
                "journal_entry_amount_wrong",
                _example(
                    entry,
                    f"{booked or 'nothing'} booked, the settlement of {payment.key} says "
                    f"{amount_text(settlement.amount_minor, settlement.currency)}",
                ),
            )
            return
        expected = expected_postings(
            settlement.kind,
            settlement.amount_minor,
            settlement.currency,
            settlement.gateway,
            payment.key.partition(":")[0],
        )
        if expected is not None and dict(lines) != expected:
            debits = ", ".join(account for (account, _), minor in lines.items() if minor > 0)
            self.found.broken(
                "journal_entry_accounts_wrong",
                _example(entry, f"a {settlement.kind} of {payment.key} debits {debits}"),
            )
        elif priced:
            self._fees_against(entry, settlement, name, extra)

    def _fees_against(
        self, entry: EntrySeen, settlement: SettlementSeen, name: str, extra: Lines
    ) -> None:
        place = "settlements", settlement.partition
        if self.cut.lows.get(place, 0) and settlement.kind != "capture":
            # What it was worked out from may be deleted.
            return
        version = entry.terms.partition("/")[0]
        if version and self.decisions.schedule(int(version)) is None:
            self.found.pending(
                "journal_entry_fees_wrong",
                _example(entry, f"its schedule {version} is not published yet"),
            )
            return
        found: Lines = Counter()
        for posting in entry.postings[2:]:
            found[posting.account, posting.currency] += posting.amount_minor
        if entry.terms == name and _plain(found) == _plain(extra):
            return
        if entry.terms != name:
            detail = f"by the terms {entry.terms or 'of nobody'}, should be {name or 'by none'}"
        else:
            detail = f"{_said(found)}; the terms {name} make {_said(extra)}"
        self.found.broken("journal_entry_fees_wrong", _example(entry, detail))

    def of_decisions(self) -> None:
        """Entries that no settlement books: each follows from a decision, and none is missing."""
        at = {(d.partition, d.offset): d for d in self.decisions.seen}
        topic = self.topic["ledger-events"]
        true_ups: dict[int, Counter[tuple[str, str, str, str]]] = {}
        returned: dict[int, Counter[tuple[str, str, str, str]]] = {}
        by_hand: Counter[int] = Counter()
        cleared: dict[int, dict[str, Lines]] = {}
        for entry in self.ledger.entries:
            if entry.source_topic != topic:
                continue
            decision = at.get((entry.source_partition, entry.source_offset))
            lines: Lines = Counter()
            for posting in entry.postings:
                lines[posting.account, posting.currency] += posting.amount_minor
            if decision is not None and entry.kind == _TRUE_UP and decision.kind == "period_close":
                made = true_ups.setdefault(decision.sequence, Counter())
                for (account, currency), minor in lines.items():
                    if account == f"merchant_payable:{entry.merchant_id}":
                        made[entry.business_date[:7], entry.merchant_id, currency, entry.terms] += (
                            minor
                        )
                continue
            if decision is not None and entry.kind == _RETURNED and decision.kind == "period_close":
                back = returned.setdefault(decision.sequence, Counter())
                month = entry.entry_id.removeprefix(
                    f"{_RETURNED}:{decision.event_id}:{entry.merchant_id}:{entry.business_date}:"
                )[:7]
                for (account, currency), minor in lines.items():
                    if account == f"merchant_payable:{entry.merchant_id}":
                        back[month, entry.merchant_id, currency, entry.terms] += minor
                continue
            if decision is not None and decision.kind in clearings.KINDS:
                cleared.setdefault(decision.sequence, {})[entry.entry_id] = lines
                continue
            held = None if decision is None else decided_entry(decision)
            if (
                decision is None
                or held is None
                or not self._as_decided(entry, lines, decision.sequence, held)
            ):
                self.found.broken(
                    "journal_entry_without_decision",
                    _example(entry, f"nothing at {topic}[{entry.source_partition}]"
                             f"@{entry.source_offset} decides this"),
                )  # fmt: skip
                continue
            by_hand[decision.sequence] += 1
        self._corrections(true_ups, returned)
        self._clearings(cleared)
        for decision in self.decisions.seen:
            place = topic, decision.partition
            below = decision.offset < self.ledger.offsets.get(place, 0)
            held = decided_entry(decision)
            if held is not None and below and by_hand[decision.sequence] != 1:
                self.found.broken(
                    "journal_entry_without_decision",
                    Example(topic, decision.partition, decision.offset, decision.event_id,
                            f"booked {by_hand[decision.sequence]} times"),
                )  # fmt: skip

    def _clearings(self, found: Mapping[int, Mapping[str, Lines]]) -> None:
        """What rows of reports and lines of the bank have posted, against what they say."""
        topic = self.topic["ledger-events"]
        booked = {e.entry_id: e for e in self.ledger.entries}
        settled = {e.settlement_id: e for e in self.ledger.entries if e.settlement_id}
        for decision in self.decisions.seen:
            place = topic, decision.partition
            if decision.kind not in clearings.KINDS:
                continue
            if decision.offset >= self.ledger.offsets.get(place, 0):
                continue
            wanted = clearings.expected_entries(decision, settled, booked)
            made = found.get(decision.sequence, {})
            if wanted is None:
                detail = "it clears what is not booked"
            else:
                wrong = sorted(
                    name
                    for name in {*wanted, *made}
                    if _plain(made.get(name, Counter())) != _plain(wanted.get(name, Counter()))
                )
                if not wrong:
                    continue
                detail = f"{len(wrong)} entries are not as it says, the first {wrong[0]}"
            self.found.broken(
                "clearing_wrong",
                Example(topic, decision.partition, decision.offset, decision.event_id, detail),
            )

    def _as_decided(
        self, entry: EntrySeen, lines: Lines, sequence: int, body: Mapping[str, Any]
    ) -> bool:
        wanted: Lines = Counter()
        for account, currency, minor in body["postings"]:
            wanted[_booked_name(account), currency] += minor
        closed = max(
            (d.body["through"] for d in self.decisions.seen
             if d.kind == "period_close" and d.sequence < sequence), default="",
        )  # fmt: skip
        day = next_day(closed) if body["business_date"] <= closed else ""
        return (
            _plain(lines) == _plain(wanted)
            and entry.kind == body["kind"]
            and entry.merchant_id == body["merchant_id"]
            and entry.business_date == body["business_date"]
            and entry.booked_date == day
        )

    def _corrections(
        self,
        found: dict[int, Counter[tuple[str, str, str, str]]],
        returned: dict[int, Counter[tuple[str, str, str, str]]],
    ) -> None:
        closes = [d for d in self.decisions.seen if d.kind == "period_close"]
        if not closes:
            return
        payments = {
            settlement_id: payment.key
            for settlement_id, (payment, _) in self.settlement_lanes.items()
        }

        def payment_of(entry: EntrySeen) -> str:
            # Where retention has deleted its settlement, the journal says whose it is.
            known = payments.get(entry.settlement_id)
            return f"{entry.merchant_id}:{entry.order_id}" if known is None else known

        captures = [
            CaptureBooked(
                entry.booked_date or entry.business_date,
                entry.merchant_id,
                entry.postings[0].currency,
                entry.terms,
                entry.postings[0].amount_minor,
                payment_of(entry),
            )
            for entry in self.ledger.entries
            if entry.kind == "capture" and entry.terms and entry.postings
        ]
        captures.sort(key=lambda each: each.day[:7])
        refunds = [
            RefundBooked(
                entry.booked_date or entry.business_date,
                payment_of(entry),
                -entry.postings[0].amount_minor,
            )
            for entry in self.ledger.entries
            if entry.kind in ("refund", "refund_failed", "external_refund") and entry.postings
        ]
        given: Counter[tuple[str, str, str, str]] = Counter()
        done: Counter[tuple[str, str, str, str]] = Counter()
        topic = self.topic["ledger-events"]
        for close in closes:
            if close.offset >= self.ledger.offsets.get((topic, close.partition), 0):
                # Published, and not booked when the ledger was read.
                continue
            wanted = tier_corrections(self.decisions, close, captures)
            self._require_made(close, wanted, found.get(close.sequence, Counter()), "")
            given.update(wanted)
            back = tier_returns(close, self.decisions, given, captures, refunds)
            more = Counter({key: minor - done[key] for key, minor in back.items()})
            done.update(more)
            self._require_made(close, more, returned.get(close.sequence, Counter()), " returned")

    def _require_made(
        self,
        close: DecisionSeen,
        wanted: Counter[tuple[str, str, str, str]],
        made: Counter[tuple[str, str, str, str]],
        what: str,
    ) -> None:
        topic = self.topic["ledger-events"]
        for key in sorted({*wanted, *made}):
            if wanted[key] != made[key]:
                month, merchant, currency, terms = key
                self.found.broken(
                    "tier_correction_wrong",
                    Example(topic, close.partition, close.offset, merchant,
                            f"{month} {terms}{what}: booked {amount_text(made[key], currency)}, "
                            f"should be {amount_text(wanted[key], currency)}"),
                )  # fmt: skip

    def waiting_decisions(self) -> None:
        """What is decided and not booked: here, or in the topic alone."""
        for waiting in self.ledger.waiting:
            self.found.pending(
                "decision_not_booked",
                Example("ledger", None, None, f"decision {waiting.sequence}",
                        f"{waiting.kind} by {waiting.actor}; `paystream ledger publish` takes it "
                        "further, or says what is in its way"),
            )  # fmt: skip
        known = {waiting.event_id for waiting in self.ledger.waiting}
        topic = self.topic["ledger-events"]
        for decision in self.decisions.seen:
            beyond = decision.offset >= self.ledger.offsets.get((topic, decision.partition), 0)
            if beyond and decision.event_id not in known:
                self.found.pending(
                    "decision_not_booked",
                    Example(topic, decision.partition, decision.offset, decision.event_id,
                            f"decision {decision.sequence}, {decision.kind} by {decision.actor}, "
                            "is published and not in the ledger"),
                )  # fmt: skip

    def payouts(self) -> None:
        """What was decided about payouts, whether or not it is booked."""
        topic = self.topic["ledger-events"]
        for decision, why in wrong_payouts(self.decisions.seen):
            self.found.broken(
                "payout_decision_wrong",
                Example(topic, decision.partition, decision.offset, decision.event_id, why),
            )

    def balances(self) -> None:
        """Each entry is zero in each currency, and balances are the sums of postings."""
        debits: Counter[tuple[str, str]] = Counter()
        credits: Counter[tuple[str, str]] = Counter()
        for entry in self.ledger.entries:
            balance: Counter[str] = Counter()
            for posting in entry.postings:
                amount_minor = posting.amount_minor
                balance[posting.currency] += amount_minor
                side = debits if amount_minor > 0 else credits
                side[posting.account, posting.currency] += abs(amount_minor)
            if not entry.postings:
                self.found.broken("journal_unbalanced", _example(entry, "it has no postings"))
            for currency, difference in balance.items():
                if difference:
                    self.found.broken(
                        "journal_unbalanced",
                        _example(
                            entry, f"debits less credits are {amount_text(difference, currency)}"
                        ),
                    )
        for place in sorted({*debits, *credits, *self.ledger.balances}):
            stored, summed = (
                self.ledger.balances.get(place, (0, 0)),
                (debits[place], credits[place]),
            )
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


def _example(entry: EntrySeen, detail: str) -> Example:
    return Example("ledger", None, None, entry.entry_id, detail)


def _booked_name(account: str) -> str:
    """No database holds what is no UTF-8: it is written out there."""
    return account.encode("utf-8", "backslashreplace").decode()


def _plain(lines: Lines) -> dict[tuple[str, str], int]:
    return {key: minor for key, minor in lines.items() if minor}


def _said(lines: Lines) -> str:
    shown = [
        f"{account} {amount_text(minor, cur)}" for (account, cur), minor in lines.items() if minor
    ]
    return ", ".join(shown) or "no fees"
