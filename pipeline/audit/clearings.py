"""What decisions of reconciliation make of the books, worked out a second time.

Written from docs/reconciliation.md; no code is shared. A row of a report moves what was posted to
the merchant for the settlement it clears, and sets the gateway's cost right; where it is in another
currency, what the gateway owes is in that one from then on. A line of the bank closes what a
gateway owes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pipeline.audit.ledger_copy import EntrySeen
from pipeline.audit.terms import DecisionSeen, Lines

CLEARING = "clearing"
BANK_STATEMENT = "bank_statement"
RELEASE = "release"
KINDS = (CLEARING, BANK_STATEMENT, RELEASE)


def expected_entries(
    decision: DecisionSeen, settled: Mapping[str, EntrySeen], booked: Mapping[str, EntrySeen]
) -> dict[str, Lines] | None:
    """By entry: the lines that a decision posts. None when it clears what is not booked here.

    Entries by the settlements they book, and by their own ids.
    """
    if decision.kind == BANK_STATEMENT:
        return _of_bank(decision)
    if decision.kind == RELEASE:
        return _of_released(decision, booked)
    gateway = decision.body["gateway"]
    other = decision.body.get("currency", "")
    made: dict[str, Lines] = {}
    for file_id, number, settlement_id, amount, fee, _day in decision.body["rows"]:
        entry = settled.get(settlement_id)
        if entry is None or not entry.postings:
            return None
        if other and other != entry.postings[0].currency:
            lines = _of_converted_row(entry, gateway, other, amount, fee)
        else:
            lines = _of_row(entry, gateway, amount, fee)
        if lines:
            made[f"clearing:{gateway}:{file_id}:{number}"] = lines
    return made


def _of_row(entry: EntrySeen, gateway: str, amount: int, fee: int) -> Lines:
    currency = entry.postings[0].currency
    more = amount - entry.postings[0].amount_minor
    accrued = _accrued(entry, gateway)
    net = _net(entry)
    lines: Lines = Counter()
    lines[f"gateway_receivable:{gateway}", currency] += more - (fee - accrued)
    lines[f"rounding:{currency}", currency] -= more
    lines[f"gateway_cost:{gateway}", currency] += fee - accrued
    lines[f"merchant_payable:{entry.merchant_id}", currency] += net
    lines[f"merchant_available:{entry.merchant_id}", currency] -= net
    return Counter({key: minor for key, minor in lines.items() if minor})


def _of_converted_row(entry: EntrySeen, gateway: str, other: str, amount: int, fee: int) -> Lines:
    """Of the settlement's currency the gateway owes nothing of it any more, and has taken nothing;
    both are as the row says, in its own."""
    first = entry.postings[0]
    own, moved, accrued, net = (
        first.currency,
        first.amount_minor,
        _accrued(entry, gateway),
        _net(entry),
    )
    lines: Lines = Counter()
    lines[f"gateway_receivable:{gateway}", own] = accrued - moved
    lines[f"gateway_cost:{gateway}", own] = -accrued
    lines[f"currency_position:{own}", own] = moved
    lines[f"gateway_receivable:{gateway}", other] = amount - fee
    lines[f"gateway_cost:{gateway}", other] = fee
    lines[f"currency_position:{other}", other] = -amount
    lines[f"merchant_payable:{entry.merchant_id}", own] = net
    lines[f"merchant_available:{entry.merchant_id}", own] = -net
    return Counter({key: minor for key, minor in lines.items() if minor})


def _of_released(
    decision: DecisionSeen, booked: Mapping[str, EntrySeen]
) -> dict[str, Lines] | None:
    """What no gateway ever reports moves from pending to available as it was posted."""
    made: dict[str, Lines] = {}
    for entry_id in decision.body["entries"]:
        entry = booked.get(entry_id)
        if entry is None or entry.kind not in ("credit", "fee_true_up", "fee_true_up_returned"):
            return None
        lines: Lines = Counter()
        currency = entry.postings[0].currency
        lines[f"merchant_payable:{entry.merchant_id}", currency] += _net(entry)
        lines[f"merchant_available:{entry.merchant_id}", currency] -= _net(entry)
        made[f"release:{entry_id}"] = lines
    return made


def _accrued(entry: EntrySeen, gateway: str) -> int:
    """What the settlement's own entry takes for the gateway."""
    return sum(p.amount_minor for p in entry.postings if p.account == f"gateway_cost:{gateway}")


def _net(entry: EntrySeen) -> int:
    return -sum(p.amount_minor for p in entry.postings if p.account.startswith("merchant_payable:"))


def _of_bank(decision: DecisionSeen) -> dict[str, Lines]:
    account, file_id = decision.body["account"], decision.body["file_id"]
    made: dict[str, Lines] = {}
    for line in decision.body["lines"]:
        if line.get("gateway") and line.get("batch_id"):
            lines: Lines = Counter()
            lines[f"bank:{account}", line["currency"]] += line["amount_minor"]
            receivable = f"gateway_receivable:{line['gateway']}"
            lines[receivable, line["currency"]] -= line["amount_minor"]
            made[f"bank:{account}:{file_id}:{line['line_id']}"] = lines
    return made
