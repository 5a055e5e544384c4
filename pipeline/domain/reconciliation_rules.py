"""What reconciliation allows each gateway, as data: how late it may report, how much may differ.

A document (TOML or JSON) of a table for each gateway, and one for our payouts; what it leaves out
is the default:

    [gateways.northbank]
    time_zone = "Europe/London"     # of its days
    report_days = 2                 # T+2: by then a movement is in a report
    bank_days = 2                   # by so many days after a report its batch is at the bank
    holidays = ["2010-12-27"]       # no business days, besides Saturdays and Sundays
    amount_tolerance_minor = 0
    fee_tolerance_minor = 1
    bank_names = ["NORTHBANK"]      # who pays, in the bank's statement

    [payouts]
    bank_days = 4                   # by so many days after its execution date one is debited
    holidays = ["2010-12-27"]

    [bank_accounts]                 # what the books call our account: bank:main-gbp
    GB33BUKB20201555555555 = "main-gbp"
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.due_days import last_day_due
from pipeline.domain.keys import valid_id
from pipeline.domain.matching import Tolerance
from pipeline.domain.time_zones import time_zone
from pipeline.domain.validation import is_date
from pipeline.errors import UserError

_DAYS_MAX: Final = 60
_TOLERANCE_MAX: Final = 1_000_000


class GatewayRules(Struct, frozen=True, kw_only=True):
    """The rules of one gateway; days are business days."""

    time_zone: str = "UTC"
    report_days: int = 2
    bank_days: int = 4
    holidays: tuple[str, ...] = ()
    amount_tolerance_minor: int = 0
    fee_tolerance_minor: int = 0
    bank_names: tuple[str, ...] = ()

    @property
    def tolerance(self) -> Tolerance:
        return Tolerance(self.amount_tolerance_minor, self.fee_tolerance_minor)

    def reported_through(self, today: date) -> str:
        """Up to this day everything should be in a report by now."""
        return last_day_due(today, self.report_days, self.holidays).isoformat()

    def paid_through(self, today: date) -> str:
        """Up to this day's reports everything should be at the bank by now."""
        return last_day_due(today, self.bank_days, self.holidays).isoformat()


_DEFAULT: Final = GatewayRules()


class PayoutRules(Struct, frozen=True, kw_only=True):
    """What is allowed our own bank for payouts to merchants; days are business days."""

    bank_days: int = 4
    holidays: tuple[str, ...] = ()

    def debited_through(self, today: date) -> str:
        """What was to be executed up to this day should be on a statement by now."""
        return last_day_due(today, self.bank_days, self.holidays).isoformat()


class ReconciliationRules(Struct, frozen=True):
    """``of`` a gateway; one that is not named has the defaults. ``bank_accounts``: what the books
    call an account, by its number in the bank's statements."""

    gateways: Mapping[str, GatewayRules] = {}
    bank_accounts: Mapping[str, str] = {}
    payouts: PayoutRules = PayoutRules()

    def of(self, gateway: str) -> GatewayRules:
        return self.gateways.get(gateway, _DEFAULT)

    def bank_account(self, number: str) -> str:
        """Whose it is in the account ``bank:...``; its own number if nothing else is said."""
        return self.bank_accounts.get(number, number)

    def payer(self, name: str) -> str:
        """The gateway that a bank's statement calls so, by its own name if nothing else is said;
        "" for nobody."""
        wanted = name.strip().casefold()
        for gateway, rules in self.gateways.items():
            if wanted in {each.casefold() for each in rules.bank_names}:
                return gateway
        return wanted if valid_id(wanted) and wanted in self.gateways else ""


def read_rules(document: Mapping[str, Any]) -> ReconciliationRules:
    """UserError that names what cannot be meant."""
    known = "gateways", "bank_accounts", "payouts"
    unknown = sorted(set(document) - set(known))
    tables, accounts, payouts = (document.get(name, {}) for name in known)
    if unknown or not all(isinstance(each, Mapping) for each in (tables, accounts, payouts)):
        said = (unknown or [" or ".join(known)])[0]
        raise UserError(f"reconciliation rules: {said!r} is not meant.")
    for number, name in accounts.items():
        if not isinstance(name, str) or not valid_id(name):
            raise UserError(f"reconciliation rules: {name!r} is no name of account {number}.")
    return ReconciliationRules(
        {name: _gateway(name, table) for name, table in tables.items()},
        dict(accounts),
        PayoutRules(
            **_table("reconciliation rules of payouts", payouts, PayoutRules.__struct_fields__)
        ),
    )


def _gateway(name: str, table: Any) -> GatewayRules:
    where = f"reconciliation rules of {name}"
    if not valid_id(name) or not isinstance(table, Mapping):
        raise UserError(f"{where}: it is no table of a gateway.")
    found = _table(where, table, GatewayRules.__struct_fields__)
    zone = table.get("time_zone", "UTC")
    if not isinstance(zone, str):
        raise UserError(f"{where}: time_zone is text.")
    try:
        time_zone(zone)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return GatewayRules(**found)


def _table(where: str, table: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of a table, checked; lists as tuples."""
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UserError(f"{where}: there is no {unknown[0]!r}.")
    for field in ("holidays", "bank_names"):
        texts = table.get(field, [])
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise UserError(f"{where}: {field} is a list of texts.")
    for day in table.get("holidays", []):
        if not is_date(day):
            raise UserError(f"{where}: {day!r} is no date: write YYYY-MM-DD.")
    for field, most in (
        ("report_days", _DAYS_MAX),
        ("bank_days", _DAYS_MAX),
        ("amount_tolerance_minor", _TOLERANCE_MAX),
        ("fee_tolerance_minor", _TOLERANCE_MAX),
    ):
        value = table.get(field, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise UserError(f"{where}: {field} is a whole number from 0 to {most}.")
    return {name: tuple(said) if isinstance(said, list) else said for name, said in table.items()}
