"""Reading payments back from a real broker, for the people who command them."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import Producer
from msgspec import Struct
from msgspec.structs import replace

from pipeline.cli import app
from pipeline.commands.payment_follow import DONE, Outcome, PaymentReader, judged
from pipeline.domain.ids import payment_id
from pipeline.domain.model import Payment, PaymentCommand, PaymentEvent
from pipeline.domain.records import SCHEMA_OF, command_from_record, to_record
from pipeline.errors import UserError
from schemas.codec import default_codec
from tests.support.cli_runner import CliRunner
from tests.support.payment_story import TIMED_OUT, Story, unasked
from tests.support.topics import read_all
from tests.unit.test_payment_commands import PAYMENT, REFUND, event, refund_attempt
from topics.catalogue import TopicSettings, build_catalogue
from topics.provisioning import provision

pytestmark = pytest.mark.integration

CODEC = default_codec()


class Topics(Struct):
    """The topics of one flow without its workers: the test writes what they would."""

    servers: str
    prefix: str

    @property
    def options(self) -> list[str]:
        return ["--bootstrap-servers", self.servers, "--prefix", self.prefix]

    def write(self, *nouns: Payment | PaymentEvent) -> None:
        catalogue = build_catalogue(TopicSettings(prefix=self.prefix, partitions=3))
        producer = Producer(
            {"bootstrap.servers": self.servers, "partitioner": "murmur2_random", "log_level": 0}
        )
        for noun in nouns:
            role = "payments" if isinstance(noun, Payment) else "payment-events"
            producer.produce(
                catalogue.name(role),
                CODEC.encoder(SCHEMA_OF[type(noun)])(to_record(noun)),
                f"{noun.merchant_id}:{noun.order_id}".encode(),
            )
        producer.flush(30)
        producer.close()

    def commands(self) -> list[PaymentCommand]:
        """Those that were published, in the order of their times."""
        catalogue = build_catalogue(TopicSettings(prefix=self.prefix, partitions=3))
        values = [
            each.value() for each in read_all(self.servers, catalogue.name("payment-commands"))
        ]
        decode = CODEC.decoder("payment-command")
        read = [command_from_record(decode(value)) for value in values]
        return sorted(read, key=lambda command: command.submitted_at_ms)

    def reader(self) -> PaymentReader:
        catalogue = build_catalogue(TopicSettings(prefix=self.prefix, partitions=3))
        return PaymentReader(self.servers, catalogue, CODEC, b"shop:1001")


@pytest.fixture
def topics(kafka: str, topic_prefix: str) -> Topics:
    provision(kafka, build_catalogue(TopicSettings(prefix=topic_prefix, partitions=3)))
    return Topics(kafka, topic_prefix)


def of(order_id: str, status: str, updated_at_ms: int, ends_at_ms: int | None = None) -> Payment:
    return replace(
        PAYMENT,
        order_id=order_id,
        payment_id=payment_id("shop", order_id),
        status=status,
        updated_at_ms=updated_at_ms,
        expires_at_ms=ends_at_ms,
        reason="amount_above_limit" if status == "risk_review" else None,
    )


def test_nobody_chooses_for_a_person_what_is_resolved(topics: Topics) -> None:
    """Of two unknown operations one has to be named, before anything is published."""
    unknown = refund_attempt("inquiry_exhausted")
    attempts = (*PAYMENT.attempts, unknown, replace(unknown, operation_id="r-2"))
    topics.write(replace(PAYMENT, attempts=attempts))
    word = ["payment", "resolve", "shop:1001", "--not-charged", "--evidence", "their report"]
    result = CliRunner().invoke(app, [*word, *topics.options])
    assert isinstance(result.exception, UserError)
    assert "--operation: r-1 (refund of 500 GBP at sim-a), r-2" in str(result.exception)
    result = CliRunner().invoke(app, [*word, "--operation", "r-2", *topics.options])
    assert result.exit_code == 0, result.output


def test_what_was_given_back_as_nobodys_is_not_resolved_as_charged(topics: Topics) -> None:
    """Before anything is published: the charge has a payment of its own, which gives it back."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    story.flow.command(unasked("ch_77"))
    found = story.flow.payment("unasked", unasked("ch_77").order_id)
    assert found is not None
    topics.write(story.payment, found)
    word = ["payment", "resolve", "shop:1", "--operation", "1", "--evidence", "their report"]
    result = CliRunner().invoke(app, [*word, "--charged", "ch_77", *topics.options])
    assert isinstance(result.exception, UserError)
    assert f"by unasked:{found.order_id}" in str(result.exception)
    result = CliRunner().invoke(app, [*word, "--charged", "ch_78", *topics.options])
    assert result.exit_code == 0, result.output
    despite = [*word, "--charged", "ch_78", "--despite-id", *topics.options]
    result = CliRunner().invoke(app, despite)
    assert result.exit_code == 0, result.output
    assert [command.override for command in topics.commands()] == [None, "reference"]


def test_the_review_that_ends_first_is_listed_first_and_only_while_it_waits(
    topics: Topics,
) -> None:
    """Whoever decides sees at the top what nobody can decide about much longer, whatever else was
    written to it meanwhile (a refund that waits for it); what was decided is gone."""
    topics.write(
        of("1", "risk_review", 30, 7_000),
        of("2", "risk_review", 35, 6_000),
        of("3", "risk_review", 10, 5_000),
        of("3", "processing", 40),
        of("4", "captured", 5),
    )
    listed = CliRunner().invoke(app, ["review", "list", *topics.options, "--json"])
    assert listed.exit_code == 0, listed.output
    assert [each["order_id"] for each in json.loads(listed.stdout)] == ["2", "1"]
    told = CliRunner().invoke(app, ["review", "list", *topics.options])
    assert "ends 1970-01-01" in told.stdout
    assert "shop:2  GBP 12.50  amount_above_limit" in told.stdout
    assert told.stdout.endswith("2 in review\n")


def test_a_command_is_followed_to_its_end(topics: Topics) -> None:
    """What was there before is caught up with, and only what comes after counts as an answer."""
    topics.write(PAYMENT, event("captured"), of("1002", "captured", 0))
    with topics.reader() as reader:
        assert reader.catch_up() == PAYMENT
        assert reader.follow(lambda seen: judged(seen, REFUND), 0.5) is None
        told: list[str] = []
        done = replace(
            PAYMENT, command_ids=("r-1",), attempts=(*PAYMENT.attempts, refund_attempt("refunded"))
        )
        topics.write(event("refunded", operation_id="r-1"), done)
        outcome = reader.follow(
            lambda seen: judged(seen, REFUND), 30, lambda seen: told.append(seen.type)
        )
    assert outcome == Outcome(DONE, "refund of GBP 5.00 at sim-a: refunded, reference re_1")
    assert told == ["refunded"]


def test_an_amount_needs_a_payment_to_be_in_its_currency(topics: Topics) -> None:
    """The currency is read from the table; of a payment nobody knows it has to be given."""
    words = ["payment", "refund", "shop:1001", "--amount", "5.00", *topics.options]
    unknown = CliRunner().invoke(app, words)
    assert isinstance(unknown.exception, UserError)
    assert "give --currency" in str(unknown.exception)
    topics.write(PAYMENT)
    known = CliRunner().invoke(app, words)
    assert known.exit_code == 0, known.output
    assert "published refund of GBP 5.00 for shop:1001" in known.stdout
    waited = CliRunner().invoke(app, [*words, "--wait", "1"])
    assert waited.exit_code == 3
    assert "Not answered within 1 s" in waited.stderr


def test_a_finding_is_acknowledged_with_the_figures_of_the_table(topics: Topics) -> None:
    """Which are shown; of a payment whose amounts are in order nothing is published."""
    words = [
        "payment",
        "acknowledge",
        "shop:1001",
        "--reason",
        "given back",
        "--evidence",
        "a letter",
    ]
    topics.write(PAYMENT)
    nothing = CliRunner().invoke(app, [*words, *topics.options])
    assert isinstance(nothing.exception, UserError)
    assert "nothing to acknowledge" in str(nothing.exception)
    topics.write(replace(PAYMENT, captured_minor=1_500, refunded_minor=250))
    asked = CliRunner().invoke(app, [*words, *topics.options])
    assert asked.exit_code == 0, asked.output
    assert "figures   refunded 250, captured 1500, authorized 1250" in asked.stdout
    assert "published acknowledge for shop:1001" in asked.stdout


def test_topics_that_are_missing_are_a_sentence(topics: Topics) -> None:
    """A wrong prefix is told with what to do, before anything is published."""
    words = ["payment", "capture", "shop:1001", "--wait", "1"]
    missing = CliRunner().invoke(
        app, [*words, "--bootstrap-servers", topics.servers, "--prefix", f"{topics.prefix}none."]
    )
    assert isinstance(missing.exception, UserError)
    assert "paystream topics apply" in str(missing.exception)


def test_the_same_refund_again_is_told_as_repeated(topics: Topics) -> None:
    """On the output that programs read, whether they wait or not; with 0, as what is asked for is
    so. Another reason makes it another refund."""
    words = ["payment", "refund", "shop:1001", "--amount", "5.00", *topics.options]
    topics.write(PAYMENT)
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    assert "repeated" not in first.stdout
    (command,) = topics.commands()
    made = replace(refund_attempt("refunded"), operation_id=command.command_id)
    taken = replace(PAYMENT, command_ids=(command.command_id,), attempts=(*PAYMENT.attempts, made))
    topics.write(taken)
    unread = CliRunner().invoke(app, words)
    assert unread.exit_code == 0, unread.output
    assert "repeated  it was taken before and has no effect now\n" in unread.stdout
    again = CliRunner().invoke(app, [*words, "--wait", "30"])
    assert again.exit_code == 0, again.output
    assert again.stdout.endswith(
        "repeated  it was taken before and has no effect now; refund of GBP 5.00 at sim-a: "
        "refunded, reference re_1\n"
    )
    other = CliRunner().invoke(app, [*words, "--reason", "a second item"])
    assert "repeated" not in other.stdout


def test_a_command_that_was_taken_before_is_told_so(topics: Topics) -> None:
    """Under its own id it has no effect and is not called done; typed without one it is another."""
    topics.write(replace(PAYMENT, status="risk_review", command_ids=("mine",)))
    words = ["review", "approve", "shop:1001", "--operation", "1001:2", *topics.options]
    again = CliRunner().invoke(app, [*words, "--command-id", "mine", "--wait", "5"])
    assert again.exit_code == 0, again.output
    assert "repeated  it was taken before and has no effect now" in again.stdout
    unread = CliRunner().invoke(app, [*words, "--command-id", "mine"])
    assert "has taken this command before, it has no effect now" in unread.stderr
    anew = CliRunner().invoke(app, [*words, "--wait", "1"])
    assert anew.exit_code == 3, "nobody answers here, but it is asked"
    assert "no effect" not in anew.stderr
