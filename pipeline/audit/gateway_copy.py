"""The gateways' own books, read over HTTP (``GET /v1/books``, see docs/simulator.md)."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final
from urllib.parse import quote, urlsplit

from msgspec import Struct

from pipeline.audit.unavailable import AuditUnavailable
from pipeline.loopback import open_url

ANSWER_TIMEOUT_S = 8.0
PAGE_ENTRIES = 5_000


class ChargeSeen(Struct, gc=False):
    """What begins a payment at a gateway: ``kind`` is charge or authorization. ``reference`` is our
    idempotency key. ``recent``: first seen after the log's ends were taken, so its request may lie
    beyond them. ``books``: which gateway's, by number; ids are one gateway's own."""

    id: str
    reference: str
    amount_minor: int
    currency: str
    created_at_ms: int
    recent: bool
    kind: str = "charge"
    books: int = 0


class MovementSeen(Struct, gc=False):
    """Any other entry: capture, refund, void, expiry, refund_failed, dispute, dispute_fee or
    dispute_won, of the charge ``charge_id``; the amount is positive."""

    kind: str
    id: str
    reference: str
    charge_id: str
    amount_minor: int
    currency: str
    recent: bool
    books: int = 0


# Which way the money of an entry goes, from us as seen by the gateway: it owes us more, or less.
_OWED: Final = {
    "charge": 1,
    "capture": 1,
    "refund": -1,
    "refund_failed": 1,
    "dispute": -1,
    "dispute_won": 1,
    "dispute_fee": -1,
}


@dataclass
class GatewayCopy:
    """Charges and authorizations, and what followed them, by record key (``merchant:order``).

    By currency: ``charged_minor`` sums charges and captures, ``refunded_minor`` refunds that did
    not fail, ``owed_minor`` is what the gateway owes us of all of its entries.
    """

    charges: dict[str, list[ChargeSeen]] = field(default_factory=dict)
    movements: dict[str, list[MovementSeen]] = field(default_factory=dict)
    charge_count: int = 0
    refund_count: int = 0
    charged_minor: dict[str, int] = field(default_factory=dict)
    refunded_minor: dict[str, int] = field(default_factory=dict)
    owed_minor: dict[str, int] = field(default_factory=dict)

    def add(self, entry: Mapping[str, Any], *, recent: bool, books: int = 0) -> None:
        """Take one entry of a gateway's ``books``."""
        kind = intern(entry["kind"])
        key = f"{entry['merchant_id']}:{entry['order_id']}"
        amount_minor, currency = entry["amount_minor"], intern(entry["currency"])
        if kind in ("charge", "authorization"):
            charge = ChargeSeen(
                entry["id"],
                entry["reference"],
                amount_minor,
                currency,
                entry["created_at_ms"],
                recent,
                kind,
                books,
            )
            self.charges.setdefault(key, []).append(charge)
        else:
            movement = MovementSeen(
                kind,
                entry["id"],
                entry["reference"],
                entry["charge_id"],
                amount_minor,
                currency,
                recent,
                books,
            )
            self.movements.setdefault(key, []).append(movement)
        if kind in ("charge", "capture"):
            self.charge_count += 1
            _add(self.charged_minor, currency, amount_minor)
        elif kind in ("refund", "refund_failed"):
            sign = 1 if kind == "refund" else -1
            self.refund_count += sign
            _add(self.refunded_minor, currency, sign * amount_minor)
        _add(self.owed_minor, currency, _OWED.get(kind, 0) * amount_minor)


def _add(sums: dict[str, int], currency: str, amount_minor: int) -> None:
    if amount_minor:
        sums[currency] = sums.get(currency, 0) + amount_minor


class GatewayReader:
    """Copies the books of one or more gateways in two steps, around the reading of the log."""

    def __init__(self, urls: Sequence[str]) -> None:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise AuditUnavailable(
                    f"{url!r} is no gateway address; give --gateway-url as http://host:port."
                )
        self._after = {url.rstrip("/"): 0 for url in urls}
        self.copy = GatewayCopy()

    def read_before_log(self) -> None:
        """Take what is in the books now: each of these charges has its request in the log."""
        for charges in self.copy.charges.values():
            for charge in charges:
                charge.recent = False
        for movements in self.copy.movements.values():
            for movement in movements:
                movement.recent = False
        self._read(recent=False)

    def read_after_log(self) -> None:
        """Take what has come since: each capture in the log has its charge in the books now."""
        self._read(recent=True)

    def _read(self, *, recent: bool) -> None:
        for books, (url, after) in enumerate(self._after.items()):
            more = True
            while more:
                page = get_json(f"{url}/v1/books?after={after}&limit={PAGE_ENTRIES}")
                for entry in page["entries"]:
                    self.copy.add(entry, recent=recent, books=books)
                if page["has_more"] and page["next_after"] <= after:
                    raise AuditUnavailable(
                        f"The gateway at {url} repeats a page of its books; restart it."
                    )
                after, more = page["next_after"], page["has_more"]
            self._after[url] = after


# Where the gateway answers about an operation of a kind, and what it calls it.
_RESOURCES: Final = {
    "charge": ("charges", "charge"),
    "authorize": ("authorizations", "authorization"),
    "capture": ("captures", "capture"),
    "void": ("voids", "void"),
    "refund": ("refunds", "refund"),
}


def operation_of_reference(url: str, kind: str, reference: str) -> dict[str, Any] | None:
    """What the gateway says it did under one of our references; None when it knows none."""
    resource, name = _RESOURCES.get(kind, _RESOURCES["charge"])
    try:
        answer = get_json(f"{url.rstrip('/')}/v1/{resource}?reference={quote(reference, safe='')}")
    except _NotFound:
        return None
    found = answer.get(name)
    return {**found, "kind": name} if isinstance(found, dict) else None


def get_json(url: str) -> dict[str, Any]:
    """The JSON object at a URL; AuditUnavailable when there is none."""
    try:
        with open_url(url, timeout=ANSWER_TIMEOUT_S) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise _NotFound(f"{url} does not exist; check --gateway-url.") from None
        raise AuditUnavailable(
            f"The gateway answered {error.code} to {url}; see its log."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise AuditUnavailable(
            f"The gateway's books at {url} cannot be read ({reason}); start the gateway, name"
            " another with --gateway-url, or leave it out with --no-gateway."
        ) from None
    if not isinstance(answer, dict):
        raise AuditUnavailable(f"{url} answers no JSON object; check --gateway-url.")
    return answer


class _NotFound(AuditUnavailable):
    """The server answered 404."""
