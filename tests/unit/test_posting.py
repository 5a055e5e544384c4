"""What a settlement becomes in the books, and what is refused by name."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.accounts import CHART
from pipeline.domain.fee_schedule import read_schedule, terms_of
from pipeline.domain.fees import UNKNOWN_PAYMENT, after, priced
from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.posting import (
    AMOUNT_MINOR_MAX,
    RULE_OF,
    RULES,
    JournalEntry,
    Posting,
    PostingRefused,
    balanced,
    journal_entry,
)
from tests.support.ledger import entry_of, settlement

LEDGER_DOCUMENT = Path(__file__).parents[2] / "docs" / "ledger.md"


def test_a_capture_is_owed_by_the_gateway_and_owed_to_the_merchant() -> None:
    """Debit the gateway's receivable, credit the merchant's payable, in the same currency."""
    assert entry_of(1, currency="JPY", amount_minor=700).postings == (
        Posting("gateway_receivable:simulator", "JPY", 700),
        Posting("merchant_payable:m1", "JPY", -700),
    )


def examples() -> list[tuple[str, int, str, str]]:
    """The rows of the worked examples: kind, signed amount, account to debit, account to credit."""
    text = LEDGER_DOCUMENT.read_text(encoding="utf-8")
    row = re.compile(r"\| `(\w+)` \| [^|]+ \| (-?[\d.]+) \| `(\S+)` \| `(\S+)` \|")
    return [
        (kind, int(amount.replace(".", "")), debit, credit)
        for kind, amount, debit, credit in row.findall(text)
    ]


def merchant_of(kind: str) -> str:
    """Whose the document's example of a kind is."""
    return "unasked" if kind.startswith("unasked_") else "shop"


def test_every_kind_has_a_worked_example() -> None:
    """A reader of the document finds each kind that is booked, and none that is not."""
    assert {kind for kind, *_ in examples()} == set(RULE_OF)


@pytest.mark.parametrize(("kind", "amount_minor", "debit", "credit"), examples())
def test_the_worked_examples_are_what_is_booked(
    kind: str, amount_minor: int, debit: str, credit: str
) -> None:
    """What the document says a finance engineer will find is what the rules give."""
    entry = entry_of(
        1,
        merchant_id=merchant_of(kind),
        kind=kind,
        amount_minor=amount_minor,
        gateway="none" if kind == "credit" else "sim",
    )
    assert {p.account: p.amount_minor for p in entry.postings} == {
        debit: abs(amount_minor),
        credit: -abs(amount_minor),
    }


def test_the_worked_examples_add_up() -> None:
    """Together they leave what the document says under them, account by account."""
    balances: Counter[str] = Counter()
    for _, amount_minor, debit, credit in examples():
        balances[debit] += abs(amount_minor)
        balances[credit] -= abs(amount_minor)
    text = LEDGER_DOCUMENT.read_text(encoding="utf-8")
    left = re.findall(r"^    (\w+:\w+) +(-?[\d.]+)$", text, re.MULTILINE)
    assert {account: int(amount.replace(".", "")) for account, amount in left} == dict(balances)
    assert sum(balances.values()) == 0


def priced_examples() -> tuple[str, list[tuple[str, str, list[str]]]]:
    """The fee schedule of the document, and each settlement with the lines told under it."""
    text = LEDGER_DOCUMENT.read_text(encoding="utf-8")
    chapter = text.partition("## Fees and gateway costs")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)(?:^(?:    .*)?\n)*", chapter, re.MULTILINE)
    schedule = next(block for block in blocks if "[[plans]]" in block)
    found: list[tuple[str, str, list[str]]] = []
    for line in chapter.splitlines():
        if match := re.fullmatch(r"    (\w+) (-?[\d.]+)", line):
            found.append((match[1], match[2], []))
        elif found and re.fullmatch(r"      (debit |credit) \S+ +[\d.]+", line):
            found[-1][2].append(" ".join(line.split()))
    return textwrap.dedent(schedule), found


def test_the_priced_examples_are_what_is_booked() -> None:
    """By the document's own schedule each settlement makes the lines that stand under it."""
    schedule, told = priced_examples()
    terms = terms_of([read_schedule(tomllib.loads(schedule))])
    assert {kind for kind, *_ in told} == set(RULE_OF)
    books = UNKNOWN_PAYMENT
    for number, (kind, amount, lines) in enumerate(told):
        movement = entry_of(
            1, merchant_id=merchant_of(kind), kind=kind,
            amount_minor=int(amount.replace(".", "")),
            gateway="none" if kind == "credit" else "sim", operation_id=f"op-{number}",
            payment_method="card",
        )  # fmt: skip
        entry = priced(movement, books, terms)
        books = after(books, entry)
        booked = {
            f"{'debit' if p.amount_minor > 0 else 'credit'} {p.account} "
            f"{abs(p.amount_minor) // 100}.{abs(p.amount_minor) % 100:02d}"
            for p in entry.postings
        }
        assert booked == set(lines), f"{kind} {amount}"


def test_the_document_has_the_chart_of_accounts() -> None:
    """Every account a reader may meet is in the table, and no other."""
    text = LEDGER_DOCUMENT.read_text(encoding="utf-8")
    chapter = text.partition("## Chart of accounts")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+):<", chapter, re.MULTILINE)) == set(CHART)


def test_a_refund_is_the_reverse() -> None:
    """Debit the merchant's payable, credit the gateway's receivable."""
    assert entry_of(1, kind="refund", amount_minor=-700).postings == (
        Posting("gateway_receivable:simulator", "GBP", -700),
        Posting("merchant_payable:m1", "GBP", 700),
    )


@pytest.mark.parametrize(("back", "forth"), [("refund", "refund_failed"), ("dispute", "reversal")])
def test_what_comes_undone_leaves_no_trace_in_the_balances(back: str, forth: str) -> None:
    """A refund that failed later and a dispute that was won restore every account."""
    balances: Counter[str] = Counter()
    for kind, amount_minor in ((back, -700), (forth, 700)):
        for posting in entry_of(1, kind=kind, amount_minor=amount_minor).postings:
            balances[posting.account] += posting.amount_minor
    assert set(balances.values()) == {0}


def test_a_dispute_does_not_touch_the_merchant() -> None:
    """Who bears it is decided later: refunded plus charged back may be more than was captured."""
    accounts = {p.account for p in entry_of(1, kind="dispute", amount_minor=-5).postings}
    assert accounts == {"gateway_receivable:simulator", "disputes_and_losses:m1"}


def test_an_entry_is_the_same_each_time() -> None:
    """A redelivered settlement makes the very same entry, so it is found by its id."""
    assert entry_of(1) == entry_of(1)
    assert entry_of(1).entry_id == f"settlement:{settlement(1).settlement_id}"


@given(
    kind=st.sampled_from(sorted(RULE_OF)),
    amount_minor=st.integers(1, AMOUNT_MINOR_MAX),
    currency=st.sampled_from(sorted(MINOR_UNITS)),
)
def test_every_entry_balances(kind: str, amount_minor: int, currency: str) -> None:
    """Whatever is booked, debits and credits are equal integers in its one currency."""
    signed = amount_minor * RULE_OF[kind].sign
    gateway = "none" if kind == "credit" else "simulator"
    entry = entry_of(1, kind=kind, amount_minor=signed, currency=currency, gateway=gateway)
    assert sum(p.amount_minor for p in entry.postings) == 0
    assert {p.currency for p in entry.postings} == {currency}
    assert all(type(p.amount_minor) is int for p in entry.postings)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"kind": "clearing"}, "settlement_kind_must_be_known"),
        ({"kind": ""}, "settlement_kind_must_be_known"),
        ({"amount_minor": 0}, "capture_amount_must_be_positive"),
        ({"amount_minor": -1}, "capture_amount_must_be_positive"),
        ({"kind": "refund", "amount_minor": 1}, "refund_amount_must_be_negative"),
        ({"kind": "refund", "amount_minor": 0}, "refund_amount_must_be_negative"),
        ({"kind": "refund_failed", "amount_minor": -1}, "refund_failed_amount_must_be_positive"),
        ({"kind": "dispute", "amount_minor": 1}, "dispute_amount_must_be_negative"),
        ({"kind": "reversal", "amount_minor": -1}, "reversal_amount_must_be_positive"),
        ({"kind": "dispute_fee", "amount_minor": 1}, "dispute_fee_amount_must_be_negative"),
        (
            {"kind": "external_refund", "amount_minor": 1},
            "external_refund_amount_must_be_negative",
        ),
        (
            {"kind": "unasked_capture", "amount_minor": -1},
            "unasked_capture_amount_must_be_positive",
        ),
        ({"kind": "unasked_refund", "amount_minor": 1}, "unasked_refund_amount_must_be_negative"),
        (
            {"kind": "unasked_refund_failed", "amount_minor": -1},
            "unasked_refund_failed_amount_must_be_positive",
        ),
        (
            {"kind": "unasked_external_refund", "amount_minor": 1},
            "unasked_external_refund_amount_must_be_negative",
        ),
        ({"kind": "credit", "amount_minor": 1}, "credit_amount_must_be_negative"),
        ({"kind": "credit", "amount_minor": -1}, "settlement_gateway_must_fit_its_kind"),
        ({"gateway": "none"}, "settlement_gateway_must_fit_its_kind"),
        ({"amount_minor": AMOUNT_MINOR_MAX + 1}, "settlement_amount_must_not_exceed_limit"),
        (
            {"kind": "refund", "amount_minor": -AMOUNT_MINOR_MAX - 1},
            "settlement_amount_must_not_exceed_limit",
        ),
        ({"currency": "gbp"}, "settlement_currency_must_be_iso_4217"),
        ({"business_date": "2010-13-01"}, "settlement_business_date_must_be_a_date"),
        ({"merchant_id": "a:b"}, "settlement_ids_must_be_well_formed"),
        ({"order_id": "x\x00"}, "settlement_ids_must_be_well_formed"),
        ({"gateway": "a/b"}, "settlement_ids_must_be_well_formed"),
        ({"operation_id": ""}, "settlement_ids_must_be_well_formed"),
        ({"settlement_id": "1"}, "settlement_ids_must_be_well_formed"),
        ({"gateway_reference": "a\x00b"}, "settlement_gateway_reference_must_be_printable"),
        ({"gateway_reference": "x" * 256}, "settlement_gateway_reference_must_be_printable"),
    ],
)
def test_what_cannot_be_booked_is_refused_by_name(changed: dict[str, Any], rule: str) -> None:
    """No guess and no exception: a rule's name, which becomes the dead letter's cause."""
    refused = journal_entry(settlement(1, **changed))
    assert isinstance(refused, PostingRefused)
    assert refused.rule == rule
    assert refused.rule in RULES
    assert refused.detail


@pytest.mark.parametrize(
    "postings",
    [
        (),
        (Posting("a", "GBP", 1),),
        (Posting("a", "GBP", 1), Posting("b", "GBP", -2)),
        (Posting("a", "GBP", 1), Posting("b", "EUR", -1)),
        (Posting("a", "GBP", 1.0), Posting("b", "GBP", -1.0)),  # type: ignore[arg-type]
    ],
)
def test_an_unbalanced_entry_is_a_bug(postings: tuple[Posting, ...]) -> None:
    """A rule that made money would stop the process before anything is committed."""
    entry = entry_of(1)
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    with pytest.raises(InvariantBroken):
        balanced(JournalEntry(**{**fields, "postings": postings}))
