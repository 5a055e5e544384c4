"""Payout terms as data: one document, in versions that each count from a time on.

*Payouts* say when and how one merchant is paid in one currency, *paid_from* from which account of
ours. ``docs/payouts.md`` shows a document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.bank_accounts import BankAccount, read_account
from pipeline.domain.business_days import BusinessDays, business_days
from pipeline.domain.invariant import invariant
from pipeline.domain.keys import valid_id
from pipeline.domain.model import LedgerEvent
from pipeline.domain.money import MINOR_UNITS
from pipeline.errors import UserError

PAYOUT_TERMS: Final = "payout_terms"

NONE: Final = "none"
ROLLING: Final = "rolling"
FIXED: Final = "fixed"
ADVANCE_OFF: Final = "off"

_PERCENT: Final = re.compile(r"([0-9]{1,2}|100)(?:\.([0-9]{1,4}))?")
_MINOR_MAX: Final = 10**15 - 1
# Longer than any card scheme lets a customer dispute a charge.
_RESERVE_DAYS_MAX: Final = 720
_PAYOUT_FIELDS: Final = (
    "merchant", "currency", "time_zone", "cut_off", "calendar", "closed", "minimum_minor",
    "reserve", "account", "advance",
)  # fmt: skip
_RESERVE_FIELDS: Final = ("kind", "percentage", "days", "amount_minor")
_ADVANCE_FIELDS: Final = ("percentage", "maximum_minor")
_PAID_FROM_FIELDS: Final = ("currency", "bank", "account")


class ReserveTerms(Struct, frozen=True, kw_only=True):
    """``rolling``: ``ppm`` millionths of each payout's new funds, held for ``days`` calendar days.
    ``fixed``: up to ``amount_minor`` is held, and no more."""

    kind: str = NONE
    ppm: int = 0
    days: int = 0
    amount_minor: int = 0


class AdvanceTerms(Struct, frozen=True, kw_only=True):
    """Of what is pending, up to ``ppm`` millionths and ``maximum_minor`` are paid before they are
    cleared. Both 0: off."""

    ppm: int = 0
    maximum_minor: int = 0


class MerchantTerms(Struct, frozen=True, kw_only=True):
    """One merchant's terms in one currency."""

    merchant: str
    currency: str
    days: BusinessDays
    account: BankAccount
    minimum_minor: int = 0
    reserve: ReserveTerms = ReserveTerms()
    advance: AdvanceTerms = AdvanceTerms()


class PaidFrom(Struct, frozen=True, kw_only=True):
    """Our own account for a currency: ``bank`` is its name in the books, ``bank:<bank>``."""

    currency: str
    bank: str
    account: BankAccount


class PayoutTerms(Struct, frozen=True, kw_only=True):
    """One version of the whole document. ``version`` is the number of the decision."""

    version: int
    effective_from_ms: int
    payouts: tuple[MerchantTerms, ...] = ()
    paid_from: tuple[PaidFrom, ...] = ()

    def of(self, merchant: str, currency: str) -> MerchantTerms | None:
        return next(
            (t for t in self.payouts if (t.merchant, t.currency) == (merchant, currency)), None
        )

    def paying(self, currency: str) -> PaidFrom:
        """There is one for each currency of the payouts: it was checked when it was read."""
        return next(each for each in self.paid_from if each.currency == currency)


class TermsInForce(Struct, frozen=True):
    """What counts for one merchant, currency and day. ``cut_off_ms`` is that day's."""

    version: int
    terms: MerchantTerms
    paid_from: PaidFrom
    cut_off_ms: int


class TermsNotKnown(UserError):
    """Terms name a time zone or a calendar that is not known any more. ``since``: when they count
    from, and their version."""

    def __init__(self, terms: PayoutTerms, merchant: str, currency: str, why: UserError) -> None:
        super().__init__(
            f"payout terms {terms.version} of {merchant} in {currency} cannot be followed any "
            f"more ({why}): put new ones into force, see `paystream payouts terms apply --help`."
        )
        self.since = terms.effective_from_ms, terms.version


def in_force_since(versions: Sequence[PayoutTerms], now_ms: int) -> tuple[int, int]:
    """When the version of now counts from, and its number; (-1, 0) while there is none."""
    begun = ((v.effective_from_ms, v.version) for v in versions if v.effective_from_ms <= now_ms)
    return max(begun, default=(-1, 0))


def terms_on(
    versions: Sequence[PayoutTerms], merchant: str, currency: str, day: date
) -> TermsInForce | None:
    """The newest version in force at the day's cut-off; None when the merchant has none then, or
    the day is no business day by it. TermsNotKnown where that cannot be said."""
    without_ms: list[int] = []
    for version in sorted(versions, key=lambda v: (v.effective_from_ms, v.version), reverse=True):
        terms = version.of(merchant, currency)
        if terms is None:
            # A version is the whole document: who is not in it is not paid from then on. The
            # cut-off is the one of the version that would count without it.
            without_ms.append(version.effective_from_ms)
            continue
        try:
            cut_off_ms = terms.days.cut_off_ms(day)
            free = version.effective_from_ms <= cut_off_ms and not terms.days.is_one(day)
        except UserError as why:
            raise TermsNotKnown(version, merchant, currency, why) from why
        if version.effective_from_ms <= cut_off_ms:
            if any(from_ms <= cut_off_ms for from_ms in without_ms):
                return None
            if free:
                return None
            return TermsInForce(version.version, terms, version.paying(currency), cut_off_ms)
    return None


def terms_body(document: Mapping[str, Any], effective_from_ms: int) -> str:
    """The body of the decision; UserError when the document is none."""
    read_terms(document)
    return json.dumps(
        {"effective_from_ms": effective_from_ms, "terms": document},
        sort_keys=True, separators=(",", ":"),
    )  # fmt: skip


def terms_of(events: Iterable[LedgerEvent]) -> tuple[PayoutTerms, ...]:
    """All versions that were decided."""
    found = []
    for event in events:
        invariant(event.kind == PAYOUT_TERMS, "it is a version of the payout terms")
        body = json.loads(event.body)
        found.append(
            read_terms(
                body["terms"],
                version=event.sequence,
                effective_from_ms=body["effective_from_ms"],
                decided=True,
            )
        )
    return tuple(found)


def read_terms(
    document: Mapping[str, Any],
    *,
    version: int = 1,
    effective_from_ms: int = 0,
    decided: bool = False,
) -> PayoutTerms:
    """The terms of a document; UserError with the place of what is wrong in it.

    Of one that was ``decided`` time zones and calendars were known then, and accounts were good; it
    may be long replaced.
    """
    _only(document, "the document", ("payouts", "paid_from"))
    tables = _tables(document, "payouts")
    payouts = tuple(_payout(each, at, decided) for each, at in tables)
    if not decided:
        for terms, (_, at) in zip(payouts, tables, strict=True):
            terms.days.require_known(f"the payout terms are wrong: {at}")
    paid_from = tuple(_paid_from(each, at, decided) for each, at in _tables(document, "paid_from"))
    _unique([f"{t.merchant} in {t.currency}" for t in payouts], "two payouts are for {}")
    _unique([each.currency for each in paid_from], "two accounts pay {}")
    missing = {t.currency for t in payouts} - {each.currency for each in paid_from}
    if missing:
        raise UserError(f"the payout terms are wrong: no paid_from pays {min(missing)}.")
    return PayoutTerms(
        version=version, effective_from_ms=effective_from_ms, payouts=payouts, paid_from=paid_from
    )


def _payout(given: Mapping[str, Any], at: str, decided: bool) -> MerchantTerms:
    _only(given, at, _PAYOUT_FIELDS)
    closed = given.get("closed", [])
    if not isinstance(closed, list) or not all(isinstance(day, str) for day in closed):
        raise _wrong(at, "closed is a list of days as text, YYYY-MM-DD")
    currency = _currency(given, at)
    return MerchantTerms(
        merchant=_id(given, "merchant", at),
        currency=currency,
        days=business_days(
            time_zone=_text(given, "time_zone", at),
            cut_off=_text(given, "cut_off", at),
            calendar=_text(given, "calendar", at, ""),
            closed=tuple(closed),
            at=f"the payout terms are wrong: {at}",
        ),
        account=_account(given, at, decided),
        minimum_minor=_minor(given, "minimum_minor", at),
        reserve=_reserve(given.get("reserve", {"kind": NONE}), f"{at}.reserve"),
        advance=_advance(given.get("advance", ADVANCE_OFF), f"{at}.advance"),
    )


def _advance(given: Any, at: str) -> AdvanceTerms:
    """Off unless it is said how much: an advance pays what no gateway has reported."""
    if given == ADVANCE_OFF:
        return AdvanceTerms()
    if not isinstance(given, Mapping):
        raise _wrong(at, 'is "off", or a table: { percentage = "50", maximum_minor = 100_000 }')
    _only(given, at, _ADVANCE_FIELDS)
    maximum_minor = _minor(given, "maximum_minor", at)
    if not maximum_minor:
        raise _wrong(at, "maximum_minor is needed, and above 0")
    return AdvanceTerms(ppm=_ppm(given.get("percentage"), at), maximum_minor=maximum_minor)


def _reserve(given: Any, at: str) -> ReserveTerms:
    if not isinstance(given, Mapping):
        raise _wrong(at, 'is a table, as { kind = "rolling", percentage = "10", days = 90 }')
    _only(given, at, _RESERVE_FIELDS)
    kind = given.get("kind")
    wanted = {NONE: set(), ROLLING: {"percentage", "days"}, FIXED: {"amount_minor"}}
    if not isinstance(kind, str) or kind not in wanted:
        raise _wrong(at, f"its kind is one of {', '.join(wanted)}")
    if given.keys() - {"kind"} != wanted[kind]:
        raise _wrong(at, f"{kind} has {', '.join(sorted(wanted[kind])) or 'nothing else'}")
    if kind == ROLLING:
        days = given["days"]
        if type(days) is not int or not 1 <= days <= _RESERVE_DAYS_MAX:
            raise _wrong(at, f"days is an integer from 1 to {_RESERVE_DAYS_MAX}")
        return ReserveTerms(kind=kind, ppm=_ppm(given["percentage"], at), days=days)
    return ReserveTerms(kind=kind, amount_minor=_minor(given, "amount_minor", at))


def _paid_from(given: Mapping[str, Any], at: str, decided: bool) -> PaidFrom:
    _only(given, at, _PAID_FROM_FIELDS)
    return PaidFrom(
        currency=_currency(given, at),
        bank=_id(given, "bank", at),
        account=_account(given, at, decided),
    )


def _account(given: Mapping[str, Any], at: str, decided: bool) -> BankAccount:
    where = f"the payout terms are wrong: {at}.account"
    return read_account(given.get("account"), where, decided=decided)


def _tables(given: Mapping[str, Any], name: str) -> list[tuple[Mapping[str, Any], str]]:
    found = given.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise _wrong(name, "is a list of tables")
    return [(each, f"{name}[{number}]") for number, each in enumerate(found)]


def _only(given: Mapping[str, Any], at: str, known: tuple[str, ...]) -> None:
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise _wrong(at, f"does not know {', '.join(unknown)}; known are {', '.join(known)}")


def _text(given: Mapping[str, Any], name: str, at: str, default: str | None = None) -> str:
    found = given.get(name, default)
    if not isinstance(found, str):
        raise _wrong(at, f"{name} is text and is needed")
    return found


def _id(given: Mapping[str, Any], name: str, at: str) -> str:
    found = _text(given, name, at)
    if not valid_id(found):
        raise _wrong(at, f"{name} is 1 to 64 of A-Za-z0-9._-")
    return found


def _currency(given: Mapping[str, Any], at: str) -> str:
    found = _text(given, "currency", at)
    if found not in MINOR_UNITS:
        raise _wrong(at, "currency is an ISO 4217 code")
    return found


def _minor(given: Mapping[str, Any], name: str, at: str) -> int:
    found = given.get(name, 0)
    if type(found) is not int or not 0 <= found <= _MINOR_MAX:
        raise _wrong(at, f"{name} is an integer in minor units, not negative")
    return found


def _ppm(found: Any, at: str) -> int:
    """A percentage as text, since a number of a document may not be exact."""
    match = _PERCENT.fullmatch(found) if isinstance(found, str) else None
    ppm = int(match[1]) * 10_000 + int((match[2] or "").ljust(4, "0")) if match else 0
    if not 0 < ppm <= 1_000_000:
        raise _wrong(at, 'percentage is text above 0 and up to 100, as "7.5"')
    return ppm


def _unique(names: Sequence[str], said: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"the payout terms are wrong: {said.format(twice[0])}.")


def _wrong(at: str, what: str) -> UserError:
    return UserError(f"the payout terms are wrong: {at} {what}.")
