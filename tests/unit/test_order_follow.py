"""What whoever submits an order by hand is told of it, as far as that needs no broker."""

from __future__ import annotations

from msgspec.structs import replace

from pipeline.commands.order_follow import is_known, judged_order
from pipeline.commands.payment_follow import (
    DONE,
    FAILED,
    REJECTED,
    REPEATED,
    Outcome,
    PaymentSeen,
)
from tests.support.payment_story import DECLINED, MANUAL, ORDER, Story, command, yes

OTHER = replace(ORDER, amount_minor=501)


def seen(story: Story, since: int = 0) -> PaymentSeen:
    """The payment, and of its events those behind the first ones as fresh."""
    events = story.flow.events()
    return PaymentSeen(story.flow.payment("shop", "1"), events, events[since:])


def test_an_order_is_followed_until_its_payment_is_made() -> None:
    """What is not read yet, or under way, is no outcome."""
    assert judged_order(PaymentSeen(), ORDER) is None
    story = Story()
    assert judged_order(seen(story), ORDER) is None
    story.flow.answer(yes)
    assert judged_order(seen(story), ORDER) == Outcome(DONE, "the payment is captured")
    held = Story(MANUAL)
    held.flow.answer(yes)
    assert judged_order(seen(held), MANUAL) == Outcome(DONE, "the payment is authorized")
    free = replace(ORDER, amount_minor=0)
    due = Outcome(DONE, "the payment is no_payment_due")
    assert judged_order(seen(Story(free)), free) == due


def test_an_order_that_breaks_a_rule_is_told_by_its_rule() -> None:
    """`published` alone looks as if it were paid."""
    broken = replace(ORDER, amount_minor=-1)
    rule = "amount_must_not_be_negative"
    assert judged_order(seen(Story(broken)), broken) == Outcome(REJECTED, rule)


def test_a_declined_charge_is_a_failure() -> None:
    story = Story()
    story.flow.answer(DECLINED)
    outcome = judged_order(seen(story), ORDER)
    assert outcome == Outcome(FAILED, f"the payment is failed ({story.payment.reason})")


def test_another_order_under_known_ids_is_told_as_refused() -> None:
    """By the event of this time: the payment of the first one stands, and its end is not this
    order's; nor is the refusal of an earlier one."""
    story = Story()
    story.flow.answer(yes)
    before = len(story.flow.events())
    assert not is_known(story.payment, OTHER)
    assert judged_order(seen(story, before), OTHER) is None
    story.flow.order(OTHER)
    outcome = judged_order(seen(story, before), OTHER)
    text = "amount_must_not_change: another order has these ids, and its payment is captured"
    assert outcome == Outcome(REJECTED, text)
    assert judged_order(seen(story, len(story.flow.events())), OTHER) is None


def test_the_same_order_again_is_told_as_repeated() -> None:
    """Nothing was charged this time; a rejection from before is still one."""
    story = Story()
    story.flow.answer(yes)
    assert is_known(story.payment, ORDER)
    assert judged_order(seen(story), ORDER, repeated=True) == Outcome(
        REPEATED, "it was taken before and has no effect now; the payment is captured"
    )
    broken = replace(ORDER, amount_minor=-1)
    again = judged_order(seen(Story(broken)), broken, repeated=True)
    assert again is not None
    assert again.kind == REJECTED


def test_a_payment_that_waits_for_its_order_is_not_taken_for_it() -> None:
    """A command was faster: what it left is neither the order's payment nor another's."""
    story = Story(None)
    story.flow.command(command("refund", "early"))
    placeholder = story.flow.payment("shop", "1")
    assert placeholder is not None
    assert not is_known(placeholder, ORDER)
    assert judged_order(PaymentSeen(placeholder), ORDER) is None
