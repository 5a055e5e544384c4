"""Bank accounts that payouts go to and come from, checked before anything is paid.

An account is an IBAN (ISO 13616: its country's form and its check digits), or, in a country that
has none, the account's own number with the BIC (ISO 9362) of its bank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct
from stdnum import bic as bics
from stdnum import iban as ibans
from stdnum.exceptions import ValidationError

from pipeline.errors import UserError

# What ISO 20022 takes as another identification (Max34Text); banks take no more than this of it.
_NUMBER: Final = re.compile(r"[A-Za-z0-9-]{1,34}")
# Max140Text in the schema; banks of every country take 70.
HOLDER_LENGTH_MAX: Final = 70
_FIELDS: Final = ("holder", "iban", "number", "bic")


class BankAccount(Struct, frozen=True, kw_only=True):
    """``iban``, or ``number`` and ``bic``; the others are empty."""

    holder: str
    iban: str = ""
    number: str = ""
    bic: str = ""

    @property
    def shown(self) -> str:
        """For people and topics: the last four characters alone."""
        return f"...{(self.iban or self.number)[-4:]}"


def read_account(given: Any, at: str, *, decided: bool = False) -> BankAccount:
    """The account of a document's table; UserError with the place of what is wrong in it.

    Of one that was ``decided`` IBAN and BIC were good by the rules of then, and are not judged by
    those of now: an upgrade of the library would have nobody read the decision any more.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{at}: an account is a table of holder, iban or number, and bic.")
    unknown = sorted(given.keys() - set(_FIELDS))
    if unknown:
        raise UserError(f"{at} does not know {', '.join(unknown)}; known are {', '.join(_FIELDS)}.")
    holder, iban, number, bic = (given.get(name, "") for name in _FIELDS)
    if not all(isinstance(each, str) for each in (holder, iban, number, bic)):
        raise UserError(f"{at}: holder, iban, number and bic are text.")
    if not 0 < len(holder.strip()) <= HOLDER_LENGTH_MAX or not holder.isprintable():
        raise UserError(f"{at}: the holder is 1 to {HOLDER_LENGTH_MAX} printable characters.")
    if bool(iban) == bool(number):
        raise UserError(f"{at}: an account has an iban or, where a country has none, a number.")
    if decided:
        iban, bic = str(ibans.compact(iban)), str(bics.compact(bic))
    elif iban:
        iban = _valid_iban(iban, at)
    elif _NUMBER.fullmatch(number) is None or not bic:
        raise UserError(f"{at}: a number is 1 to 34 of A-Za-z0-9- and needs its bank's bic.")
    if bic and not decided:
        bic = _valid_bic(bic, at)
    return BankAccount(holder=holder.strip(), iban=iban, number=number, bic=bic)


def _valid_iban(iban: str, at: str) -> str:
    try:
        return str(ibans.validate(iban))
    except ValidationError as error:
        raise UserError(
            f"{at}: {iban!r} is no IBAN (ISO 13616): {str(error).rstrip('.').lower()}."
        ) from error


def _valid_bic(bic: str, at: str) -> str:
    try:
        return str(bics.validate(bic))
    except ValidationError as error:
        raise UserError(f"{at}: {bic!r} is no BIC (ISO 9362).") from error
