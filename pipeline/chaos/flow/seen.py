"""What readers see at rest, taken by plain clients: the topics, the offsets, the gateways' books.

It shares nothing with the audit but the catalogue, so that an error in one does not hide in both.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from pipeline.errors import UserError
from pipeline.loopback import open_url

READ_STALL_S = 60.0
ANSWER_TIMEOUT_S = 15.0
PAGE_ENTRIES = 5_000
_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]

Place = tuple[str, int]


def ends(bootstrap_servers: str, places: Iterable[Place]) -> dict[Place, int]:
    """The end of each partition, transactions that are open included."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    asked = admin.list_offsets(
        {TopicPartition(*place): _LATEST for place in places},
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=ANSWER_TIMEOUT_S,
    )
    return {
        (tp.topic, tp.partition): future.result(ANSWER_TIMEOUT_S).offset
        for tp, future in asked.items()
    }


def committed_records(bootstrap_servers: str, places: Mapping[Place, int]) -> Iterator[Any]:
    """The messages of all that a reader of committed records sees below these ends.

    UserError when a partition cannot be read to its end: a transaction is open there.
    """
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "paystream-chaos-reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    missing = {place for place, end in places.items() if end}
    try:
        reader.assign([TopicPartition(*place, 0) for place in sorted(missing)])
        news_s = time.monotonic()
        while missing:
            messages: list[Any] = reader.consume(5_000, 0.2)
            for message in messages:
                place = message.topic(), message.partition()
                error = message.error()
                if error is None:
                    news_s = time.monotonic()
                    if message.offset() < places[place]:
                        yield message
                elif (
                    error.code() == KafkaError._PARTITION_EOF and message.offset() >= places[place]
                ):
                    missing.discard(place)
            if time.monotonic() - news_s > READ_STALL_S:
                raise UserError(f"{sorted(missing)[:3]} cannot be read to the end")
    finally:
        reader.close()


def group_offsets(bootstrap_servers: str, group: str, places: Iterable[Place]) -> dict[Place, int]:
    """What a group has committed, -1001 where nothing."""
    asker = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group,
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    try:
        found = asker.committed([TopicPartition(*p) for p in places], timeout=ANSWER_TIMEOUT_S)
    finally:
        asker.close()
    return {(tp.topic, tp.partition): tp.offset for tp in found}


def gateway_balances(urls: Iterable[str]) -> dict[str, dict[str, int]]:
    """By ``merchant:order``, what the gateways have taken and given back, in minor units, by
    entry kind."""
    balances: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for url in urls:
        after, more = 0, True
        while more:
            address = f"{url}/v1/books?after={after}&limit={PAGE_ENTRIES}"
            with open_url(address, timeout=ANSWER_TIMEOUT_S) as answer:
                page = json.load(answer)
            for entry in page["entries"]:
                key = f"{entry['merchant_id']}:{entry['order_id']}"
                balances[key][entry["kind"]] += entry["amount_minor"]
            after, more = page["next_after"], page["has_more"]
    return balances
