"""What the simulation's auditor makes of money, lives and books that are not right."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from tests.simulation.auditor import Auditor
from tests.simulation.disputes import DisputePlan, GatewayDispute
from tests.simulation.gateway import Movement, Script
from tests.simulation.lives import SUCCEED, CommandPlan, OrderPlan
from tests.simulation.log import Cluster, Intent
from tests.simulation.money import Money
from tests.simulation.outcomes import Outcomes
from tests.simulation.plan import AUTHORIZATION_S, AWAITING_ORDER_S, DECLINES_MAX, Plan
from tests.simulation.stories import Stories
from tests.simulation.violation import Violation
from tests.simulation.world import BEGIN_S, World

ORDER = OrderPlan(1, 0.0, 500, Script(SUCCEED))


def moved(kind: str, amount_minor: int = 500, operation_id: str = "o1") -> Movement:
    return Movement(0.0, "alpha", kind, "o1", operation_id, f"k-{operation_id}", amount_minor, "r1")


def event(sequence: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "order_id": "o1", "sequence": sequence, "type": name, "status": "captured",
        "operation_id": None, "kind": None, "occurred_at_ms": 0, **more,
    }  # fmt: skip


def payment(status: str, **more: Any) -> dict[str, Any]:
    return {
        "status": status, "attempts": (), "commands": (), "sequence": 0, "captured_minor": 0,
        "refunded_minor": 0, "charged_back_minor": 0, "reason": None, **more,
    }  # fmt: skip


def outcomes(order: OrderPlan, money: Money) -> Outcomes:
    plan = Plan(0, (order,), ())
    return Outcomes(plan, money, Stories({"o1": order}))


def settled(money: Money, **amounts: int) -> None:
    for kind, amount_minor in amounts.items():
        money.settled_minor["o1", kind] = amount_minor


def test_money_that_is_kept_of_what_was_cancelled_is_noticed() -> None:
    """The customer's money has to go back, unless a person was told that it did not."""
    order = replace(ORDER, shape="too late", commands=(CommandPlan(0.0, "c1", "cancel"),))
    money = Money()
    money.moved(moved("charge"))
    settled(money, capture=500)
    judged = outcomes(order, money)
    with pytest.raises(Violation, match="kept_too_much"):
        judged.judge(order, payment("cancelled", captured_minor=500))
    judged._stories.of("o1").types["reversal_failed"] = 1
    judged.judge(order, payment("cancelled", captured_minor=500))


def test_a_refund_that_came_back_is_no_refund() -> None:
    """Table and settlements that still say refunded are not what the gateway says."""
    order = replace(ORDER, shape="returned", commands=(CommandPlan(0.0, "c1", "refund"),))
    money = Money()
    for each in (moved("charge"), moved("refund", 500, "c1"), moved("return", 500, "c1")):
        money.moved(each)
    settled(money, capture=500, refund=-500)
    with pytest.raises(Violation, match="money_differs"):
        outcomes(order, money).judge(
            order, payment("captured", captured_minor=500, refunded_minor=500)
        )
    with pytest.raises(Violation, match="settlements_differ"):
        outcomes(order, money).judge(order, payment("captured", captured_minor=500))
    settled(money, refund_failed=500)
    outcomes(order, money).judge(order, payment("captured", captured_minor=500))


def test_a_lost_dispute_stands_in_the_books() -> None:
    """What the bank took, and its fee, are the merchant's loss and less from the gateway."""
    money = Money()
    money.moved(moved("charge"))
    dispute = GatewayDispute(
        "d1", DisputePlan(("opened", "lost"), 0.0, 0.0, fee_minor=15), None, "r1", 500
    )
    dispute.next()
    dispute.next()
    money.disputes["o1"].append(("alpha", dispute))
    assert money.balances("shop") == {
        "gateway_receivable:alpha": -15,
        "merchant_payable:shop": -500,
        "disputes_and_losses:shop": 515,
    }
    assert money.settlements("o1")["disputes"] == -500
    assert money.kept_minor("o1") == 0


def test_a_retry_that_a_cancel_barred_must_not_begin() -> None:
    """The cancel was written after the retry, and taken while the payment had failed."""
    stories = Stories({"o1": ORDER})
    stories.commanded("o1", "c1", "retry", None)
    stories.commanded("o1", "c2", "cancel", None)
    stories.commanded("o1", "c3", "retry", None)
    stories.told(event(1, "cancel_requested", status="failed", operation_id="c2"))
    stories.told(event(2, "payment_retried", operation_id="c3"))
    with pytest.raises(Violation, match="barred_retry_sent"):
        stories.told(event(3, "payment_retried", operation_id="c1"))


def test_a_capture_is_given_up_only_when_its_order_was_not_handled_for_long() -> None:
    """A worker was frozen and its successors killed, so the order lay unread for longer than a
    command waits: that is told, and the hold ends. Sooner it must not be, nor without a word."""
    capture = CommandPlan(0.0, "c1", "capture")
    order = replace(ORDER, capture_method="manual", commands=(capture,))
    told = event(1, "command_rejected", reason="order_must_arrive", operation_id="c1")
    late_ms = int((BEGIN_S + AWAITING_ORDER_S) * 1000)
    with pytest.raises(Violation, match="given_up_too_early"):
        Stories({"o1": order}).told(told, late_ms - 10_000)
    money, stories = Money(), Stories({"o1": order})
    judged = Outcomes(Plan(0, (order,), ()), money, stories)
    with pytest.raises(Violation, match="wrong_outcome"):
        judged.judge(order, payment("expired"))
    stories.told(told, late_ms)
    judged.judge(order, payment("expired", sequence=1))


@pytest.mark.parametrize(
    ("made", "said", "excused"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_an_order_fails_by_a_person_alone_and_where_no_gateway_made_its_charge(
    made: bool, said: bool, excused: bool
) -> None:
    """After all questions a person says that nothing was taken. What was taken has to be kept, and
    is not failed and given back; nor does the flow give up by itself."""
    money, stories = Money(), Stories({"o1": ORDER})
    stories.told(event(1, "inquiry_exhausted", status="outcome_unknown"))
    if made:
        money.moved(moved("charge"))
        money.moved(moved("refund", operation_id="late-o1-1"))
    if said:
        stories.commanded("o1", "c1", "resolve", None)
    judged = Outcomes(Plan(0, (ORDER,), ()), money, stories)
    if excused:
        judged._outcome(ORDER, payment("failed"))
        return
    with pytest.raises(Violation, match="wrong_outcome"):
        judged._outcome(ORDER, payment("failed"))


@pytest.mark.parametrize(
    ("before", "excused"),
    [((), True), (("dispute_opened", "dispute_won"), True), (("dispute_lost",), False)],
)
def test_what_both_gave_back_is_excused_where_no_bank_had_it_before(
    before: tuple[str, ...], excused: bool
) -> None:
    """A bank may take afterwards what has gone back; nothing goes back after it has it for good."""
    money = Money()
    for kind in ("charge", "refund"):
        money.moved(moved(kind, operation_id=kind))
    dispute = GatewayDispute(
        "d1", DisputePlan(states=("lost",), after_s=0, apart_s=0), None, "r1", 500
    )
    dispute.next()
    money.disputes["o1"].append(("alpha", dispute))
    stories = Stories({"o1": ORDER})
    back = ("reversal_started", {"operation_id": "late-o1-1", "kind": "refund"})
    after = ("dispute_opened", "dispute_lost")
    told = [*((name, {}) for name in before), back, *((name, {}) for name in after)]
    for sequence, (name, more) in enumerate(told, 1):
        stories.told(event(sequence, name, **more))
    judged = Outcomes(Plan(0, (ORDER,), ()), money, stories)
    if excused:
        judged._keeps_nothing(ORDER, payment("failed"))
        return
    with pytest.raises(Violation, match="given_back_twice"):
        judged._keeps_nothing(ORDER, payment("failed"))


@pytest.mark.parametrize("sent", ["retry_started", "resend_scheduled"])
def test_nothing_is_sent_again_to_be_given_back_in_a_dispute(sent: str) -> None:
    """Each time counts, not only the first."""
    stories = Stories({"o1": ORDER})
    back = {"operation_id": "late-o1-1", "kind": "refund"}
    stories.told(event(1, "reversal_started", **back))
    stories.told(event(2, "dispute_opened"))
    with pytest.raises(Violation, match="given_back_in_dispute"):
        stories.told(event(3, sent, **back))


@pytest.mark.parametrize(("override", "broken"), [(None, True), ("dispute", False)])
def test_nothing_is_given_back_in_a_dispute_unasked(override: str | None, broken: bool) -> None:
    """While the bank may keep the money only a person's force gives it back."""
    stories = Stories({"o1": ORDER})
    stories.commanded("o1", "c1", "give_back", override)
    stories.told(event(1, "dispute_opened"))
    back = event(2, "reversal_started", operation_id="late-o1-1", kind="refund")
    if broken:
        with pytest.raises(Violation, match="given_back_in_dispute"):
            stories.told(back)
    else:
        stories.told(back)


@pytest.mark.parametrize(
    ("told_before", "hold_s", "excused"),
    [(False, AUTHORIZATION_S, True), (True, AUTHORIZATION_S, False), (False, 60.0, False)],
)
def test_a_capture_is_excused_that_was_read_when_its_authorization_had_ended(
    told_before: bool, hold_s: float, excused: bool
) -> None:
    """A worker that is killed again and again may read it too late; one that it knew of, or that
    came while the gateway held the money, it has to carry out."""
    stories = Stories({"o1": ORDER})
    stories.told(event(1, "authorized", status="authorized", kind="authorize"))
    if told_before:
        stories.told(event(2, "command_waiting", status="authorized", operation_id="c1"))
    ended = event(
        2 + told_before, "void_started", status="authorized", operation_id="expiry-o1",
        reason="authorization_ends",
    )  # fmt: skip
    stories.told(ended, int(hold_s * 1000))
    late = event(
        3 + told_before, "command_rejected", status="expired", operation_id="c1",
        reason="payment_must_be_authorized",
    )  # fmt: skip
    stories.told(late)
    assert ("c1" in stories.of("o1").given_up) == excused


def test_nothing_is_taken_for_good_after_pay_before() -> None:
    """A success that shows late may be told, and the payment is not captured by it."""
    stories = Stories({"o1": ORDER})
    stories.of("o1").pay_before_ms = 1_000
    late = event(1, "captured", kind="charge", occurred_at_ms=1_000)
    with pytest.raises(Violation, match="taken_after_pay_before"):
        stories.told(late)


def test_nothing_is_taken_for_good_after_a_cancel() -> None:
    """A cancel that was taken while the charge was open ends the payment, whatever shows later."""
    stories = Stories({"o1": ORDER})
    stories.told(event(1, "cancel_requested", status="processing", operation_id="c1"))
    with pytest.raises(Violation, match="taken_after_cancel"):
        stories.told(event(2, "captured", kind="charge"))


def test_a_card_is_not_declined_beyond_its_cap() -> None:
    """Declines are counted by the card of the order or of its retry, over all orders."""
    orders = tuple(replace(ORDER, number=n, card="fp") for n in range(DECLINES_MAX + 1))
    auditor = Auditor(
        Plan(0, orders, ()), Cluster(World("0")), defaultdict(lambda: dict), defaultdict(str)
    )
    for order in orders[:-1]:
        auditor.declined(order.order_id, order.order_id)
    with pytest.raises(Violation, match="declined_too_often"):
        auditor.declined(orders[-1].order_id, orders[-1].order_id)


def test_a_decision_without_an_entry_in_the_audit_is_noticed() -> None:
    """A person's word in a machine's place leaves a trace, and is carried out once."""
    auditor = Auditor(
        Plan(0, (ORDER,), ()), Cluster(World("0")), defaultdict(lambda: dict), defaultdict(str)
    )
    auditor.commanded("o1", "c1", "resolve", None)
    with pytest.raises(Violation, match="not_in_the_audit"):
        auditor._people_at_rest()
    auditor._said["c1", "done"] = 2
    with pytest.raises(Violation, match="done_twice"):
        auditor._people_at_rest()


@pytest.mark.parametrize(("heard", "more", "passes"), [
    ("late_answer", False, True), (None, False, False), ("late_answer", True, False),
])  # fmt: skip
def test_only_what_answers_no_request_moves_no_offset(
    heard: str | None, more: bool, passes: bool
) -> None:
    """What was heard too late is written beside an offset that stays, which cannot say how that
    ended: told again it does no harm. Whatever else stands still was handled twice."""
    cluster = Cluster(World("0"))
    cluster.create("results", 1, 0)
    decoders: Any = defaultdict(lambda: lambda value: {"heard": heard})
    auditor = Auditor(
        Plan(0, (ORDER,), ()), cluster, decoders, defaultdict(str, {"gateway-results": "results"})
    )
    intent = Intent("gateway-0", 1)
    (partition,) = cluster.topics["results"]
    partition.append(b"shop:o1", b"word", None, 1, intent)
    intent.written = 1 + more
    auditor.offsets("gateway", {("requests", 0): 5}, [])
    if passes:
        auditor.offsets("gateway", {("requests", 0): 5}, [intent])
        auditor.believed(intent, "aborted")
        auditor.fate(intent, True)
        return
    with pytest.raises(Violation, match="offsets_went_back"):
        auditor.offsets("gateway", {("requests", 0): 5}, [intent])
    auditor.believed(intent, "aborted")
    with pytest.raises(Violation, match="false_outcome"):
        auditor.fate(intent, True)


def test_what_was_heard_too_late_is_not_lost() -> None:
    """Called committed it must be."""
    auditor = Auditor(
        Plan(0, (ORDER,), ()), Cluster(World("0")), defaultdict(lambda: dict), defaultdict(str)
    )
    intent = Intent("gateway-0", 1)
    auditor.believed(intent, "committed")
    with pytest.raises(Violation, match="false_outcome"):
        auditor.fate(intent, False)
