"""What payouts must come to, known without the code that decides about them.

Told of what was received, of each decision and what is published with it (the payout as it stands,
the audit's entry) as readers of the topics see them, and of what the bank was handed and did. Looks
at the ledger's rows by its own SQL.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, text

from pipeline.ledger.seals import booked_entries
from tests.simulation.violation import Violation

# The last state of a payout, by the kind of its newest decision.
STATES = {
    "payout_created": "created",
    "payout_approved": "approved",
    "payout_withdrawn": "withdrawn",
    "payout_submitted": "submitted",
    "payout_paid": "paid",
    "payout_returned": "returned",
    "payout_unknown": "unknown",
}


class PayoutBooks:
    def __init__(self) -> None:
        self._received: Counter[str] = Counter()
        # Decisions as the topic has them.
        self._events: dict[str, dict[str, Any]] = {}
        self._kinds: dict[str, list[str]] = {}
        self._created: dict[str, dict[str, Any]] = {}
        self._creators: dict[str, str] = {}
        self._approvers: dict[str, str] = {}
        # What is published with a decision, by its number: markers of one transaction land apart,
        # so it may be seen before the decision and after it.
        self._rows: dict[int, tuple[str, str, int, str, int, str, str, str]] = {}
        self._entries_told: dict[int, tuple[str, str, str, str]] = {}
        # At the bank: what left, and what of it came back.
        self._messages: set[str] = set()
        self._out: dict[str, tuple[str, int]] = {}
        self._back: set[str] = set()

    def received(self, merchant: str, amount_minor: int) -> None:
        """Somebody is going to book funds of a merchant as available."""
        self._received[merchant] += amount_minor

    def decided(self, event: Mapping[str, Any]) -> None:
        """A decision can be read in the topic."""
        if event["event_id"] in self._events:
            raise Violation("decided_twice", f"{event['kind']} {event['sequence']}")
        if event["sequence"] != len(self._events) + 1:
            raise Violation(
                "decision_missing", f"{event['sequence']} comes after {len(self._events)}"
            )
        self._events[event["event_id"]] = dict(event)
        kind = event["kind"]
        if kind not in STATES:
            return
        body = json.loads(event["body"])
        payout_id = body["payout_id"]
        self._kinds.setdefault(payout_id, []).append(kind)
        if kind == "payout_created":
            self._created[payout_id] = body
            self._creators[payout_id] = event["actor"]
        elif kind == "payout_approved":
            self._approvers[payout_id] = event["actor"]

    def stands(self, key: bytes | None, payout: Mapping[str, Any]) -> None:
        """A payout as it stands after a decision can be read in the topic."""
        merchant, sequence = payout["merchant_id"], payout["sequence"]
        if sequence in self._rows:
            raise Violation("payout_told_twice", f"{payout['payout_id']} after {sequence}")
        if key != f"{merchant}:{payout['currency']}".encode():
            raise Violation("payout_wrongly_keyed", f"{payout['payout_id']} under {key!r}")
        self._rows[sequence] = (
            payout["payout_id"], payout["state"], payout["version"], merchant,
            payout["amount_minor"], payout["created_by"], payout["approved_by"], payout["actor"],
        )  # fmt: skip

    def audited(self, entry: Mapping[str, Any]) -> None:
        """An entry about a payout can be read in the audit."""
        detail = json.loads(entry["detail"])
        if detail["decision"] in self._entries_told:
            raise Violation("payout_audited_twice", f"{entry['subject']} {detail['decision']}")
        self._entries_told[detail["decision"]] = (
            entry["subject"], entry["action"], entry["actor"], detail["state"],
        )  # fmt: skip

    def is_told(self, payout_id: str, kind: str) -> bool:
        return kind in self._kinds.get(payout_id, ())

    def taken(
        self, message_id: str, transfers: Iterable[tuple[str, str, int]]
    ) -> list[tuple[str, int]]:
        """The bank is handed a message; what it pays of it, which is nothing of one it knows."""
        if message_id in self._messages:
            return []
        self._messages.add(message_id)
        paid = []
        for payout_id, merchant, amount_minor in transfers:
            self._pays(payout_id, merchant, amount_minor)
            paid.append((payout_id, amount_minor))
        return paid

    def _pays(self, payout_id: str, merchant: str, amount_minor: int) -> None:
        if payout_id in self._out:
            raise Violation("paid_out_twice", payout_id)
        creator, approver = self._creators.get(payout_id), self._approvers.get(payout_id)
        if creator is None or approver is None or _plain(creator) == _plain(approver):
            raise Violation("paid_out_by_one_person", f"{payout_id}: {creator}, {approver}")
        if "payout_withdrawn" in self._kinds[payout_id]:
            raise Violation("paid_out_withdrawn", payout_id)
        self._out[payout_id] = (merchant, amount_minor)
        gone_minor = sum(
            minor
            for each, (whose, minor) in self._out.items()
            if whose == merchant and each not in self._back
        )
        if gone_minor > self._received[merchant]:
            raise Violation(
                "paid_out_too_much",
                f"{merchant}: {gone_minor} of {self._received[merchant]} that were received",
            )

    def said(self, payout_id: str, word: str | None) -> None:
        """The bank has come to something, and will tell."""
        if word == "returned":
            self._back.add(payout_id)

    # At rest ------------------------------------------------------------------------------------

    def balances(self) -> dict[str, int]:
        """Debits less credits of the accounts that payouts move."""
        wanted: Counter[str] = Counter()
        for merchant, amount_minor in self._received.items():
            wanted[f"merchant_payable:{merchant}"] += amount_minor
            wanted[f"merchant_available:{merchant}"] -= amount_minor
        for payout_id, body in self._created.items():
            merchant, amount_minor = body["merchant_id"], body["amount_minor"]
            if payout_id in self._back or self.is_told(payout_id, "payout_withdrawn"):
                continue
            wanted[f"merchant_available:{merchant}"] += amount_minor
            gone = payout_id in self._out
            wanted["bank:main" if gone else f"payouts_in_transit:{merchant}"] -= amount_minor
        return {name: balance for name, balance in wanted.items() if balance}

    def at_rest(self, connection: Connection) -> None:
        for payout_id, kinds in self._kinds.items():
            state = STATES[kinds[-1]]
            if payout_id in self._out:
                wanted = "returned" if payout_id in self._back else "paid"
                if state != wanted:
                    raise Violation("payout_not_the_banks", f"{payout_id} {state}, not {wanted}")
            elif state not in ("created", "approved", "withdrawn"):
                raise Violation("payout_not_the_banks", f"{payout_id} {state}, the bank has none")
        self._rows_and_audit()
        self._entries(connection)
        self._seals(connection)

    def _rows_and_audit(self) -> None:
        """Each decision about a payout has its row in the topic and its entry in the audit, which
        say what it made of the payout and who made it."""
        versions: Counter[str] = Counter()
        approvers: dict[str, str] = {}
        rows: dict[int, tuple[str, str, int, str, int, str, str, str]] = {}
        entries: dict[int, tuple[str, str, str, str]] = {}
        # In their order: ``decided`` takes no other.
        for event in self._events.values():
            kind, actor = event["kind"], event["actor"]
            if kind not in STATES:
                continue
            payout_id = json.loads(event["body"])["payout_id"]
            versions[payout_id] += 1
            if kind == "payout_approved":
                approvers[payout_id] = actor
            created = self._created[payout_id]
            # One that is withdrawn stands as what came back does: its funds are available again.
            state = "returned" if kind == "payout_withdrawn" else STATES[kind]
            rows[event["sequence"]] = (
                payout_id, state, versions[payout_id], created["merchant_id"],
                created["amount_minor"], self._creators[payout_id],
                approvers.get(payout_id, ""), actor,
            )  # fmt: skip
            entries[event["sequence"]] = (f"payout/{payout_id}", kind, actor, state)
        if self._rows != rows:
            raise Violation("payouts_not_the_decisions", _differing(self._rows, rows))
        if self._entries_told != entries:
            raise Violation(
                "payout_audit_not_the_decisions", _differing(self._entries_told, entries)
            )

    def _entries(self, connection: Connection) -> None:
        """Each decision that moves money has its entry, once, and the reverse."""
        wanted = Counter(
            event_id
            for event_id, event in self._events.items()
            if event["kind"] == "entry" or json.loads(event["body"]).get("entry")
        )
        booked = Counter(
            row[0]
            for row in connection.execute(
                text("SELECT operation_id FROM journal_entries WHERE settlement_id = ''")
            )
        )
        if booked != wanted:
            raise Violation(
                "decisions_not_the_entries",
                f"missing {sorted((wanted - booked).elements())}, "
                f"more {sorted((booked - wanted).elements())}",
            )
        decided = {
            row[0]
            for row in connection.execute(
                text("SELECT event_id FROM ledger_decisions WHERE published_offset IS NOT NULL")
            )
        }
        if decided != set(self._events):
            raise Violation("decisions_not_the_topic", f"{len(decided)} of {len(self._events)}")

    def _seals(self, connection: Connection) -> None:
        """Every entry is sealed once, in the order of the log, each seal made of the one before."""
        sealed = 0
        chains = connection.execute(text("SELECT chain_id, topic, partition FROM chains")).all()
        for chain_id, topic, partition in chains:
            rows = connection.execute(
                text(
                    "SELECT position, entry_number, hash FROM entry_seals "
                    "WHERE chain_id = :chain ORDER BY position"
                ),
                {"chain": chain_id},
            ).all()
            before = b"\0" * 32
            entries = list(booked_entries(connection, topic, partition))
            if [row[1] for row in rows] != [each.entry_number for each in entries]:
                raise Violation("seals_not_the_entries", f"{topic}[{partition}]")
            for position, (row, entry) in enumerate(zip(rows, entries, strict=True), 1):
                before = hashlib.sha256(before + entry.content).digest()
                if row[0] != position or bytes(row[2]) != before:
                    raise Violation("seal_broken", f"{topic}[{partition}] at {position}")
            sealed += len(rows)
        count = connection.execute(text("SELECT count(*) FROM journal_entries")).scalar_one()
        if sealed != count:
            raise Violation("not_all_sealed", f"{sealed} of {count} entries")


def _differing(found: Mapping[int, Any], wanted: Mapping[int, Any]) -> str:
    return ", ".join(
        f"{number}: {found.get(number)}, not {wanted.get(number)}"
        for number in sorted({*found, *wanted})
        if found.get(number) != wanted.get(number)
    )


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()
