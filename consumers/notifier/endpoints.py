"""Merchants' endpoints as data: a file, TOML or JSON, that may change while the worker runs."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct, ValidationError, convert

from consumers.notifier.address import url_refusal
from pipeline.domain import lifecycle as life
from pipeline.domain.keys import valid_id
from pipeline.domain.model import PaymentEvent
from pipeline.errors import UserError, why_unread
from pipeline.gateways.webhook_signature import decoded_secret

_log = logging.getLogger(__name__)

# What a merchant is told who asks for nothing in particular: outcomes, and what needs an answer.
MERCHANT_EVENTS: Final = frozenset(
    {
        life.AUTHORIZED,
        life.CAPTURED,
        life.CAPTURE_FAILED,
        life.CANCELLED,
        life.COMMAND_REJECTED,
        life.CREDIT_HELD,
        life.DISPUTE_INQUIRY,
        life.DISPUTE_OPENED,
        life.DISPUTE_PRE_ARBITRATION,
        life.DISPUTE_WON,
        life.DISPUTE_LOST,
        life.EXPIRED,
        life.FAILED,
        life.NO_PAYMENT_DUE,
        life.OUTCOME_UNKNOWN,
        life.REFUNDED,
        life.REFUND_FAILED,
        life.REJECTED,
        life.REQUIRES_CUSTOMER_ACTION,
        life.RISK_REVIEW,
        life.VOIDED,
        life.VOID_FAILED,
    }
)
ALL_EVENTS: Final = "*"

# A rotation has two; four leave room for one that was begun before the last had ended.
SECRETS_MAX = 4
# Receivers should answer first and work later; 10 s is more than that takes.
TIMEOUT_MS, TIMEOUT_MS_MAX = 10_000, 60_000
CONCURRENCY, CONCURRENCY_MAX = 4, 64

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Endpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one merchant is told. ``secrets``: each signs every delivery, the newest first."""

    name: str = ""
    merchant: str
    url: str
    secrets: tuple[str, ...]
    events: frozenset[str] = MERCHANT_EVENTS
    timeout_ms: int = TIMEOUT_MS
    concurrency_max: int = CONCURRENCY
    # Its callbacks are kept, and delivered once it goes on.
    paused: bool = False

    def wants(self, event_type: str) -> bool:
        return event_type in self.events or ALL_EVENTS in self.events

    def __repr__(self) -> str:
        # Secrets stay out of logs and tracebacks.
        return f"Endpoint({self.name!r}, {self.url!r})"


class Endpoints:
    """The endpoints in force, by name and by merchant."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self.by_name = {endpoint.name: endpoint for endpoint in endpoints}
        self._by_merchant: dict[str, list[Endpoint]] = {}
        for endpoint in self.by_name.values():
            self._by_merchant.setdefault(endpoint.merchant, []).append(endpoint)

    def of(self, event: PaymentEvent) -> list[Endpoint]:
        """Those that are to be told of this event."""
        mine = self._by_merchant.get(event.merchant_id, ())
        return [endpoint for endpoint in mine if endpoint.wants(event.type)]

    def get(self, name: str) -> Endpoint | None:
        return self.by_name.get(name)


def known_events() -> frozenset[str]:
    """Every type that a payment's event can have."""
    steps = (*life.PAYMENT_TRANSITIONS.values(), *life.ATTEMPT_TRANSITIONS.values())
    told = {step.event for step in steps if step.event is not None}
    told |= {*life.STARTED_EVENTS.values(), *life.FAILED_EVENTS.values()}
    told |= {*life.SUCCEEDED_STATES.values(), life.FAILOVER_STARTED, life.REVERSAL_STARTED}
    return frozenset(told | life.STANDING_EVENTS) - {life.STARTED, life.SUCCEEDED}


def read_endpoints(text: str, where: str, *, allow_http: bool, allow_private: bool) -> Endpoints:
    """The endpoints of a document; UserError names what is wrong and never shows a secret."""
    try:
        document: Any = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is neither TOML nor JSON: {error}.") from error
    tables = document.get("endpoints", {}) if isinstance(document, Mapping) else None
    unknown = sorted(set(document) - {"endpoints"}) if isinstance(document, Mapping) else []
    if not isinstance(tables, Mapping) or unknown:
        what = f", not {unknown[0]!r}" if unknown else ""
        raise UserError(f"{where} must hold tables [endpoints.NAME] and nothing else{what}.")
    return Endpoints(
        _endpoint(name, table, where, allow_http=allow_http, allow_private=allow_private)
        for name, table in tables.items()
    )


def _endpoint(
    name: str, table: Any, where: str, *, allow_http: bool, allow_private: bool
) -> Endpoint:
    def wrong(why: str) -> UserError:
        return UserError(f"the endpoint {name!r} in {where} is wrong: {why}.")

    if not _NAME.fullmatch(name):
        raise wrong("a name is 1 to 64 of A-Z a-z 0-9 . _ -")
    try:
        endpoint = convert({**table, "name": name}, Endpoint)
    except (ValidationError, TypeError, ValueError) as error:
        raise wrong(str(error)) from None
    if not valid_id(endpoint.merchant):
        raise wrong("merchant is no merchant's id")
    refused = url_refusal(endpoint.url, allow_http=allow_http, allow_private=allow_private)
    if refused is not None:
        raise wrong(refused)
    if not 1 <= len(endpoint.secrets) <= SECRETS_MAX:
        raise wrong(f"secrets holds 1 to {SECRETS_MAX}, the newest first")
    for secret in endpoint.secrets:
        try:
            decoded_secret(secret)
        except ValueError as error:
            raise wrong(str(error)) from None
    unknown = sorted(endpoint.events - known_events() - {ALL_EVENTS})
    if unknown:
        raise wrong(f"there is no event {unknown[0]!r}; see docs/notifications.md")
    if not 100 <= endpoint.timeout_ms <= TIMEOUT_MS_MAX:
        raise wrong(f"timeout_ms is 100 to {TIMEOUT_MS_MAX}")
    if not 1 <= endpoint.concurrency_max <= CONCURRENCY_MAX:
        raise wrong(f"concurrency_max is 1 to {CONCURRENCY_MAX}")
    return endpoint


def shown_url(url: str) -> str:
    """An address as it may be logged: its query may hold a key of the merchant's."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + ("?..." if parts.query else "")


class EndpointFile:
    """The file and what was last read of it; one that cannot be used changes nothing."""

    def __init__(
        self, path: Path, *, allow_http: bool = False, allow_private: bool = False
    ) -> None:
        self._path = path
        self._allow = {"allow_http": allow_http, "allow_private": allow_private}
        # What the last look found, and what was last judged; None: it could not be read.
        self._seen: bytes | None = None
        self._judged: bytes | None = None
        self.in_force = Endpoints()

    def load(self) -> Endpoints:
        """Read it; UserError when it cannot be used."""
        try:
            self._seen = self._judged = self._path.read_bytes()
        except OSError as error:
            raise self._unread(error) from error
        return self._take(self._judged)

    def look(self) -> Endpoints:
        """Take what has changed since, once two looks found the same: what is half written, or
        emptied to be written, is seen once. What cannot be used is logged once, and the last good
        one kept. An empty file is a good one."""
        why: OSError | None = None
        try:
            found: bytes | None = self._path.read_bytes()
        except OSError as error:
            found, why = None, error
        stands, self._seen = found == self._seen, found
        if not stands or found == self._judged:
            return self.in_force
        self._judged = found
        if found is None:
            _log.error("%s cannot be read, the endpoints stay: %s", self._path, why)
            return self.in_force
        before = self.in_force
        try:
            self._take(found)
        except UserError as error:
            _log.error("the endpoints stay as they were: %s", error)
        else:
            gone = sorted(before.by_name.keys() - self.in_force.by_name.keys())
            _log.info(
                "%d endpoints of %s are in force%s",
                len(self.in_force.by_name),
                self._path,
                f", gone: {', '.join(gone)}" if gone else "",
            )
        return self.in_force

    def _take(self, found: bytes) -> Endpoints:
        try:
            text = found.decode("utf-8")
        except ValueError as error:
            raise self._unread(error) from error
        self.in_force = read_endpoints(text, str(self._path), **self._allow)
        return self.in_force

    def _unread(self, error: OSError | ValueError) -> UserError:
        return UserError(
            f"the merchants' endpoints {self._path} cannot be read: {why_unread(error)}. "
            "Name another file in PAYSTREAM_MERCHANT_ENDPOINTS."
        )
