"""How far a real cluster's flow is, when it is asked whether a charge may be given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from msgspec.structs import replace
from sqlalchemy import Engine

from consumers.flow_look import FlowLook
from consumers.unknown_charges import payment_that_may_have_made
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import GatewayNotification, Payment, PaymentCommand
from pipeline.domain.posting import JournalEntry, journal_entry
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger
from pipeline.ledger.entries import Item
from pipeline.ledger.journal import Journal, Progress
from pipeline.ledger.reconciliation.refunds import ChargeSeen
from producers.clearings import ReconciliationPublisher
from producers.ledger_events import topic_source
from schemas.codec import default_codec
from tests.support.ledger import settlement
from tests.support.payment_story import NOW, TIMED_OUT, Story, yes
from topics.catalogue import Catalogue, TopicSettings, build_catalogue
from topics.provisioning import provision

pytestmark = pytest.mark.integration

WORD = GatewayNotification(
    merchant_id="shop", order_id="1", payment_id=Story().payment.payment_id, notification_id="n",
    gateway="simulator", type="operation", amount_minor=500, currency="GBP", received_at_ms=NOW,
    operation_id="1", attempt=1, kind="charge", outcome="succeeded", gateway_reference="ch_77",
)  # fmt: skip


class Flow:
    """The topics of a flow whose workers do what a test says."""

    def __init__(self, kafka: str, catalogue: Catalogue, engine: Engine) -> None:
        self.kafka = kafka
        self.catalogue = catalogue
        self.engine = engine
        self.lane = partition_of(record_key("shop", "1"), 2)
        self.producer = Producer(
            {"bootstrap.servers": kafka, "transactional.id": f"{catalogue.settings.prefix}test"}
        )
        self.producer.init_transactions(30)

    def seen(self) -> tuple[bool, bool]:
        found = self.look.seen("shop", "1")
        return found.answered, found.booked

    @property
    def look(self) -> FlowLook:
        return FlowLook(self.kafka, self.catalogue, default_codec(), self.engine, patience_s=0.5)

    def write(self, role: str, schema: str, value: object) -> None:
        """In the transaction that is open."""
        self.producer.produce(
            self.catalogue.name(role), default_codec().encoder(schema)(to_record(value)),
            record_key("shop", "1"), partition=self.lane,
        )  # fmt: skip

    def payments_read(self, offset: int, role: str = "gateway-notifications") -> None:
        consumer = Consumer(
            {"bootstrap.servers": self.kafka, "group.id": self.catalogue.group("payments")}
        )
        topic = self.catalogue.name(role)
        consumer.commit(offsets=[TopicPartition(topic, self.lane, offset)], asynchronous=False)
        consumer.close()


@pytest.fixture
def flow(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[Flow]:
    catalogue = build_catalogue(TopicSettings(prefix=topic_prefix, partitions=2))
    provision(kafka, catalogue)
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield Flow(kafka, catalogue, engine)
    engine.dispose()


def test_a_word_has_to_be_read_and_what_came_of_it_to_be_booked(flow: Flow) -> None:
    """The payments workers are down, then have read it; their transaction's marks are not there
    yet on every partition, then are; the ledger is behind, then is not."""
    assert flow.seen() == (True, True)
    words = ReconciliationPublisher(flow.kafka, flow.catalogue, default_codec())
    words.words([WORD])
    assert flow.seen() == (False, False)
    flow.producer.begin_transaction()
    story = Story()
    sale = settlement(1)
    flow.write("settlements", "settlement", sale)
    flow.write("payments", "payment", story.payment)
    flow.producer.flush(30)
    flow.payments_read(1)
    assert flow.seen() == (False, False)
    flow.producer.commit_transaction(30)
    assert flow.seen() == (True, False)
    entry = journal_entry(sale)
    assert isinstance(entry, JournalEntry)
    journal = Journal(flow.engine, topic_source(flow.kafka, flow.catalogue.name("settlements")))
    journal.begin_partition(flow.lane, 0)
    # The mark that ends the log is no record: nobody books it.
    journal.post([Item(flow.lane, 0, entry)], {flow.lane: Progress(0, 1)})
    assert flow.seen() == (True, True)
    assert flow.look.seen("shop", "1").payment == story.payment
    assert flow.look.seen("", "").payment is None


def test_offsets_that_a_transaction_holds_are_no_cluster_that_is_away(flow: Flow) -> None:
    """A payments worker that died, or is long about it: it has not read what was said."""
    ReconciliationPublisher(flow.kafka, flow.catalogue, default_codec()).words([WORD])
    group = {"bootstrap.servers": flow.kafka, "group.id": flow.catalogue.group("payments")}
    member = Consumer(group)
    read = TopicPartition(flow.catalogue.name("gateway-notifications"), flow.lane, 1)
    flow.producer.begin_transaction()
    flow.producer.send_offsets_to_transaction([read], member.consumer_group_metadata(), 30)
    assert flow.seen() == (False, False)
    flow.producer.commit_transaction(30)
    member.close()
    assert flow.seen() == (True, True)


def test_a_payment_that_cannot_be_read_is_named(flow: Flow) -> None:
    """It may know the charge; a person has to see which record it is."""
    flow.producer.begin_transaction()
    flow.write("payments", "payment", Story().payment)
    flow.producer.produce(
        flow.catalogue.name("payments"), b"damaged", record_key("shop", "1"), partition=flow.lane
    )
    flow.producer.commit_transaction(30)
    named = rf"shop:1 at {flow.catalogue.name('payments')}\[{flow.lane}\]@1 cannot be read"
    with pytest.raises(UserError, match=named):
        flow.look.seen("shop", "1")


def test_what_a_person_has_resolved_has_to_be_read(flow: Flow) -> None:
    """He may have said of an operation that it was charged, under this very reference."""
    flow.producer.begin_transaction()
    flow.write("payment-commands", "payment-command", PaymentCommand(
        merchant_id="shop", order_id="1", command_id="r1", type="resolve", submitted_at_ms=NOW,
        decision="charged", gateway_reference="ch_77", evidence="their report", actor="bert",
    ))  # fmt: skip
    flow.producer.commit_transaction(30)
    assert flow.seen() == (False, False)
    flow.payments_read(1, "payment-commands")
    assert flow.seen() == (True, True)


def test_the_whole_table_says_whose_a_charge_may_be(flow: Flow) -> None:
    """While a payment of another partition or of this one waits for its outcome; not once it has
    it, and not for another amount."""
    story = Story()
    story.flow.answer(TIMED_OUT)
    unknown = story.payment
    charge = ChargeSeen("simulator", "ch_77", unknown.amount_minor, "GBP", NOW, names_nobody=True)

    def whose(seen: ChargeSeen = charge) -> str:
        return payment_that_may_have_made(seen, flow.kafka, flow.catalogue, default_codec())

    assert whose() == ""
    for payment, found in ((unknown, "shop:1"), (finished(), "")):
        flow.producer.begin_transaction()
        flow.write("payments", "payment", payment)
        flow.producer.commit_transaction(30)
        assert whose() == found
        assert whose(replace(charge, amount_minor=1)) == ""


def finished() -> Payment:
    story = Story()
    story.flow.answer(yes)
    return story.payment
