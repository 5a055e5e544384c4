"""The audit's own figures for fees, closed periods and decisions: they agree with the ledger's
rules on anything, and a damage of each kind is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.audit.ledger_copy import EntrySeen, PostingSeen, WaitingSeen
from pipeline.audit.report import Severity
from pipeline.audit.terms import (
    CaptureBooked,
    Decisions,
    DecisionSeen,
    Movement,
    PaymentTerms,
    RefundBooked,
    tier_corrections,
    tier_returns,
)
from pipeline.domain import fees
from pipeline.domain.fee_schedule import read_schedule, terms_of
from pipeline.domain.fees import UNKNOWN_PAYMENT, after, priced, tier_correction
from tests.support.audit_flow import CATALOGUE, PARTITIONS, START_MS, Flow, Row, healthy_flow
from tests.support.examples import share_of
from tests.support.ledger import entry_of

TOPIC = CATALOGUE.name("ledger-events")
SCHEDULE = {
    "plans": [{"name": "p", "currency": "GBP", "percentage": "2", "fixed_minor": 10,
               "tiers": [{"above_minor": 1_000, "percentage": "1"}]}],
    "gateway_costs": [{"percentage": "1"}],
}  # fmt: skip

percentages = st.integers(0, 100_000).map(lambda ppm: f"{ppm // 10_000}.{ppm % 10_000:04d}")
plans = st.fixed_dictionaries(
    {"name": st.just("p"), "currency": st.just("GBP"), "percentage": percentages},
    optional={
        "merchant": st.sampled_from(["m1", "m2", "*"]),
        "method": st.sampled_from(["card", "wallet"]),
        "fixed_minor": st.integers(0, 500),
        "fixed_per": st.sampled_from(["payment", "capture"]),
        "minimum_minor": st.integers(0, 500),
        "returned": st.sampled_from(["none", "percentage", "all"]),
        "disputes": st.sampled_from(["held", "merchant"]),
    },
)
costs = st.fixed_dictionaries(
    {"percentage": percentages}, optional={"gateway": st.just("north"), "returned": st.booleans()}
)
documents = st.fixed_dictionaries(
    {"plans": st.lists(plans, max_size=1), "gateway_costs": st.lists(costs, max_size=1)}
)
movements = st.lists(
    st.tuples(
        st.sampled_from(
            ["capture", "capture", "refund", "refund", "external_refund", "refund_failed",
             "dispute", "reversal", "dispute_fee", "unasked_capture", "unasked_refund"]
        ),
        st.integers(1, 10**7),
        st.sampled_from(["simulator", "north"]),
        st.integers(0, 3),
    ),
    max_size=10,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=share_of(100), deadline=None)
@given(first=documents, second=documents, moves=movements, method=st.sampled_from(["card", "a b"]))
def test_two_ways_to_the_same_fees(
    first: dict[str, Any],
    second: dict[str, Any],
    moves: list[tuple[str, int, str, int]],
    method: str,
) -> None:
    """Integers here, fractions there, no shared code: every line of every settlement is equal,
    whatever the schedules and in whatever order things happen."""
    both = [(1, 1, first), (2, 2, second)]
    terms = terms_of(
        [read_schedule(doc, version=v, effective_from_ms=from_ms) for v, from_ms, doc in both]
    )
    decisions = Decisions(
        tuple(
            DecisionSeen(0, v, v, str(v), "fee_schedule",
                         {"effective_from_ms": from_ms, "schedule": doc})
            for v, from_ms, doc in both
        )
    )  # fmt: skip
    books, walked = UNKNOWN_PAYMENT, PaymentTerms(decisions)
    for number, (kind, amount, gateway, at_ms) in enumerate(moves):
        positive = ("capture", "refund_failed", "reversal", "unasked_capture")
        minor = amount if kind in positive else -amount
        movement = entry_of(
            1, kind=kind, amount_minor=minor, gateway=gateway, operation_id=f"op{number}",
            settled_at_ms=at_ms, payment_method=method,
        )  # fmt: skip
        entry = priced(movement, books, terms)
        books = after(books, entry)
        name, lines = walked.take(
            Movement(kind, entry.merchant_id, gateway, "GBP", minor, method, at_ms)
        )
        made: dict[tuple[str, str], int] = {}
        for posting in entry.postings[2:]:
            key = posting.account, posting.currency
            made[key] = made.get(key, 0) + posting.amount_minor
        assert name == entry.terms
        assert {k: v for k, v in lines.items() if v} == {k: v for k, v in made.items() if v}


@given(
    volume=st.integers(0, 10**9),
    bounds=st.lists(st.integers(1, 10**8), min_size=1, max_size=4, unique=True),
    rates=st.lists(percentages, min_size=5, max_size=5),
)
def test_two_ways_to_the_same_tiers(volume: int, bounds: list[int], rates: list[str]) -> None:
    """The correction of a month is equal too, wherever its volume ends."""
    plan = {
        "name": "p", "currency": "GBP", "percentage": rates[4],
        "tiers": [{"above_minor": b, "percentage": r}
                  for b, r in zip(sorted(bounds), rates, strict=False)],
    }  # fmt: skip
    close = DecisionSeen(0, 1, 2, "c", "period_close", {"through": "2027-01-31", "cuts": {}})
    schedule = DecisionSeen(0, 0, 1, "s", "fee_schedule",
                            {"effective_from_ms": 0, "schedule": {"plans": [plan]}})  # fmt: skip
    found = tier_corrections(
        Decisions((schedule, close)), close,
        [CaptureBooked("2027-01-15", "shop", "GBP", "1/p/", volume)],
    )  # fmt: skip
    (made,) = read_schedule({"plans": [plan]}).plans
    assert found["2027-01", "shop", "GBP", "1/p/"] == tier_correction(made, volume)


@given(
    volumes=st.lists(st.integers(0, 10**9), min_size=2, max_size=4),
    bounds=st.lists(st.integers(1, 10**9), min_size=4, max_size=4),
    rates=st.lists(percentages, min_size=8, max_size=8),
    together=st.booleans(),
)
def test_two_ways_to_the_tiers_of_a_month_of_several_versions(
    volumes: list[int], bounds: list[int], rates: list[str], together: bool
) -> None:
    """Each version's part is equal, as a close of today counts them and as one of before did."""
    plans = [
        {"name": "p", "currency": "GBP", "percentage": rates[2 * n],
         "tiers": [{"above_minor": bounds[n], "percentage": rates[2 * n + 1]}]}
        for n in range(len(volumes))
    ]  # fmt: skip
    schedules = [
        DecisionSeen(0, n, n + 1, f"s{n}", "fee_schedule",
                     {"effective_from_ms": n, "schedule": {"plans": [plan]}})
        for n, plan in enumerate(plans)
    ]  # fmt: skip
    body = {"through": "2027-01-31", "cuts": {}, **({"tiers": "over_versions"} if together else {})}
    close = DecisionSeen(0, 9, 9, "c", "period_close", body)
    captures = [
        CaptureBooked("2027-01-15", "shop", "GBP", f"{n}/p/card", volume)
        for n, volume in enumerate(volumes, 1)
    ]
    found = tier_corrections(Decisions((*schedules, close)), close, captures)
    slices = [
        (read_schedule({"plans": [plan]}).plans[0], volume)
        for plan, volume in zip(plans, volumes, strict=True)
    ]
    wanted = (
        fees.tier_corrections(slices) if together else [tier_correction(*each) for each in slices]
    )
    assert [found["2027-01", "shop", "GBP", f"{n}/p/"] for n in range(1, len(plans) + 1)] == wanted


@pytest.mark.parametrize(
    ("returned", "said", "taken"),
    [
        ("all", {"tiers": "over_versions"}, [-33, -67, -100]),
        ("percentage", {"tiers": "over_versions"}, [-33, -67, -100]),
        ("none", {"tiers": "over_versions"}, [0, 0, 0]),
        ("all", {}, [0, 0, 0]),
    ],
)
def test_what_refunds_take_back_of_tiers_sums_to_the_whole(
    returned: str, said: dict[str, str], taken: list[int]
) -> None:
    """Of 200.00 that the tiers made 1.00 cheaper, 66.67, 133.33 and all are refunded by the ends of
    three periods, of which one refund failed: 0.33, 0.67 and 1.00 are taken again, in all. A close
    of before this was so takes nothing."""
    plan = {"name": "p", "currency": "GBP", "returned": returned}
    schedule = DecisionSeen(0, 0, 1, "s", "fee_schedule",
                            {"effective_from_ms": 0, "schedule": {"plans": [plan]}})  # fmt: skip
    captures = [
        CaptureBooked("2026-12-01", "shop", "GBP", "1/p/card", 120_00, "one"),
        CaptureBooked("2026-12-02", "shop", "GBP", "1/p/", 80_00, "two"),
    ]
    refunds = [
        RefundBooked("2027-01-05", "one", 70_00), RefundBooked("2027-01-06", "one", -3_33),
        RefundBooked("2027-02-05", "one", 53_33), RefundBooked("2027-02-05", "two", 13_33),
        RefundBooked("2027-03-05", "two", 66_67),
    ]  # fmt: skip
    key = "2026-12", "shop", "GBP", "1/p/"
    found = []
    for through in ("2027-01-31", "2027-02-28", "2027-03-31"):
        close = DecisionSeen(0, 9, 9, "c", "period_close", {"through": through, "cuts": {}, **said})
        back = tier_returns(close, Decisions((schedule,)), {key: -100}, captures, refunds)
        found.append(-back[key])
    assert found == taken


def test_where_no_tier_was_corrected_nothing_is_walked_at_a_close() -> None:
    """A year of daily closes over all sales would take most of an audit."""
    close = DecisionSeen(0, 9, 9, "c", "period_close",
                         {"through": "2027-01-31", "tiers": "over_versions"})  # fmt: skip
    refunds = iter([RefundBooked("2027-01-05", "one", 70_00)])
    assert not tier_returns(close, Decisions(()), {}, [], refunds)
    assert next(refunds).payment == "one"


def decide(flow: Flow, kind: str, body: dict[str, Any]) -> Row:
    number = sum(row.role == "ledger-events" for row in flow.rows) + 1
    row = flow.append(
        "ledger-events", b"ledger",
        {"event_id": f"e{number}", "kind": kind, "sequence": number, "actor": "anna",
         "reason": "", "decided_at_ms": START_MS, "body": json.dumps(body)},
    )  # fmt: skip
    flow.all_processed()
    for p in range(PARTITIONS):
        flow.ledger_offsets[TOPIC, p] = flow.ends()["ledger-events", p]
    return row


def sale(flow: Flow, key: str, lines: list[tuple[str, int]], **entry: str) -> None:
    """12.50 captured under the schedule, with these lines beside the movement."""
    flow.captured(key)
    row = flow.of("settlements", key)
    assert row.fields is not None
    row.fields |= {"settled_at_ms": START_MS + 1, "payment_method": "card"}
    flow.entries[-1] = replace(
        flow.entries[-1],
        postings=(*flow.entries[-1].postings,
                  *(PostingSeen(account, "GBP", minor) for account, minor in lines)),
        kind="capture", merchant_id="shop", business_date="2027-01-15", terms="1/p/card", **entry,
    )  # fmt: skip


PRICED = [
    # 12.50 at 2 % + 0.10 is 0.35; the gateway takes 1 %, 0.125: 0.13.
    ("merchant_payable:shop", 35), ("fee_revenue:shop", -35),
    ("gateway_cost:sim", 13), ("gateway_receivable:sim", -13),
]  # fmt: skip


def priced_flow() -> Flow:
    """The healthy flow; then a fee schedule, a sale, a close, a late sale, an entry by hand."""
    flow = healthy_flow()
    gateway = flow.entries[0].postings[0].account.partition(":")[2]
    lines = [(account.replace("sim", gateway), minor) for account, minor in PRICED]
    decide(flow, "fee_schedule", {"effective_from_ms": START_MS + 1, "schedule": SCHEDULE})
    sale(flow, "shop:f1", lines)
    flow.all_processed()
    cuts = {str(p): flow.ends()["settlements", p] for p in range(PARTITIONS)}
    close = decide(flow, "period_close", {"through": "2027-01-31", "cuts": cuts})
    # 2.50 above 10.00 at 1 % instead of 2 %: 0.025 less, which is 0.03.
    flow.entries.append(
        EntrySeen(
            "fee_true_up:e2", "", TOPIC, close.partition, close.offset,
            (PostingSeen("merchant_payable:shop", "GBP", -3),
             PostingSeen("fee_revenue:shop", "GBP", 3)),
            "fee_true_up", "shop", "2027-01-31", "", "1/p/",
        )
    )  # fmt: skip
    sale(flow, "shop:f2", lines, booked_date="2027-02-01")
    hand = decide(
        flow, "entry",
        {"kind": "adjustment", "merchant_id": "shop", "business_date": "2027-01-20",
         "postings": [["suspense:sim", "GBP", 5], ["bank:main", "GBP", -5]]},
    )  # fmt: skip
    flow.entries.append(
        EntrySeen(
            "adjustment:e3", "", TOPIC, hand.partition, hand.offset,
            (PostingSeen("suspense:sim", "GBP", 5), PostingSeen("bank:main", "GBP", -5)),
            "adjustment", "shop", "2027-01-20", "2027-02-01",
        )
    )  # fmt: skip
    return flow


def cleared_flow() -> Flow:
    """The priced flow; then a report's row about its first sale, and the bank's line."""
    flow = priced_flow()
    sold = next(e for e in flow.entries if flow_key(flow, e) == "shop:f1")
    gateway = sold.postings[0].account.partition(":")[2]
    row = decide(flow, "clearing", {
        "gateway": gateway, "rows": [["r-1", 7, sold.settlement_id, 1250, 15, "2027-02-02"]],
    })  # fmt: skip
    # The cost was 15, not 13; 12.50 less 0.35 become available.
    lines = [(f"gateway_cost:{gateway}", 2), (f"gateway_receivable:{gateway}", -2),
             ("merchant_payable:shop", 1215), ("merchant_available:shop", -1215)]  # fmt: skip
    line = decide(flow, "bank_statement", {
        "account": "acct", "file_id": "s", "lines": [
            {"line_id": "1", "amount_minor": 1235, "currency": "GBP", "value_date": "2027-02-03",
             "gateway": gateway, "batch_id": "b", "text": ""},
            {"line_id": "2", "amount_minor": 9, "currency": "GBP", "value_date": "2027-02-03",
             "gateway": "", "batch_id": "", "text": "nobody's"},
        ],
    })  # fmt: skip
    paid = [("bank:acct", 1235), (f"gateway_receivable:{gateway}", -1235)]
    # What the month's tiers gave back waits for no gateway.
    freed = decide(flow, "release", {"date": "2027-02-02", "entries": ["fee_true_up:e2"]})
    given_back = [("merchant_payable:shop", 3), ("merchant_available:shop", -3)]
    for entry_id, kind, at, postings in (
        ("release:fee_true_up:e2", "release", freed, given_back),
        (f"clearing:{gateway}:r-1:7", "clearing", row, lines),
        ("bank:acct:s:1", "bank_receipt", line, paid),
    ):
        flow.entries.append(
            EntrySeen(
                entry_id, "", TOPIC, at.partition, at.offset,
                tuple(PostingSeen(account, "GBP", minor) for account, minor in postings),
                kind, "shop", "2027-02-02",
            )
        )  # fmt: skip
    return flow


def _change(flow: Flow, entry_id: str, change: Callable[[EntrySeen], EntrySeen]) -> None:
    at = next(
        n for n, entry in enumerate(flow.entries)
        if entry_id in (entry.entry_id, flow_key(flow, entry))
    )  # fmt: skip
    flow.entries[at] = change(flow.entries[at])


def flow_key(flow: Flow, entry: EntrySeen) -> str:
    for row in flow.rows:
        fields = row.fields or {}
        if row.role == "settlements" and fields["settlement_id"] == entry.settlement_id:
            return (row.key or b"").decode()
    return ""


def _line(entry: EntrySeen, number: int, **changed: Any) -> EntrySeen:
    lines = list(entry.postings)
    lines[number] = replace(lines[number], **changed)
    return replace(entry, postings=tuple(lines))


def test_priced_books_are_whole() -> None:
    """Nothing is found in a flow that has fees, a closed month, late truths and entries by hand."""
    assert priced_flow().audit() == []


def _fee_and_payable(entry: EntrySeen, minor: int) -> EntrySeen:
    return _line(_line(entry, 2, amount_minor=minor), 3, amount_minor=-minor)


DAMAGES: dict[str, tuple[Callable[[Flow], None], set[str]]] = {
    "a fee of a minor unit less": (
        lambda f: _change(f, "shop:f1", lambda e: _fee_and_payable(e, 34)),
        {"journal_entry_fees_wrong"},
    ),
    "no fee at all": (
        lambda f: _change(f, "shop:f1", lambda e: replace(e, postings=e.postings[:2], terms="")),
        {"journal_entry_fees_wrong", "tier_correction_wrong"},
    ),
    "the terms of another plan": (
        lambda f: _change(f, "shop:f2", lambda e: replace(e, terms="1/-/card")),
        {"journal_entry_fees_wrong"},
    ),
    "another amount under terms": (
        lambda f: _change(
            f, "shop:f2",
            lambda e: _line(_line(e, 0, amount_minor=1249), 1, amount_minor=-1249),
        ),
        {"journal_entry_amount_wrong"},
    ),
    "a late sale in the closed month": (
        lambda f: _change(f, "shop:f2", lambda e: replace(e, booked_date="")),
        {"journal_entry_day_wrong", "tier_correction_wrong"},
    ),
    "an early sale moved out of it": (
        lambda f: _change(f, "shop:c1", lambda e: replace(e, booked_date="2027-02-01")),
        {"journal_entry_day_wrong"},
    ),
    "a correction of tiers too high": (
        lambda f: _change(
            f, "fee_true_up:e2",
            lambda e: _line(_line(e, 0, amount_minor=-4), 1, amount_minor=4),
        ),
        {"tier_correction_wrong"},
    ),
    "a return of tiers that no refund made": (
        lambda f: f.entries.append(
            replace(
                next(e for e in f.entries if e.kind == "fee_true_up"),
                entry_id="fee_true_up_returned:e2:shop:2027-01-31:2027-01:1/p/:GBP",
                kind="fee_true_up_returned",
            )
        ),
        {"tier_correction_wrong"},
    ),
    "a correction of tiers that is missing": (
        lambda f: f.entries.remove(next(e for e in f.entries if e.kind == "fee_true_up")),
        {"tier_correction_wrong"},
    ),
    "an entry by hand that is missing": (
        lambda f: f.entries.remove(next(e for e in f.entries if e.kind == "adjustment")),
        {"journal_entry_without_decision"},
    ),
    "an entry by hand of another amount": (
        lambda f: _change(
            f, "adjustment:e3", lambda e: _line(_line(e, 0, amount_minor=6), 1, amount_minor=-6)
        ),
        {"journal_entry_without_decision"},
    ),
    "an entry that nobody decided": (
        lambda f: f.entries.append(
            replace(next(e for e in f.entries if e.kind == "adjustment"), source_offset=1)
        ),
        {"journal_entry_without_decision"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_of_priced_books_is_named(damage: str) -> None:
    """One change, and nothing is found but what it breaks."""
    flow = priced_flow()
    harm, wanted = DAMAGES[damage]
    harm(flow)
    assert {f.name for f in flow.audit() if f.severity is Severity.BROKEN} == wanted


def test_a_decision_that_is_published_and_not_booked_is_pending() -> None:
    """A command was killed between the two, or the ledger is a backup's; not told twice where it
    knows the decision itself."""
    flow = priced_flow()
    row = decide(flow, "payout_terms", {})
    assert row.fields is not None
    assert flow.audit() == []
    flow.ledger_offsets[TOPIC, row.partition] = row.offset
    (found,) = flow.audit()
    assert (found.name, found.severity, found.count) == (
        "decision_not_booked", Severity.PENDING, 1,
    )  # fmt: skip
    assert f"decision {row.fields['sequence']}, payout_terms by anna" in str(found.example)
    flow.waiting = [WaitingSeen(row.fields["event_id"], 4, "payout_terms", "anna")]
    (found,) = flow.audit()
    assert (found.count, found.example.topic) == (1, "ledger")


def test_a_schedule_that_is_not_published_yet_is_pending() -> None:
    """The ledger follows it from the moment it is decided; the topic has it a moment later."""
    flow = priced_flow()
    flow.rows.remove(flow.of("ledger-events"))
    found = {(f.name, f.severity) for f in flow.audit()}
    assert ("journal_entry_fees_wrong", Severity.PENDING) in found
    assert ("journal_entry_fees_wrong", Severity.BROKEN) not in found


def test_cleared_books_are_whole() -> None:
    """A row that trues up the cost and makes the net available, and the bank's payment of it."""
    assert cleared_flow().audit() == []


CLEARING_DAMAGES: dict[str, Callable[[Flow], None]] = {
    "a cost that was not trued up": lambda f: _change(
        f, _name(f, "clearing:"), lambda e: replace(e, postings=e.postings[2:])
    ),
    "more made available than was posted": lambda f: _change(
        f, _name(f, "clearing:"),
        lambda e: _line(_line(e, 2, amount_minor=1216), 3, amount_minor=-1216),
    ),
    "a row that was not booked": lambda f: f.entries.remove(
        next(e for e in f.entries if e.kind == "clearing")
    ),
    "a row that nobody decided": lambda f: f.entries.append(
        replace(next(e for e in f.entries if e.kind == "clearing"), entry_id="clearing:x:y:1")
    ),
    "another amount at the bank": lambda f: _change(
        f, "bank:acct:s:1",
        lambda e: _line(_line(e, 0, amount_minor=1236), 1, amount_minor=-1236),
    ),
    "more released than was posted": lambda f: _change(
        f, "release:fee_true_up:e2",
        lambda e: _line(_line(e, 0, amount_minor=4), 1, amount_minor=-4),
    ),
    "what was decided and not released": lambda f: f.entries.remove(
        next(e for e in f.entries if e.kind == "release")
    ),
    "a sale that was released without a row": lambda f: _release_a_sale(f),
    "a line of nobody that was booked": lambda f: f.entries.append(
        replace(next(e for e in f.entries if e.kind == "bank_receipt"), entry_id="bank:acct:s:2")
    ),
}  # fmt: skip


def _release_a_sale(flow: Flow) -> None:
    """Decided and booked as decided, but a gateway has to report it."""
    sold = next(e for e in flow.entries if flow_key(flow, e) == "shop:f1")
    at = decide(flow, "release", {"date": "2027-02-02", "entries": [sold.entry_id]})
    postings = (PostingSeen("merchant_payable:shop", "GBP", 1215),
                PostingSeen("merchant_available:shop", "GBP", -1215))  # fmt: skip
    flow.entries.append(
        EntrySeen(f"release:{sold.entry_id}", "", TOPIC, at.partition, at.offset, postings,
                  "release", "shop", "2027-02-02")
    )  # fmt: skip


def _name(flow: Flow, prefix: str) -> str:
    return next(e.entry_id for e in flow.entries if e.entry_id.startswith(prefix))


@pytest.mark.parametrize("damage", CLEARING_DAMAGES)
def test_a_damage_of_cleared_books_is_named(damage: str) -> None:
    """What a row or a line has posted is worked out a second time."""
    flow = cleared_flow()
    CLEARING_DAMAGES[damage](flow)
    assert {f.name for f in flow.audit() if f.severity is Severity.BROKEN} == {"clearing_wrong"}
