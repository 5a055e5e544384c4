"""Payouts: their states, and what each decision about one makes of it.

A payout is what its decisions say, in their order: the body of each holds all that it changes and,
where money moves, the entry itself, so that the books need nothing else to be made again.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from hashlib import sha1
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.accounts import BANK, MERCHANT_AVAILABLE, PAYOUTS_IN_TRANSIT
from pipeline.domain.invariant import invariant
from pipeline.domain.model import LedgerEvent
from pipeline.domain.payout_plan import Part, Plan, plan_postings, released, without
from pipeline.domain.payout_terms import PAYOUT_TERMS, TermsInForce
from pipeline.domain.posting import Posting
from pipeline.domain.said_text import REFERENCE_LENGTH_MAX, require_text, storable
from pipeline.errors import UserError

CREATED: Final = "created"
APPROVED: Final = "approved"
SUBMITTED: Final = "submitted"
PAID: Final = "paid"
RETURNED: Final = "returned"
UNKNOWN: Final = "unknown"

APPROVE: Final = "approve"
WITHDRAW: Final = "withdraw"
SUBMIT: Final = "submit"
CONFIRM: Final = "confirm"
RETURN: Final = "return"
LOSE: Final = "lose"

# Every transition there is: (state, act) to the state afterwards. A bank may send back what it had
# paid; what was never submitted can only be withdrawn.
TRANSITIONS: Final[Mapping[tuple[str, str], str]] = {
    (CREATED, APPROVE): APPROVED,
    (CREATED, WITHDRAW): RETURNED,
    (APPROVED, WITHDRAW): RETURNED,
    (APPROVED, SUBMIT): SUBMITTED,
    (SUBMITTED, CONFIRM): PAID,
    (SUBMITTED, RETURN): RETURNED,
    (SUBMITTED, LOSE): UNKNOWN,
    (UNKNOWN, CONFIRM): PAID,
    (UNKNOWN, RETURN): RETURNED,
    (PAID, RETURN): RETURNED,
}

# The kinds of decisions, and of the entries they post.
PAYOUT_CREATED: Final = "payout_created"
PAYOUT_NETTED: Final = "payout_netted"
KIND_OF: Final[Mapping[str, str]] = {
    APPROVE: "payout_approved",
    WITHDRAW: "payout_withdrawn",
    SUBMIT: "payout_submitted",
    CONFIRM: "payout_paid",
    RETURN: "payout_returned",
    LOSE: "payout_unknown",
}
_ACT_OF: Final = {kind: act for act, kind in KIND_OF.items()}
# Decisions that take funds of a day; beside them stands PAYOUT_TERMS.
TAKING_KINDS: Final = (PAYOUT_CREATED, PAYOUT_NETTED)
PAYOUT_KINDS: Final = frozenset((*TAKING_KINDS, *_ACT_OF))
# Letters and signs that no font shows (Unicode's Default_Ignorable_Code_Point, and the blank of
# Braille); what Python calls not printable is not among them.
_SEEN_BY_NOBODY: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class SecondPersonNeeded(UserError):
    """Whoever created a payout asked to approve it. ``payout_id`` names it."""

    def __init__(self, payout: Payout) -> None:
        super().__init__(
            f"payout {payout.payout_id} was created by {payout.created_by}: a second person "
            "approves it."
        )
        self.payout_id = payout.payout_id


def same_person(one: str, other: str) -> bool:
    """Whether two names are one person's: case, blanks, what nobody sees and forms of a letter tell
    nobody apart."""
    first, second = _plain(one), _plain(other)
    return first == second or not (first and second)


def _plain(name: str) -> str:
    """What nobody sees goes first: between a letter and its accent it keeps the two from becoming
    one. A second time, since some signs become a blank and an accent (NFKC of U+00B4)."""
    for _ in range(2):
        seen = "".join(filter(_is_seen, name))
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return name


def _is_seen(character: str) -> bool:
    return (
        character.isprintable() and not character.isspace() and not _SEEN_BY_NOBODY.match(character)
    )


class Payout(Struct, frozen=True, kw_only=True):
    """A payout as it stands after its ``version``-th decision, as the topic `payouts` holds it.

    ``sequence`` is that decision's number in `ledger-events`. The payout's id is also what the bank
    knows it by (EndToEndId). ``account`` shows the last characters of the merchant's account.
    """

    payout_id: str
    merchant_id: str
    currency: str
    business_date: str
    state: str
    version: int
    sequence: int
    amount_minor: int
    held_minor: int
    released_minor: int
    collected_minor: int
    account: str
    bank: str
    created_by: str
    created_at_ms: int
    actor: str
    changed_at_ms: int
    approved_by: str = ""
    message_id: str = ""
    execution_date: str = ""
    reference: str = ""
    reason: str = ""


class Standing(Struct, frozen=True, kw_only=True):
    """What earlier decisions left of one merchant and currency. ``last_day``: the newest for which
    it was paid or netted; ``last_cut_off_ms``: of its newest payout; ``reserved_minor``: came back,
    and a reserve was held of it before (of an advance none was); ``returns``: (when, how much) of
    that came, ever."""

    reserve: tuple[Part, ...] = ()
    receivable: tuple[Part, ...] = ()
    reserved_minor: int = 0
    returns: tuple[tuple[int, int], ...] = ()
    last_day: str = ""
    last_cut_off_ms: int = -1

    def reserved_by(self, cut_off_ms: int) -> int:
        """What of it came back by a cut-off; the rest is not among that day's funds."""
        late_minor = sum(minor for at_ms, minor in self.returns if at_ms >= cut_off_ms)
        return max(0, self.reserved_minor - late_minor)


class Submission(Struct, frozen=True):
    """A message to the bank: payouts that were submitted together, in their order."""

    message_id: str
    execution_date: str
    submitted_at_ms: int
    payout_ids: tuple[str, ...]


class PayoutBook:
    """All payouts, by their decisions."""

    def __init__(self) -> None:
        self.payouts: dict[str, Payout] = {}
        self.standings: dict[tuple[str, str], Standing] = {}
        # What each was created by: the accounts in full, for the bank's file.
        self.created: dict[str, Mapping[str, Any]] = {}
        self.submissions: dict[str, Submission] = {}
        # Those that were paid at some time, whatever came of them afterwards.
        self.paid: set[str] = set()

    def standing(self, merchant: str, currency: str) -> Standing:
        return self.standings.get((merchant, currency), Standing())

    def take(self, event: LedgerEvent) -> Payout | None:
        """Follow the next decision; the payout as it stands then, if it is about one."""
        if event.kind not in PAYOUT_KINDS:
            return None
        body = json.loads(event.body)
        if event.kind in TAKING_KINDS:
            self._stand(body)
            if event.kind == PAYOUT_NETTED:
                return None
            payout = _created(event, body)
            self.created[payout.payout_id] = body
        else:
            before = self.payouts[body["payout_id"]]
            payout = _moved(before, event, body)
            if payout.state == RETURNED:
                key = payout.merchant_id, payout.currency
                standing = self.standings[key]
                advanced_minor = self.created[payout.payout_id].get("advanced_minor", 0)
                back_minor = payout.amount_minor - advanced_minor
                self.standings[key] = replace(
                    standing,
                    reserved_minor=standing.reserved_minor + back_minor,
                    returns=(*standing.returns, (payout.changed_at_ms, back_minor)),
                )
        self.payouts[payout.payout_id] = payout
        if payout.state == PAID:
            self.paid.add(payout.payout_id)
        if payout.state == SUBMITTED:
            message_id = payout.message_id
            earlier = self.submissions.get(message_id)
            self.submissions[message_id] = Submission(
                message_id,
                payout.execution_date,
                payout.changed_at_ms,
                (*(earlier.payout_ids if earlier else ()), payout.payout_id),
            )
        return payout

    def _stand(self, body: Mapping[str, Any]) -> None:
        key = body["merchant_id"], body["currency"]
        before = self.standings.get(key, Standing())
        day = body["business_date"]
        reserve = released(
            without(before.reserve, body["from_reserve_minor"]), body["released_minor"], day
        )
        if body["held_minor"]:
            reserve = (*reserve, Part(day, body["held_minor"], body["held_until"]))
        receivable = before.receivable
        if body["called_in_minor"]:
            receivable = (*receivable, Part(day, body["called_in_minor"]))
        # What came back and is below zero by now has nothing left of it; decisions of before did
        # not say so themselves.
        owed = body["called_in_minor"] or body["from_reserve_minor"]
        receivable = without(receivable, body["collected_minor"])
        # Decisions of before there were advances name none.
        if body.get("advanced_minor"):
            receivable = (*receivable, Part(day, body["advanced_minor"]))
        # Decisions of before did not know how much of what came back was an advance, either.
        reserved_minor = max(0, before.reserved_minor - body["reserved_minor"])
        self.standings[key] = Standing(
            reserve=reserve,
            receivable=receivable,
            reserved_minor=0 if owed else reserved_minor,
            returns=before.returns,
            # Decisions of before may have paid a day after a later one was netted.
            last_day=max(before.last_day, day),
            last_cut_off_ms=body["cut_off_ms"] if body["payout_id"] else before.last_cut_off_ms,
        )


def book_of(events: Iterable[LedgerEvent]) -> PayoutBook:
    book = PayoutBook()
    for event in events:
        book.take(event)
    return book


def payout_id(merchant: str, currency: str, business_date: str) -> str:
    """32 characters, so that it fits an EndToEndId (Max35Text): the same payout, the same id."""
    return sha1(f"payout:{merchant}:{currency}:{business_date}".encode()).hexdigest()[:32]


def taking_body(plan: Plan, force: TermsInForce, business_date: str) -> tuple[str, str]:
    """(kind, body) of the decision that a plan becomes: a payout, or only what is netted."""
    terms = force.terms
    kind = PAYOUT_CREATED if plan.amount_minor else PAYOUT_NETTED
    postings = plan_postings(plan, terms.merchant, terms.currency)
    body: dict[str, Any] = {
        "payout_id": payout_id(terms.merchant, terms.currency, business_date)
        if plan.amount_minor
        else "",
        "merchant_id": terms.merchant,
        "currency": terms.currency,
        "business_date": business_date,
        "cut_off_ms": force.cut_off_ms,
        "terms": force.version,
        **{name: getattr(plan, name) for name in Plan.__struct_fields__},
        # None where only what is left of a returned payout became less.
        "entry": _entry(kind, terms.merchant, business_date, postings) if postings else None,
    }
    if plan.amount_minor:
        body["account"] = {
            name: getattr(terms.account, name) for name in terms.account.__struct_fields__
        }
        paid_from = force.paid_from
        body["paid_from"] = {
            "bank": paid_from.bank,
            **{name: getattr(paid_from.account, name) for name in terms.account.__struct_fields__},
        }
    return kind, _json(body)


def moving_body(payout: Payout, act: str, *, actor: str, day: str, **said: str) -> tuple[str, str]:
    """(kind, body) of a transition's decision; UserError when the payout may not make it,
    SecondPersonNeeded when nobody but its creator approves it.

    ``day`` is the one that its entry counts under. ``said``: message_id and execution_date of a
    submission, reference of what the bank tells.
    """
    for name, text in said.items():
        require_text(text, f"the {name.replace('_', ' ')}", REFERENCE_LENGTH_MAX)
    after = TRANSITIONS.get((payout.state, act))
    if after is None:
        acts = [a for (state, a) in TRANSITIONS if state == payout.state]
        raise UserError(
            f"payout {payout.payout_id} is {payout.state}, so it is not to {act}: "
            f"{'it may ' + ', '.join(acts) if acts else 'nothing follows'}."
        )
    if act == APPROVE and same_person(actor, payout.created_by):
        raise SecondPersonNeeded(payout)
    postings = _moved_postings(payout, act)
    entry = _entry(KIND_OF[act], payout.merchant_id, day, postings) if postings else None
    return KIND_OF[act], _json({"payout_id": payout.payout_id, **said, "entry": entry})


def _moved_postings(payout: Payout, act: str) -> tuple[Posting, ...]:
    in_transit = f"{PAYOUTS_IN_TRANSIT}:{payout.merchant_id}"
    available = f"{MERCHANT_AVAILABLE}:{payout.merchant_id}"
    bank = f"{BANK}:{payout.bank}"
    if act == CONFIRM:
        debit, credit = in_transit, bank
    elif act in (WITHDRAW, RETURN):
        debit, credit = (bank if payout.state == PAID else in_transit), available
    else:
        return ()
    amount_minor = payout.amount_minor
    return (
        Posting(debit, payout.currency, amount_minor),
        Posting(credit, payout.currency, -amount_minor),
    )


def _created(event: LedgerEvent, body: Mapping[str, Any]) -> Payout:
    account = body["account"]
    return Payout(
        payout_id=body["payout_id"],
        merchant_id=body["merchant_id"],
        currency=body["currency"],
        business_date=body["business_date"],
        state=CREATED,
        version=1,
        sequence=event.sequence,
        amount_minor=body["amount_minor"],
        held_minor=body["held_minor"],
        released_minor=body["released_minor"],
        collected_minor=body["collected_minor"],
        account=f"...{(account['iban'] or account['number'])[-4:]}",
        bank=body["paid_from"]["bank"],
        created_by=event.actor,
        created_at_ms=event.decided_at_ms,
        actor=event.actor,
        changed_at_ms=event.decided_at_ms,
        reason=event.reason,
    )


def _moved(before: Payout, event: LedgerEvent, body: Mapping[str, Any]) -> Payout:
    act = _ACT_OF[event.kind]
    state = TRANSITIONS.get((before.state, act))
    invariant(state is not None, "a payout's decisions follow the table of its transitions")
    return replace(
        before,
        state=state,
        version=before.version + 1,
        sequence=event.sequence,
        actor=event.actor,
        changed_at_ms=event.decided_at_ms,
        reason=event.reason,
        approved_by=event.actor if act == APPROVE else before.approved_by,
        message_id=body.get("message_id", before.message_id),
        execution_date=body.get("execution_date", before.execution_date),
        # Those of before references were looked at may hold anything.
        reference=storable(body.get("reference", before.reference)),
    )


def is_payout_decision(kind: str) -> bool:
    return kind in PAYOUT_KINDS or kind == PAYOUT_TERMS


def _entry(
    kind: str, merchant: str, business_date: str, postings: tuple[Posting, ...]
) -> dict[str, Any]:
    return {
        "kind": kind,
        "merchant_id": merchant,
        "business_date": business_date,
        "postings": [[p.account, p.currency, p.amount_minor] for p in postings],
    }


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))
