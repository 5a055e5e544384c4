"""The proxy before real brokers: it reads what they answer, clients stay on its way, and what it
does to requests is what it says."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicCollection
from confluent_kafka.admin import AdminClient

from pipeline.chaos import faults
from pipeline.chaos.addresses import NamedBroker, brokers_named
from pipeline.chaos.faults import Fault, Lost, Rule
from pipeline.chaos.wire import (
    NO_ERROR,
    TRANSACTIONAL,
    VERSION_MAX,
    Api,
    answer_reader,
    error_of,
    is_flexible,
)
from pipeline.kafka_wire import PREFIX, framed
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.work import Outcome
from tests.support.lane_over_topics import LaneOverTopics
from tests.support.proxied import ProxiedKafka, proxied_kafka
from tests.support.topics import create_topic, read_all
from tests.support.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.integration

NOT_LEADER = 6
WRITING = [api for api in TRANSACTIONAL if api is not Api.INIT_PRODUCER_ID]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedKafka]:
    with proxied_kafka(tmp_path_factory.mktemp("three"), brokers=3) as started:
        yield started


def test_every_version_that_names_brokers_is_read(three: ProxiedKafka) -> None:
    """Whatever version a client speaks, the addresses found in the real broker's answer are the
    cluster's, and the proxied answer names the proxy's instead."""
    theirs, ours = ports(three.direct), ports(three.proxied)
    offered = versions_offered(three.direct)
    # The first to ask for a group's coordinator makes the cluster create its topic.
    first = coordinator_question(0)
    wait_until(lambda: asked(three.direct, Api.FIND_COORDINATOR, 0, first), WAIT_S, "a coordinator")
    for api, (oldest, newest) in offered.items():
        if api not in QUESTIONS:
            continue
        for version in range(oldest, min(newest, VERSION_MAX[api]) + 1):
            body = QUESTIONS[api](version)
            named = {n.address[1] for n in asked(three.direct, api, version, body)}
            assert named, f"{api.name} {version}"
            assert named <= theirs, f"{api.name} {version}"
            through = {n.address[1] for n in asked(three.proxied, api, version, body)}
            assert through, f"{api.name} {version}"
            assert through <= ours, f"{api.name} {version}"
    assert offered.keys() >= QUESTIONS.keys()


def test_no_version_passes_that_is_not_read(three: ProxiedKafka) -> None:
    """Behind the proxy a broker offers nothing newer than what the proxy was written for, and as
    much as that."""
    offered, cut = versions_offered(three.direct), versions_offered(three.proxied)
    assert {api: cut[api][1] for api in VERSION_MAX} == {
        api: min(newest, offered[api][1]) for api, newest in VERSION_MAX.items()
    }


def test_clients_stay_on_its_way_with_three_brokers(three: ProxiedKafka, topic_prefix: str) -> None:
    """Producer, consumer and admin client learn of three brokers, all of them the proxy, and what
    the versions they speak ask for is among those that are read."""
    ours = ports(three.proxied)
    before = sum(three.proxy.seen.values())
    topics = LaneOverTopics(three.proxied, three.proxied, topic_prefix)
    try:
        for number in range(3):
            assert topics.lane.run(topics.work(number)) is Outcome.COMMITTED
        assert len(topics.values()) == 9
    finally:
        topics.close()
    admin = AdminClient({"bootstrap.servers": three.proxied})
    assert {broker.port for broker in admin.list_topics(timeout=10).brokers.values()} == ours
    assert {node.port for node in admin.describe_cluster().result().nodes} == ours
    spoken = {api for api, _ in three.proxy.seen}
    assert spoken >= {Api.PRODUCE, Api.FETCH, Api.METADATA, Api.FIND_COORDINATOR, Api.END_TXN}
    assert {
        (a, v) for a, v in three.proxy.seen if a in VERSION_MAX and v > VERSION_MAX[Api(a)]
    } == set()
    assert sum(three.proxy.seen.values()) > before


def test_a_leader_that_moved_is_named_by_the_proxys_address(
    three: ProxiedKafka, topic_prefix: str
) -> None:
    """Answers to Produce and Fetch name brokers too, in a tagged field, when the leader is another:
    those addresses are the proxy's as well."""
    topic = f"{topic_prefix}moved"
    # Of one copy, so that every other broker has to point to the leader.
    create_topic(three.direct, topic, replication=1)
    rule = three.proxy.inject(Rule(Api.PRODUCE, faults.delay(0.0), client_id=topic))
    producer = Producer({"bootstrap.servers": three.proxied, "client.id": topic})
    producer.produce(topic, b"v")
    assert producer.flush(10) == 0
    assert rule.matched == 1
    produce = three.proxy.injected[-1].request
    admin = AdminClient({"bootstrap.servers": three.proxied})
    metadata = admin.list_topics(topic, timeout=10)
    leader = metadata.topics[topic].partitions[0].leader
    elsewhere = next(f"{b.host}:{b.port}" for b in metadata.brokers.values() if b.id != leader)
    answer = exchange(elsewhere, produce.frame[PREFIX:])
    assert error_of(answer, Api.PRODUCE, produce.version) == NOT_LEADER
    answers = [(answer, Api.PRODUCE, produce.version)]
    described = admin.describe_topics(TopicCollection([topic]))[topic].result()
    for version in range(16, VERSION_MAX[Api.FETCH] + 1):
        body = fetch_question(described.topic_id)
        answers.append(
            (exchange(elsewhere, question(Api.FETCH, version, body)), Api.FETCH, version)
        )
    leading = int(metadata.brokers[leader].port)
    for answer, api, version in answers:
        named = brokers_named(answer, api, version)
        assert [n.address for n in named] == [("127.0.0.1", leading)], f"{api.name} {version}"


@pytest.mark.parametrize(
    ("fault", "retries", "together", "written"),
    [
        (faults.delay(0.2), 0, False, ["m0", "m1"]),
        (faults.lose_request(), 0, False, ["m1"]),
        (faults.lose_request(silently=True), 0, False, ["m1"]),
        (faults.lose_answer(), 1, False, ["m0", "m0", "m1"]),
        (faults.double(), 0, False, ["m0", "m0", "m1"]),
        (faults.reorder(), 0, True, ["m1", "m0"]),
        (faults.late(Api.PRODUCE), 0, False, ["m1", "m0"]),
    ],
    ids=[
        "delay", "lose request", "lose request in silence", "lose answer", "double", "reorder",
        "late",
    ],
)  # fmt: skip
def test_a_fault_does_what_it_is_called(
    three: ProxiedKafka,
    topic_prefix: str,
    fault: Fault,
    retries: int,
    together: bool,
    written: list[str],
) -> None:
    """To a producer that nothing protects, the first of two records of which is injured."""
    topic = f"{topic_prefix}out"
    create_topic(three.direct, topic)
    rule = three.proxy.inject(Rule(Api.PRODUCE, fault, client_id=topic))
    producer = Producer(
        {
            "bootstrap.servers": three.proxied,
            "client.id": topic,
            "enable.idempotence": False,
            "retries": retries,
            "batch.num.messages": 1,
            "linger.ms": 0,
            "request.timeout.ms": 1_000,
            "socket.timeout.ms": 1_000,
        }
    )
    for value in ("m0", "m1"):
        producer.produce(topic, value.encode())
        if not together:
            producer.flush(10)
    assert producer.flush(10) == 0
    three.proxy.release()
    assert rule.matched == 1
    assert [m.value().decode() for m in read_all(three.direct, topic)] == written


EACH: dict[str, Fault] = {
    "delay": faults.delay(0.2),
    "lose request": faults.lose_request(),
    "lose answer": faults.lose_answer(),
    "double": faults.double(),
    "double, no answer": faults.double(lost=Lost.ANSWER),
    "reorder": faults.reorder(),
}


@pytest.mark.parametrize("api", WRITING, ids=lambda api: api.name)
def test_each_fault_on_each_request_leaves_the_lane_whole(
    three: ProxiedKafka, topic_prefix: str, api: Api
) -> None:
    """Each happens once, and every transaction is there once and in order. Only a Produce may cost
    the lane: the broker holds its late copy for a gap in the sequence. What comes next is whole."""
    topics = LaneOverTopics(three.direct, three.proxied, topic_prefix)
    try:
        number = 0
        late = {f"late after {a.name}": faults.late(a) for a in WRITING}
        for name, fault in {**EACH, **late}.items():
            rule = three.proxy.inject(Rule(api, fault, transactional_id=f"{topic_prefix}lane"))
            for _ in range(2):
                try:
                    assert topics.lane.run(topics.work(number)) is Outcome.COMMITTED, name
                    number += 1
                except LaneFatal:
                    assert api is Api.PRODUCE, name
                    topics.open_lane()
                assert topics.committed() == number, name
            assert rule.matched == 1, name
        three.proxy.release()
        wanted = [b"%d.%d" % (n, part) for n in range(number) for part in range(3)]
        assert topics.values() == wanted
        doubled = [
            i
            for i in three.proxy.injected
            if i.request.transactional_id == f"{topic_prefix}lane" and i.fault.copy is not None
        ]
        assert doubled
        assert all(i.copy_answer not in (None, -1) for i in doubled), "each copy reached the broker"
    finally:
        three.proxy.heal()
        topics.close()


def test_the_level_of_transactions_is_what_the_cluster_was_formatted_with(
    three: ProxiedKafka, tmp_path: Path
) -> None:
    """A cluster can be had with transaction.version 1, and says so itself; 2 is the default."""
    with proxied_kafka(tmp_path, features={"transaction.version": 1}) as old:
        assert old.proxy.features()["transaction.version"] == 1
    assert three.proxy.features()["transaction.version"] == 2


# Raw requests -------------------------------------------------------------------------------------


def question(api: Api, version: int, body: bytes) -> bytes:
    header = struct.pack(">hhi", api, version, 7) + struct.pack(">h", 4) + b"test"
    return header + (b"\0" if is_flexible(api, version) else b"") + body


def exchange(address: str, request: bytes) -> bytes:
    host, _, port = address.split(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(framed(request))
        answer = b""
        while len(answer) < 4 or len(answer) < 4 + int.from_bytes(answer[:4], "big"):
            piece = connection.recv(65536)
            assert piece, "the broker closed the connection"
            answer += piece
    return answer


def asked(address: str, api: Api, version: int, body: bytes) -> list[NamedBroker]:
    return brokers_named(exchange(address, question(api, version, body)), api, version)


def metadata_question(version: int) -> bytes:
    """No topic at all; the form of that is a matter of the version."""
    topics = b"\1" if version >= 9 else struct.pack(">i", 0)
    body = topics + (b"\0" if version >= 4 else b"")
    if 8 <= version <= 10:
        body += b"\0"  # the cluster's authorized operations
    if version >= 8:
        body += b"\0"  # the topics'
    return body + (b"\0" if version >= 9 else b"")


def coordinator_question(version: int) -> bytes:
    """The coordinator of one group."""
    if version >= 4:
        return b"\0" + b"\2" + b"\2g" + b"\0"
    key = b"\2g" if version >= 3 else struct.pack(">h", 1) + b"g"
    return key + (b"\0" if version >= 1 else b"") + (b"\0" if version >= 3 else b"")


def cluster_question(version: int) -> bytes:
    body = b"\0" + (b"\1" if version >= 1 else b"") + (b"\0" if version >= 2 else b"")
    return body + b"\0"


QUESTIONS: dict[Api, Callable[[int], bytes]] = {
    Api.METADATA: metadata_question,
    Api.FIND_COORDINATOR: coordinator_question,
    Api.DESCRIBE_CLUSTER: cluster_question,
}


def fetch_question(topic_id: Any) -> bytes:
    """Partition 0 from its beginning, by a client without a session."""
    bits = topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits()
    partition = struct.pack(">iiqiqi", 0, -1, 0, -1, -1, 1_000_000) + b"\0"
    topics = b"\2" + struct.pack(">qq", *bits) + b"\2" + partition + b"\0"
    return struct.pack(">iiibii", 100, 1, 1_000_000, 0, 0, -1) + topics + b"\1" + b"\1" + b"\0"


def versions_offered(address: str) -> dict[Api, tuple[int, int]]:
    """Oldest and newest version of each API that is read here."""
    reader = answer_reader(
        exchange(address, question(Api.API_VERSIONS, 0, b"")), Api.API_VERSIONS, 0
    )
    assert reader.i16() == NO_ERROR
    found = {}
    for _ in reader.array():
        key, oldest, newest = reader.i16(), reader.i16(), reader.i16()
        if key in list(Api):
            found[Api(key)] = (oldest, newest)
    return found


def ports(addresses: str) -> set[int]:
    return {int(one.rpartition(":")[2]) for one in addresses.split(",")}
