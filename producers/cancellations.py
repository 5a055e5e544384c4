"""Cancellation invoices as commands: a refund where the sale is known, else a credit to hold.

A cancellation does not name the sale it cancels. Each of its lines is matched by four things: the
customer, the stock code, an *earlier* invoice, and a quantity sold there of which enough has not
come back yet. Of several such sales it is the latest one: what comes back was most likely bought
last. A line without such a sale is an unlinked credit: booked and held, never paid out by itself.

Pure: the same file gives the same commands with the same ids, so importing it twice is one effect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.domain.model import Order, OrderLine, PaymentCommand
from producers.invoice_csv import Cancellation, InvoiceFile, Placed

REFUND = "refund"
CREDIT = "credit"
ACTOR = "orders-import"


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What the cancellations of a file ask for. Each command is one line of a cancellation."""

    refunds: tuple[PaymentCommand, ...] = ()
    credits: tuple[PaymentCommand, ...] = ()

    @property
    def commands(self) -> tuple[PaymentCommand, ...]:
        return self.refunds + self.credits


@dataclass(slots=True)
class _Sold:
    """What one invoice sold of one stock code, less what has come back."""

    order: Order
    placed: Placed
    remaining: int


def given_back(found: InvoiceFile, *, now_ms: int) -> GivenBack:
    """The refunds and credits of a file's cancellations, oldest cancellation first.

    ``now_ms`` is the time of submission. A line's amount is its own quantity at its own price; a
    line that gives nothing back (a price of zero) asks for nothing. A cancellation with a line
    that *takes* money is held whole, as one credit of its total: its lines cannot be told apart
    from a trade-in.
    """
    sold = _sold_lines(found.orders, found.placed)
    refunds: list[PaymentCommand] = []
    credits: list[PaymentCommand] = []
    for cancellation in sorted(found.cancellations, key=lambda each: each.placed):
        amounts = [-line.quantity * line.unit_amount_minor for line in cancellation.lines]
        if min(amounts, default=0) < 0:
            if cancellation.amount_minor:
                credits.append(
                    _credit(cancellation, "total", -cancellation.amount_minor, "in all", now_ms)
                )
            continue
        for line, amount_minor in zip(cancellation.lines, amounts, strict=True):
            if not amount_minor:
                continue
            what = f"{-line.quantity} of {line.sku}"
            name = f"line-{line.line_number}"
            sale = _sale_of(sold, cancellation, line)
            if sale is None:
                credits.append(_credit(cancellation, name, amount_minor, what, now_ms))
            else:
                sale.remaining += line.quantity
                refunds.append(
                    _command(
                        REFUND, cancellation, sale.order.order_id, name, amount_minor, what, now_ms
                    )
                )
    return GivenBack(tuple(refunds), tuple(credits))


_SoldLines = Mapping[tuple[str, str], Sequence[_Sold]]


def _sold_lines(orders: Sequence[Order], placed: Mapping[str, Placed]) -> _SoldLines:
    """By customer and stock code, latest first. Buyers nobody knows match nobody."""
    sold: defaultdict[tuple[str, str], list[_Sold]] = defaultdict(list)
    for order in orders:
        # An order that costs nothing has taken no money that could be given back.
        if order.customer_id is None or order.amount_minor <= 0:
            continue
        quantities: dict[str, int] = {}
        for line in order.lines:
            quantities[line.sku] = quantities.get(line.sku, 0) + line.quantity
        for sku, quantity in quantities.items():
            sold[order.customer_id, sku].append(_Sold(order, placed[order.order_id], quantity))
    for sales in sold.values():
        sales.sort(key=lambda sale: sale.placed, reverse=True)
    return sold


def _sale_of(sold: _SoldLines, cancellation: Cancellation, line: OrderLine) -> _Sold | None:
    for sale in sold.get((cancellation.customer_id or "", line.sku), ()):
        if sale.placed < cancellation.placed and sale.remaining >= -line.quantity:
            return sale
    return None


def _credit(
    cancellation: Cancellation, name: str, amount_minor: int, what: str, now_ms: int
) -> PaymentCommand:
    """A credit has no order: it stands under an id of its own, next to the merchant's orders."""
    order_id = f"{cancellation.order_id}-{name}"
    return _command(CREDIT, cancellation, order_id, name, amount_minor, what, now_ms)


def _command(
    type_: str,
    cancellation: Cancellation,
    order_id: str,
    name: str,
    amount_minor: int,
    what: str,
    now_ms: int,
) -> PaymentCommand:
    return PaymentCommand(
        merchant_id=cancellation.merchant_id,
        order_id=order_id,
        command_id=f"{type_}-{cancellation.invoice_number}-{name}",
        type=type_,
        submitted_at_ms=now_ms,
        amount_minor=amount_minor,
        currency=cancellation.currency,
        reason=f"cancellation {cancellation.invoice_number}: {what}",
        actor=ACTOR,
        business_date=cancellation.business_date,
    )
