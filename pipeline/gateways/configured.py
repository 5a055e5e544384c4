"""Gateways as an installation configures them: read, checked, and made into adapters.

The setting ``gateways`` is a table of tables, by the name that records use (docs/gateways.md):

    [gateways.northbank]
    adapter = "northbank"
    url = "https://api.northbank.example"
    currencies = ["GBP", "EUR"]

An address alone (``northbank = "https://..."``) is a gateway of the default adapter. What is left
out has the adapter's or the installation's default.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.policy import DAY_MS, GatewayProfile
from pipeline.domain.routes import Fee
from pipeline.gateways.webhook_signature import SECRETS_MAX

if TYPE_CHECKING:
    from pipeline.gateways.adapters.base import Adapter
    from pipeline.gateways.port import Gateway

# Part of every idempotency key, whose parts colons separate, and of topics' and metrics' labels.
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
# A payment has at most 32 attempts; failover tries each gateway once.
GATEWAYS_MAX: Final = 16
DEFAULT_ADAPTER: Final = "simulator"


class FeeEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gateway takes of a charge: hundredths of a per cent of it, and a fixed part."""

    basis_points: int = 0
    fixed_minor: int = 0


class GatewayEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway of the configuration. ``fees`` by currency. Limits are of all workers together:
    calls open at a time, calls begun a second."""

    url: str
    adapter: str = DEFAULT_ADAPTER
    currencies: tuple[str, ...] | None = None
    merchants: tuple[str, ...] | None = None
    priority: int = 100
    grace_ms: int | None = None
    key_retention_ms: int | None = None
    idempotent: bool | None = None
    authorization_ms: int = 7 * DAY_MS
    fees: dict[str, FeeEntry] = {}
    concurrency_max: int | None = None
    rate_per_s: float | None = None
    api_key: str | None = None
    notice_secrets: tuple[str, ...] = ()

    @property
    def knows_keys(self) -> bool:
        """Whether a call that arrives twice is done once."""
        own = adapters()[self.adapter].idempotent
        return own if self.idempotent is None else self.idempotent


def read_gateways(raw: Mapping[str, Any]) -> dict[str, GatewayEntry]:
    """The entries by name. Raises ValueError with a sentence about the first thing wrong, which
    repeats no secret."""
    if len(raw) > GATEWAYS_MAX:
        raise ValueError(f"{len(raw)} gateways are more than the {GATEWAYS_MAX} that there may be")
    entries: dict[str, GatewayEntry] = {}
    addresses: dict[str, str] = {}
    for name, content in raw.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot be a gateway's name; take up to 40 of a-z, 0-9, '.', '_' and '-'"
            )
        entry = _entry(name, {"url": content} if isinstance(content, str) else content)
        _check(name, entry)
        other = addresses.setdefault(entry.url.rstrip("/"), name)
        if other != name:
            # Two names for one gateway would let a charge "move elsewhere" to where it already is.
            raise ValueError(f"gateways {other} and {name} have the same address")
        entries[name] = entry
    return entries


def gateways_of(options: Mapping[str, Any]) -> dict[str, GatewayEntry]:
    """The gateways of a worker's options: as configured, else the one of ``gateway_url``."""
    configured = options.get("gateways")
    if configured:
        return read_gateways(configured)
    return {options["gateway_name"]: GatewayEntry(url=options["gateway_url"])}


def profile_of(name: str, entry: GatewayEntry, options: Mapping[str, Any]) -> GatewayProfile:
    """What the decisions have to know of a gateway."""
    return GatewayProfile(
        name=name,
        currencies=None if entry.currencies is None else frozenset(entry.currencies),
        merchants=None if entry.merchants is None else frozenset(entry.merchants),
        priority=entry.priority,
        grace_ms=_or(entry.grace_ms, options["gateway_grace_ms"]),
        key_retention_ms=_or(entry.key_retention_ms, options["gateway_key_retention_ms"]),
        authorization_ms=entry.authorization_ms,
        idempotent=entry.knows_keys,
        notices_by_own_id=adapters()[entry.adapter].notices_by_own_id,
        fees={
            currency: Fee(basis_points=fee.basis_points, fixed_minor=fee.fixed_minor)
            for currency, fee in entry.fees.items()
        },
        concurrency_max=entry.concurrency_max,
        rate_per_s=entry.rate_per_s,
    )


def profiles_of(options: Mapping[str, Any]) -> tuple[GatewayProfile, ...]:
    """The profiles of all gateways of a worker's options."""
    return tuple(profile_of(name, entry, options) for name, entry in gateways_of(options).items())


def build_gateways(options: Mapping[str, Any]) -> dict[str, Gateway]:
    """An adapter for each gateway, not yet open. Raises UserError for what cannot be meant."""
    from pipeline.gateways.http_adapter import HttpGateway
    from pipeline.gateways.in_process import InProcessGateway

    entries = gateways_of(options)
    if options.get("gateway_in_process"):
        return {name: InProcessGateway(name=name) for name in entries}
    return {
        name: HttpGateway(
            name,
            entry.url,
            adapter=adapters()[entry.adapter](),
            deadline_s=options["call_timeout_ms"] / 1000,
            api_key=entry.api_key,
            notice_secrets=entry.notice_secrets,
        )
        for name, entry in entries.items()
    }


def adapters() -> Mapping[str, type[Adapter]]:
    """Every adapter by its name, loaded by whoever asks; which there are is checked when the
    configuration is read."""
    from pipeline.gateways.adapters.known import ADAPTERS

    return ADAPTERS


def _entry(name: str, content: Any) -> GatewayEntry:
    if not isinstance(content, dict):
        raise ValueError(f"gateway {name} must be a table with a url, or an address")
    unknown = sorted(set(content) - set(GatewayEntry.__struct_fields__))
    if unknown:
        near = difflib.get_close_matches(unknown[0], GatewayEntry.__struct_fields__, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"gateway {name} has no setting {unknown[0]!r}{hint}")
    try:
        return msgspec.convert(content, GatewayEntry)
    except msgspec.ValidationError as error:
        raise ValueError(f"gateway {name}: {error}") from None


def _check(name: str, entry: GatewayEntry) -> None:
    """Raise ValueError for what cannot be meant."""
    parts = urlsplit(entry.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"gateway {name} needs a url like https://gateway.example.com")
    if parts.username or parts.password:
        raise ValueError(f"gateway {name} has a password in its url; use api_key")
    if entry.adapter not in adapters():
        raise ValueError(
            f"gateway {name} has no adapter {entry.adapter!r}; choose {listed(adapters())}"
        )
    for secret in entry.notice_secrets:
        try:
            adapters()[entry.adapter]().check_secret(secret)
        except ValueError as error:
            raise ValueError(f"gateway {name}, notice_secrets: {error}") from None
    if len(entry.notice_secrets) > SECRETS_MAX:
        raise ValueError(
            f"gateway {name} has {len(entry.notice_secrets)} notice_secrets; give one, or the old "
            "and the new one while they are exchanged"
        )
    if entry.idempotent and not adapters()[entry.adapter].idempotent:
        raise ValueError(
            f"gateway {name} cannot be idempotent: its adapter {entry.adapter} knows no keys, and "
            "what is sent twice is done twice"
        )
    for what in ("currencies", "merchants"):
        given: tuple[str, ...] | None = getattr(entry, what)
        if given is not None and not given:
            raise ValueError(f"gateway {name} serves no {what}; leave {what} out to serve all")
    for currency in (*(entry.currencies or ()), *entry.fees):
        if currency not in MINOR_UNITS:
            raise ValueError(f"gateway {name}: {currency!r} is not an active ISO 4217 currency")
    for currency, fee in entry.fees.items():
        if not 0 <= fee.basis_points <= 10_000 or fee.fixed_minor < 0:
            raise ValueError(
                f"gateway {name}: the fee in {currency} is not 0 to 10000 basis points and 0 or "
                "more minor units"
            )
    for what, least in (
        ("priority", 0),
        ("grace_ms", 0),
        ("key_retention_ms", 60_000),
        ("authorization_ms", 60_000),
        ("concurrency_max", 1),
    ):
        value = getattr(entry, what)
        if value is not None and value < least:
            raise ValueError(f"gateway {name}: {what} is {value}; give {least} or more")
    if entry.rate_per_s is not None and entry.rate_per_s <= 0:
        raise ValueError(f"gateway {name}: rate_per_s is not above 0")
    if (
        entry.grace_ms is not None
        and entry.key_retention_ms is not None
        and entry.grace_ms >= entry.key_retention_ms
    ):
        raise ValueError(
            f"gateway {name}: grace_ms is not below key_retention_ms, so that no inquiry could "
            "ever prove anything"
        )


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


def listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    """Names as the choices of a sentence."""
    *most, last = names
    return f"{', '.join(most)} or {last}"
