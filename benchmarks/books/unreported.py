"""The books as they would stand had no report come yet, and topics of their own to go on with.

Made anew from the settlements topic and the terms alone: what reports and the bank have led to are
decisions, which are left out. What payments were told by a report is settled by then, and is in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Producer
from sqlalchemy import Engine

from benchmarks.books.carried import Carried
from benchmarks.failure import WrongRun
from consumers.ledger_rebuild import compare, rebuild
from pipeline.domain.decisions import FEE_SCHEDULE
from pipeline.domain.records import to_record
from pipeline.ledger.database import open_ledger
from pipeline.record_codec import record_codec
from producers.ledger_events import KEY, LedgerEvents
from schemas.codec import Codec
from topics.catalogue import Catalogue
from topics.provisioning import provision

# Topics that a reconciliation and payouts of these books write; the settlements stay the flow's.
OWN_TOPICS = (
    "clearings", "ledger-events", "reconciliation-breaks", "gateway-notifications", "payouts",
    "audit",
)  # fmt: skip
PREFIX = "damaged-"
FLUSH_TIMEOUT_S = 30


@contextmanager
def unreported_books(on: Carried) -> Iterator[tuple[Engine, Catalogue]]:
    """The books and their topics. WrongRun when their settlements have other hashes than the live
    books', or are not as many."""
    real = on.settings.catalogue()
    codec = record_codec(real, "")
    own = _own_topics(on, real, codec)
    engine = open_ledger(f"sqlite:///{on.folder / 'ledger-unreported.sqlite'}")
    live = open_ledger(on.settings.books_url(), create=False)
    try:
        made = rebuild(on.settings.bootstrap_servers, own, codec, engine)
        settlements = real.name("settlements")
        chains = [each for each in compare(live, engine) if each.topic == settlements]
        if not all(each.same for each in chains):
            raise WrongRun(f"books made anew have other hashes: {chains}")
        if sum(each.position for each in chains) != made.entries:
            raise WrongRun(f"books made anew have {made.entries} settlements: {chains}")
        yield engine, own
    finally:
        live.dispose()
        engine.dispose()


def _own_topics(on: Carried, real: Catalogue, codec: Codec) -> Catalogue:
    """Topics of its own, of which the decisions have the terms alone."""
    # Nobody else reads them.
    made = {
        role: dataclasses.replace(real[role], name=PREFIX + real.name(role), read_by=())
        for role in OWN_TOPICS
    }
    own = Catalogue(settings=real.settings, topics={**real.topics, **made})
    servers = on.settings.bootstrap_servers
    provision(servers, Catalogue(settings=real.settings, topics=made))
    producer = Producer({"bootstrap.servers": servers, "partitioner": "murmur2_random"})
    encode = codec.encoder("ledger-event")
    for each in LedgerEvents(servers, real, codec).read():
        if each.event.kind == FEE_SCHEDULE:
            producer.produce(own.name("ledger-events"), encode(to_record(each.event)), KEY)
    if producer.flush(FLUSH_TIMEOUT_S):
        raise WrongRun("the terms could not be copied.")
    return own
