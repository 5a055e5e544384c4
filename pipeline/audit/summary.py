"""What the flow has done, in numbers: counts, sums and latencies of everything that was read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any, Final

from pipeline.audit.evidence import Evidence
from pipeline.audit.gateway_copy import GatewayCopy
from pipeline.audit.ledger_copy import LedgerCopy

_NAME: Final = re.compile(r"[a-z0-9_]{1,100}")
IN_WORDS: Final = "in_words"


def summarize(
    evidence: Evidence, ledger: LedgerCopy | None = None, gateway: GatewayCopy | None = None
) -> dict[str, Any]:
    """A JSON object. Amounts are minor units by currency; latencies are milliseconds between the
    broker's append times of an order and its settlement; None where nothing was measured.

    ``records`` counts by topic, ``payments`` and ``amount_minor`` by status, ``reasons`` by status
    and reason (people's own words are ``in_words``), ``dead_letters`` by cause,
    ``dead_letters_by_state`` by what became of them, ``balances`` by account (debits positive).
    ``settlements`` counts and sums by kind, signed as settlements are; ``settled_minor`` is their
    total. ``commands``: how many there are by type (each id once; what is no type is
    ``unknown_type``), how many wait, and how many were rejected by which rule.
    """
    payments: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    amounts: dict[str, Counter[str]] = defaultdict(Counter)
    settled: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    kind_counts: Counter[str] = Counter()
    commands: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    waiting = 0
    latencies_ms: list[int] = []
    repeated = 0
    for payment in evidence.payments.values():
        snapshot = payment.snapshot
        repeated += max(0, len(payment.orders) - 1)
        if snapshot is not None:
            payments[snapshot.status] += 1
            waiting += len(snapshot.waiting)
            amounts[snapshot.status][snapshot.currency] += snapshot.amount_minor
            if snapshot.reason is not None:
                reasons[snapshot.status][_named(snapshot.reason)] += 1
        commands.update({c.command_id: c.type for c in payment.commands}.values())
        rejected.update(rule or "" for rule in dict(payment.rejected_commands).values())
        for settlement in payment.settlements:
            kind_counts[settlement.kind] += 1
            kinds[settlement.kind][settlement.currency] += settlement.amount_minor
            settled[settlement.currency] += settlement.amount_minor
            if payment.orders and settlement.kind == "capture":
                latencies_ms.append(settlement.at_ms - payment.orders[0].at_ms)
    summary: dict[str, Any] = {
        "records": dict(evidence.records),
        "orders_repeated": repeated,
        "payments": dict(payments),
        "reasons": {status: dict(counts.most_common()) for status, counts in reasons.items()},
        "amount_minor": {status: dict(sums) for status, sums in amounts.items()},
        "settled_minor": dict(settled),
        "settlements": {
            kind: {"count": kind_counts[kind], "amount_minor": dict(sums)}
            for kind, sums in sorted(kinds.items())
        },
        "commands": {
            "by_type": dict(sorted(commands.items())),
            "waiting": waiting,
            "rejected": dict(rejected.most_common()),
        },
        "order_to_settlement_ms": percentiles(latencies_ms),
        "dead_letters": dict(
            Counter(
                letter.cause for letter in evidence.dead_letters if letter.first_piece
            ).most_common()
        ),
    }
    summary["dead_letters_by_state"] = dict(
        Counter(
            "open" if marker is None else marker.state
            for letter in evidence.dead_letters
            if letter.first_piece
            for marker in (evidence.markers.get((letter.partition, letter.offset)),)
        ).most_common()
    )
    if gateway is not None:
        summary["gateway"] = {
            "charges": gateway.charge_count,
            "charged_minor": dict(gateway.charged_minor),
            "refunds": gateway.refund_count,
            "refunded_minor": dict(gateway.refunded_minor),
            "owed_minor": dict(gateway.owed_minor),
        }
    if ledger is not None:
        balances: dict[str, dict[str, int]] = defaultdict(dict)
        for (account, currency), (debits, credits) in sorted(ledger.balances.items()):
            balances[account][currency] = debits - credits
        summary["ledger"] = {"entries": len(ledger.entries), "balances": dict(balances)}
    return summary


def _named(reason: str) -> str:
    """A reason that is a name; what a person gave in words is one kind."""
    return reason if _NAME.fullmatch(reason) else IN_WORDS


def percentiles(values_ms: list[int]) -> dict[str, int | None]:
    """p50, p95, p99 and the maximum by the nearest-rank definition."""
    ordered = sorted(values_ms)
    count = len(ordered)

    def at(percent: int) -> int | None:
        return ordered[max(0, -(-count * percent // 100) - 1)] if ordered else None

    return {"count": count, "p50": at(50), "p95": at(95), "p99": at(99), "max": at(100)}
