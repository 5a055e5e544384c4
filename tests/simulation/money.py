"""What moved at the gateways, order by order, and what of it must be told, settled and booked.

Filled by the gateways' own books, and by settlements as readers see them. Nothing here comes from
the code that is judged; the names of accounts are the chart that docs/ledger.md promises.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tests.simulation.disputes import GatewayDispute
from tests.simulation.gateway import GatewayBooks, Movement

TAKES = ("charge", "capture")


class Money:
    def __init__(self) -> None:
        self.movements: dict[str, list[Movement]] = defaultdict(list)
        self.moved_minor: Counter[tuple[str, str]] = Counter()
        self.settled_minor: Counter[tuple[str, str]] = Counter()
        self.disputes: dict[str, list[tuple[str, GatewayDispute]]] = defaultdict(list)
        # Credits that were ordered, by order.
        self.credited_minor: dict[str, int] = {}

    def moved(self, movement: Movement) -> None:
        self.movements[movement.order_id].append(movement)
        self.moved_minor[movement.order_id, movement.kind] += movement.amount_minor

    def read_disputes(self, books: Iterable[GatewayBooks]) -> None:
        """What banks have come to, once all is over."""
        self.disputes.clear()
        for each in books:
            for order_id, dispute in each.disputes.items():
                if dispute.state:
                    self.disputes[order_id].append((each.name, dispute))

    # Of one order -------------------------------------------------------------------------------

    def captured_minor(self, order_id: str) -> int:
        moved_minor = self.moved_minor.get
        return moved_minor((order_id, "charge"), 0) + moved_minor((order_id, "capture"), 0)

    def refunded_minor(self, order_id: str) -> int:
        """What customers have: refunds that came back are not with them."""
        moved_minor = self.moved_minor.get
        return moved_minor((order_id, "refund"), 0) - moved_minor((order_id, "return"), 0)

    def lost_minor(self, order_id: str) -> int:
        return sum(d.amount_minor for _, d in self.disputes[order_id] if d.state == "lost")

    def kept_minor(self, order_id: str) -> int:
        """What of the customer's money is with the merchant in the end."""
        return (
            self.captured_minor(order_id)
            - self.refunded_minor(order_id)
            - self.lost_minor(order_id)
        )

    def holds(self, order_id: str) -> list[Movement]:
        """Authorizations of which nothing was captured and that were not given back."""
        told = self.movements[order_id]
        ended = {each.parent for each in told if each.kind in ("capture", "void")}
        return [each for each in told if each.kind == "authorize" and each.reference not in ended]

    def settlements(self, order_id: str) -> dict[str, int]:
        """The sums that settlements must come to, by what they are about."""
        withdrawn_minor = sum(d.withdrawn_minor for _, d in self.disputes[order_id])
        wanted = {
            "captures": self.captured_minor(order_id),
            "refunds": -self.refunded_minor(order_id),
            "disputes": -withdrawn_minor,
            "fees of disputes": -sum(d.fee_minor for _, d in self.disputes[order_id]),
            "credits": -self.credited_minor.get(order_id, 0),
        }
        return wanted

    def settled(self, order_id: str) -> dict[str, int]:
        """The sums that settlements have come to."""
        of = {
            kind: self.settled_minor.get((order_id, kind), 0)
            for kind in ("capture", "refund", "refund_failed", "dispute", "reversal",
                         "dispute_fee", "credit")
        }  # fmt: skip
        return {
            "captures": of["capture"],
            "refunds": of["refund"] + of["refund_failed"],
            "disputes": of["dispute"] + of["reversal"],
            "fees of disputes": of["dispute_fee"],
            "credits": of["credit"],
        }

    def limit_minor(self, order_id: str, kind: str) -> int | None:
        """What settlements of a kind can come to at most at this moment."""
        if kind == "capture":
            return self.captured_minor(order_id)
        if kind == "refund":
            return self.moved_minor[order_id, "refund"]
        if kind == "refund_failed":
            return self.moved_minor[order_id, "return"]
        return self.credited_minor.get(order_id, 0) if kind == "credit" else None

    # Of all -------------------------------------------------------------------------------------

    def balances(self, merchant: str) -> dict[str, int]:
        """Each account's debits less its credits, as the books must have them."""
        wanted: Counter[str] = Counter()
        signs = {"charge": 1, "capture": 1, "return": 1, "refund": -1}
        for movements in self.movements.values():
            for each in movements:
                amount_minor = signs.get(each.kind, 0) * each.amount_minor
                wanted[f"gateway_receivable:{each.gateway}"] += amount_minor
                wanted[f"merchant_payable:{merchant}"] -= amount_minor
        for disputes in self.disputes.values():
            for gateway, each in disputes:
                taken_minor = each.withdrawn_minor + each.fee_minor
                wanted[f"gateway_receivable:{gateway}"] -= taken_minor
                wanted[f"disputes_and_losses:{merchant}"] += taken_minor
        for amount_minor in self.credited_minor.values():
            wanted[f"unapplied_credits:{merchant}"] -= amount_minor
            wanted[f"merchant_payable:{merchant}"] += amount_minor
        return {name: balance for name, balance in wanted.items() if balance}


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between two tables of sums, for people."""
    return ", ".join(
        f"{name} {found.get(name, 0)} and not {wanted.get(name, 0)}"
        for name in sorted({*found, *wanted})
        if found.get(name, 0) != wanted.get(name, 0)
    )
