"""How whoever publishes an order learns that it is rejected or contradicts another one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from consumers.event_subscriber import EventSubscriber
from pipeline.cli import app
from pipeline.domain.model import Payment, PaymentEvent
from tests.integration.test_payment_commands import Topics, topics
from tests.support.cli_runner import CliRunner
from tests.support.payment_story import ORDER, Story, yes
from tests.support.topics import read_all
from tests.support.waiting import WAIT_S, wait_until

__all__ = ["topics"]

pytestmark = pytest.mark.integration

SUBMIT = [
    *("order", "submit", "--merchant", "shop", "--order-id", "1", "--currency", "GBP"),
    *("--token", "tok_1", "--business-date", ORDER.business_date, "--wait", "60"),
]


def submitted(topics: Topics, amount: str) -> tuple[int, str]:
    """What `order submit --wait` ends with, and its last line."""
    result = CliRunner().invoke(app, [*SUBMIT, "--amount", amount, *topics.options])
    return result.exit_code, result.stdout.splitlines()[-1]


@contextmanager
def answering(topics: Topics, *nouns: Payment | PaymentEvent) -> Iterator[None]:
    """A flow that writes this once an order more is there."""
    before = len(read_all(topics.servers, f"{topics.prefix}orders"))

    def answer() -> None:
        def is_there() -> bool:
            return len(read_all(topics.servers, f"{topics.prefix}orders")) > before

        wait_until(is_there, WAIT_S, "the order is published")
        topics.write(*nouns)

    flow = threading.Thread(target=answer)
    flow.start()
    yield
    flow.join()


def story(change: Callable[[Story], object], **order: int) -> Story:
    told = Story(replace(ORDER, **order))
    change(told)
    return told


def test_an_order_that_is_submitted_is_followed_to_its_answer(topics: Topics) -> None:
    """Rejected by a rule, and refused as another one under known ids: 1, and by name; the same
    order again is repeated."""
    broken = story(lambda told: None, amount_minor=-100)
    with answering(topics, broken.payment, *broken.flow.events()):
        assert submitted(topics, "-1.00") == (1, "rejected  amount_must_not_be_negative")
    made = story(lambda told: told.flow.answer(yes))
    topics.write(made.payment, *made.flow.events())
    done = "the payment is captured"
    assert submitted(topics, "5.00") == (
        0, f"repeated  it was taken before and has no effect now; {done}",
    )  # fmt: skip
    made.flow.order(replace(ORDER, amount_minor=700))
    with answering(topics, made.payment, made.flow.events()[-1]):
        code, line = submitted(topics, "7.00")
    assert (code, line.split(":")[0]) == (1, "rejected  amount_must_not_change")


def test_a_program_hears_of_every_step_of_its_orders(topics: Topics) -> None:
    """In order, whole, and what was committed does not come again."""
    made = story(lambda told: told.flow.answer(yes))
    made.flow.order(replace(ORDER, amount_minor=700))
    wanted = made.flow.events()
    topics.write(*wanted)
    heard: list[PaymentEvent] = []
    name = f"{topics.prefix}payment-events"
    group = f"{topics.prefix}desk"
    with EventSubscriber(topics.servers, group, topic=name, start="earliest") as events:
        for event, _position in events:
            heard.append(event)
            if len(heard) == len(wanted):
                break
        assert events.commit()
    assert heard == wanted
    assert (heard[-1].type, heard[-1].reason) == ("order_conflict", "amount_must_not_change")
    with EventSubscriber(topics.servers, group, topic=name) as events:
        assert events.poll(1.0) is None
