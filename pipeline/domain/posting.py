"""From a settlement to its journal entry: double entry, decided without a database.

A capture makes a gateway owe us what we owe the merchant:

    debit  gateway_receivable:<gateway>     credit merchant_payable:<merchant>

A refund is the reverse. What a gateway takes for a dispute is no refund: it stands in
``disputes_and_losses``, and the merchant's terms say whether it is passed on. A credit moves no
money at a gateway: the merchant owes it, and it is held in ``unapplied_credits``. Nor does a refund
that was made otherwise: who paid it is explained later, so it stands in ``suspense``. So does a
charge that nobody here asked for, until its customer has the money back. Each kind is
one row of ``RULE_OF``; worked examples stand in ``docs/ledger.md``. This is the movement itself;
fees and gateway costs are further lines of the same entry (``fees``).

An entry moves money between accounts and makes none, so in each currency its debits equal its
credits. What cannot be booked is refused by a rule's name, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from pipeline.domain.accounts import (
    DISPUTES_AND_LOSSES,
    GATEWAY_RECEIVABLE,
    MERCHANT_AVAILABLE,
    MERCHANT_PAYABLE,
    SUSPENSE,
    UNAPPLIED_CREDITS,
)
from pipeline.domain.invariant import InvariantBroken, invariant
from pipeline.domain.keys import ID_PATTERN, valid_id
from pipeline.domain.model import Settlement
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.validation import is_date

CAPTURE = "capture"
REFUND = "refund"
REFUND_FAILED = "refund_failed"
DISPUTE = "dispute"
REVERSAL = "reversal"
DISPUTE_FEE = "dispute_fee"
CREDIT = "credit"
EXTERNAL_REFUND = "external_refund"
# Begins the kinds of settlements of charges that nobody here asked for.
UNASKED: Final = "unasked_"
UNASKED_CAPTURE = "unasked_capture"
UNASKED_REFUND = "unasked_refund"
UNASKED_REFUND_FAILED = "unasked_refund_failed"
UNASKED_EXTERNAL_REFUND = "unasked_external_refund"
UNASKED_DISPUTE = "unasked_dispute"
UNASKED_REVERSAL = "unasked_reversal"
UNASKED_DISPUTE_FEE = "unasked_dispute_fee"
# Of charges that nobody here asked for: no merchant's money, and under nobody's terms.
UNASKED_KINDS: Final = frozenset(
    {
        UNASKED_CAPTURE,
        UNASKED_REFUND,
        UNASKED_REFUND_FAILED,
        UNASKED_EXTERNAL_REFUND,
        UNASKED_DISPUTE,
        UNASKED_REVERSAL,
        UNASKED_DISPUTE_FEE,
    }
)
# Of those, what rows tell of under a reference that names nobody, or somebody else.
KNOWN_BY_REFERENCE: Final = frozenset(
    {UNASKED_CAPTURE, UNASKED_DISPUTE, UNASKED_REVERSAL, UNASKED_DISPUTE_FEE}
)

# What stands where a gateway's name would: the movement touches no gateway.
NO_GATEWAY = "none"

KIND_MUST_BE_KNOWN = "settlement_kind_must_be_known"
CAPTURE_MUST_BE_POSITIVE = "capture_amount_must_be_positive"
REFUND_MUST_BE_NEGATIVE = "refund_amount_must_be_negative"
REFUND_FAILED_MUST_BE_POSITIVE = "refund_failed_amount_must_be_positive"
DISPUTE_MUST_BE_NEGATIVE = "dispute_amount_must_be_negative"
REVERSAL_MUST_BE_POSITIVE = "reversal_amount_must_be_positive"
DISPUTE_FEE_MUST_BE_NEGATIVE = "dispute_fee_amount_must_be_negative"
CREDIT_MUST_BE_NEGATIVE = "credit_amount_must_be_negative"
EXTERNAL_REFUND_MUST_BE_NEGATIVE = "external_refund_amount_must_be_negative"
UNASKED_CAPTURE_MUST_BE_POSITIVE = "unasked_capture_amount_must_be_positive"
UNASKED_REFUND_MUST_BE_NEGATIVE = "unasked_refund_amount_must_be_negative"
UNASKED_REFUND_FAILED_MUST_BE_POSITIVE = "unasked_refund_failed_amount_must_be_positive"
UNASKED_EXTERNAL_REFUND_MUST_BE_NEGATIVE = "unasked_external_refund_amount_must_be_negative"
UNASKED_DISPUTE_MUST_BE_NEGATIVE = "unasked_dispute_amount_must_be_negative"
UNASKED_REVERSAL_MUST_BE_POSITIVE = "unasked_reversal_amount_must_be_positive"
UNASKED_DISPUTE_FEE_MUST_BE_NEGATIVE = "unasked_dispute_fee_amount_must_be_negative"
GATEWAY_MUST_FIT_KIND = "settlement_gateway_must_fit_its_kind"
AMOUNT_MUST_NOT_EXCEED_LIMIT = "settlement_amount_must_not_exceed_limit"
CURRENCY_MUST_BE_ISO_4217 = "settlement_currency_must_be_iso_4217"
BUSINESS_DATE_MUST_BE_A_DATE = "settlement_business_date_must_be_a_date"
IDS_MUST_BE_WELL_FORMED = "settlement_ids_must_be_well_formed"
REFERENCE_MUST_BE_PRINTABLE = "settlement_gateway_reference_must_be_printable"

RULES = (
    KIND_MUST_BE_KNOWN,
    CAPTURE_MUST_BE_POSITIVE,
    REFUND_MUST_BE_NEGATIVE,
    REFUND_FAILED_MUST_BE_POSITIVE,
    DISPUTE_MUST_BE_NEGATIVE,
    REVERSAL_MUST_BE_POSITIVE,
    DISPUTE_FEE_MUST_BE_NEGATIVE,
    CREDIT_MUST_BE_NEGATIVE,
    EXTERNAL_REFUND_MUST_BE_NEGATIVE,
    UNASKED_CAPTURE_MUST_BE_POSITIVE,
    UNASKED_REFUND_MUST_BE_NEGATIVE,
    UNASKED_REFUND_FAILED_MUST_BE_POSITIVE,
    UNASKED_EXTERNAL_REFUND_MUST_BE_NEGATIVE,
    UNASKED_DISPUTE_MUST_BE_NEGATIVE,
    UNASKED_REVERSAL_MUST_BE_POSITIVE,
    UNASKED_DISPUTE_FEE_MUST_BE_NEGATIVE,
    GATEWAY_MUST_FIT_KIND,
    AMOUNT_MUST_NOT_EXCEED_LIMIT,
    CURRENCY_MUST_BE_ISO_4217,
    BUSINESS_DATE_MUST_BE_A_DATE,
    IDS_MUST_BE_WELL_FORMED,
    REFERENCE_MUST_BE_PRINTABLE,
)

# A thousand times what fits a card message (12 digits): room for other rails, and small enough
# that nine thousand of the largest still fit the 64-bit balance of one account.
AMOUNT_MINOR_MAX = 10**15 - 1
# Long enough for every gateway's references, short enough for books that are kept for years.
REFERENCE_LENGTH_MAX = 255

_UUID_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUID = re.compile(_UUID_PATTERN)
# All ids of a settlement in one match, since one costs as much as six.
_IDS = re.compile(rf"(?:{_UUID_PATTERN}/){{2}}(?:{ID_PATTERN}/){{3}}{ID_PATTERN}")


class Posting(Struct, frozen=True, gc=False):
    """One line of an entry. ``amount_minor`` is signed: debits positive, credits negative."""

    account: str
    currency: str
    amount_minor: int


class PostingRule(Struct, frozen=True, gc=False):
    """How a kind of settlement is booked: its signed amount to one account, less it to another.

    ``sign`` is the only one that the kind's amounts may have (they are positive to the merchant),
    and ``broken`` names the rule an amount of the other sign breaks.
    """

    sign: int
    broken: str
    account: Callable[[Settlement], str]
    against: Callable[[Settlement], str]


class JournalEntry(Struct, frozen=True, kw_only=True, gc=False):
    """One event as it stands in the books; the ids are those of its settlement, if it is one.

    ``terms`` names what its fees were worked out by, "" for none. ``booked_date`` is the day it
    counts under when its own, ``business_date``, was closed already; else "".
    """

    entry_id: str
    settlement_id: str
    kind: str
    merchant_id: str
    order_id: str
    payment_id: str
    operation_id: str
    gateway: str
    gateway_reference: str
    business_date: str
    settled_at_ms: int
    postings: tuple[Posting, ...]
    payment_method: str = ""
    terms: str = ""
    booked_date: str = ""


class PostingRefused(Struct, frozen=True, gc=False):
    """``rule`` is one of RULES and becomes a dead letter's cause; ``detail`` is for people."""

    rule: str
    detail: str


def _gateway_receivable(settlement: Settlement) -> str:
    return f"{GATEWAY_RECEIVABLE}:{settlement.gateway}"


def _merchant_payable(settlement: Settlement) -> str:
    return f"{MERCHANT_PAYABLE}:{settlement.merchant_id}"


def _disputes_and_losses(settlement: Settlement) -> str:
    return f"{DISPUTES_AND_LOSSES}:{settlement.merchant_id}"


def _merchant_available(settlement: Settlement) -> str:
    return f"{MERCHANT_AVAILABLE}:{settlement.merchant_id}"


def _suspense(settlement: Settlement) -> str:
    return f"{SUSPENSE}:{settlement.gateway}"


def _unapplied_credits(settlement: Settlement) -> str:
    return f"{UNAPPLIED_CREDITS}:{settlement.merchant_id}"


RULE_OF: Final[Mapping[str, PostingRule]] = {
    CAPTURE: PostingRule(1, CAPTURE_MUST_BE_POSITIVE, _gateway_receivable, _merchant_payable),
    REFUND: PostingRule(-1, REFUND_MUST_BE_NEGATIVE, _gateway_receivable, _merchant_payable),
    REFUND_FAILED: PostingRule(
        1, REFUND_FAILED_MUST_BE_POSITIVE, _gateway_receivable, _merchant_payable
    ),
    DISPUTE: PostingRule(-1, DISPUTE_MUST_BE_NEGATIVE, _gateway_receivable, _disputes_and_losses),
    REVERSAL: PostingRule(1, REVERSAL_MUST_BE_POSITIVE, _gateway_receivable, _disputes_and_losses),
    DISPUTE_FEE: PostingRule(
        -1, DISPUTE_FEE_MUST_BE_NEGATIVE, _gateway_receivable, _disputes_and_losses
    ),
    CREDIT: PostingRule(-1, CREDIT_MUST_BE_NEGATIVE, _unapplied_credits, _merchant_payable),
    # No report will tell of it, so it is of what is available at once.
    EXTERNAL_REFUND: PostingRule(
        -1, EXTERNAL_REFUND_MUST_BE_NEGATIVE, _suspense, _merchant_available
    ),
    UNASKED_CAPTURE: PostingRule(
        1, UNASKED_CAPTURE_MUST_BE_POSITIVE, _gateway_receivable, _suspense
    ),
    UNASKED_REFUND: PostingRule(
        -1, UNASKED_REFUND_MUST_BE_NEGATIVE, _gateway_receivable, _suspense
    ),
    UNASKED_REFUND_FAILED: PostingRule(
        1, UNASKED_REFUND_FAILED_MUST_BE_POSITIVE, _gateway_receivable, _suspense
    ),
    # The charge is explained; who paid its customer is not.
    UNASKED_EXTERNAL_REFUND: PostingRule(
        -1, UNASKED_EXTERNAL_REFUND_MUST_BE_NEGATIVE, _unapplied_credits, _suspense
    ),
    # What its customer's bank takes back goes back so, and its fee is for a person to look at.
    UNASKED_DISPUTE: PostingRule(
        -1, UNASKED_DISPUTE_MUST_BE_NEGATIVE, _gateway_receivable, _suspense
    ),
    UNASKED_REVERSAL: PostingRule(
        1, UNASKED_REVERSAL_MUST_BE_POSITIVE, _gateway_receivable, _suspense
    ),
    UNASKED_DISPUTE_FEE: PostingRule(
        -1, UNASKED_DISPUTE_FEE_MUST_BE_NEGATIVE, _gateway_receivable, _suspense
    ),
}


def journal_entry(settlement: Settlement) -> JournalEntry | PostingRefused:
    """The one entry that books this settlement, or the rule that keeps it out of the books.

    Pure: the same settlement gives the same entry, so a redelivery is seen by the entry's id.
    """
    rule = RULE_OF.get(settlement.kind)
    if rule is None:
        return PostingRefused(KIND_MUST_BE_KNOWN, f"booked are {', '.join(RULE_OF)}")
    refused = _broken_rule(settlement, rule)
    if refused is not None:
        return refused
    amount_minor = settlement.amount_minor
    currency = settlement.currency
    # The amount is signed (positive to the merchant), so what takes money back reverses itself.
    postings = (
        Posting(rule.account(settlement), currency, amount_minor),
        Posting(rule.against(settlement), currency, -amount_minor),
    )
    return balanced(
        JournalEntry(
            entry_id=entry_id(settlement.settlement_id),
            settlement_id=settlement.settlement_id,
            kind=settlement.kind,
            merchant_id=settlement.merchant_id,
            order_id=settlement.order_id,
            payment_id=settlement.payment_id,
            operation_id=settlement.operation_id,
            gateway=settlement.gateway,
            gateway_reference=settlement.gateway_reference,
            business_date=settlement.business_date,
            settled_at_ms=settlement.settled_at_ms,
            postings=postings,
            # Free text in an order; what cannot be named in a fee plan is nobody's method.
            payment_method=settlement.payment_method if valid_id(settlement.payment_method) else "",
        )
    )


def entry_id(settlement_id: str) -> str:
    """The id of a settlement's entry. The prefix leaves room for entries of other origins."""
    return f"settlement:{settlement_id}"


def balanced(entry: JournalEntry) -> JournalEntry:
    """The entry itself; InvariantBroken when its debits and credits differ in some currency."""
    sums: dict[str, int] = {}
    for posting in entry.postings:
        amount_minor = posting.amount_minor
        if type(amount_minor) is not int:
            raise InvariantBroken("amounts in the books are integers")
        sums[posting.currency] = sums.get(posting.currency, 0) + amount_minor
    invariant(len(entry.postings) >= 2, "an entry has at least a debit and a credit")
    invariant(not any(sums.values()), "debits equal credits in every currency of an entry")
    return entry


def _broken_rule(s: Settlement, rule: PostingRule) -> PostingRefused | None:
    amount_minor = s.amount_minor
    if amount_minor * rule.sign <= 0:
        return PostingRefused(rule.broken, f"the amount is {amount_minor}")
    if not -AMOUNT_MINOR_MAX <= amount_minor <= AMOUNT_MINOR_MAX:
        return PostingRefused(AMOUNT_MUST_NOT_EXCEED_LIMIT, f"the limit is {AMOUNT_MINOR_MAX}")
    if s.currency not in MINOR_UNITS:
        return PostingRefused(CURRENCY_MUST_BE_ISO_4217, "no active currency has this code")
    if not is_date(s.business_date):
        return PostingRefused(BUSINESS_DATE_MUST_BE_A_DATE, "expected YYYY-MM-DD")
    first, second = f"{s.settlement_id}/{s.payment_id}", f"{s.operation_id}/{s.gateway}"
    ids = f"{first}/{s.merchant_id}/{s.order_id}/{second}"
    if _IDS.fullmatch(ids) is None:
        return PostingRefused(IDS_MUST_BE_WELL_FORMED, _malformed_ids(s))
    if (s.gateway == NO_GATEWAY) != (s.kind == CREDIT):
        return PostingRefused(
            GATEWAY_MUST_FIT_KIND, f"a credit, and nothing else, has the gateway {NO_GATEWAY!r}"
        )
    # A database may refuse control characters, and a person should be able to read it.
    if len(s.gateway_reference) > REFERENCE_LENGTH_MAX or not s.gateway_reference.isprintable():
        return PostingRefused(
            REFERENCE_MUST_BE_PRINTABLE, f"at most {REFERENCE_LENGTH_MAX} printable characters"
        )
    return None


def _malformed_ids(s: Settlement) -> str:
    """What is wrong, without the text itself: it may hold anything."""
    uuids = [n for n in ("settlement_id", "payment_id") if _UUID.fullmatch(getattr(s, n)) is None]
    names = ("merchant_id", "order_id", "operation_id", "gateway")
    others = [n for n in names if not valid_id(getattr(s, n))]
    said = [f"{n} is not a UUID" for n in uuids]
    return "; ".join(said + [f"{n} is not 1 to 64 of A-Za-z0-9._-" for n in others])
