"""Requests as the proxy reads them, and answers as it changes them, byte by byte."""

from __future__ import annotations

import struct

import pytest

from pipeline.chaos import faults
from pipeline.chaos.addresses import brokers_named, with_addresses
from pipeline.chaos.faults import Lost, Rule
from pipeline.chaos.wire import Api, error_of, plain_answer, read_request
from pipeline.domain.invariant import InvariantBroken
from pipeline.kafka_wire import Malformed, framed


def end_txn(version: int, transactional_id: bytes = b"lane") -> bytes:
    header = struct.pack(">hhi", Api.END_TXN, version, 77) + struct.pack(">h", 6) + b"client"
    if version >= 3:
        header += b"\0"
        name = bytes([len(transactional_id) + 1]) + transactional_id
    else:
        name = struct.pack(">h", len(transactional_id)) + transactional_id
    return framed(
        header + name + struct.pack(">qh?", 5, 0, True) + (b"\0" if version >= 3 else b"")
    )


@pytest.mark.parametrize("version", range(6))
def test_a_transactional_request_names_its_producer(version: int) -> None:
    """In the old and the flexible form: by that a rule finds the one it is about."""
    request = read_request(end_txn(version))
    assert (request.api, request.version, request.correlation_id) == (Api.END_TXN, version, 77)
    assert (request.client_id, request.transactional_id) == ("client", "lane")
    assert Rule(Api.END_TXN, faults.lose_answer(), transactional_id="lane").chooses(request)
    assert not Rule(Api.END_TXN, faults.lose_answer(), transactional_id="other").chooses(request)
    assert not Rule(Api.PRODUCE, faults.lose_answer()).chooses(request)


@pytest.mark.parametrize("version", range(6))
def test_an_answer_in_the_brokers_place_is_one_that_clients_read(version: int) -> None:
    """The error code stands where a broker's own would."""
    request = read_request(end_txn(version))
    assert error_of(plain_answer(request, 49), Api.END_TXN, version) == 49


def test_what_is_no_fault_is_refused() -> None:
    """A rule that could not do what it says is a mistake of its writer."""
    with pytest.raises(InvariantBroken):
        Rule(Api.METADATA, faults.lose_answer())
    with pytest.raises(InvariantBroken):
        Rule(Api.PRODUCE, faults.answer(49, forward=True))
    with pytest.raises(InvariantBroken):
        faults.double(lost=Lost.REQUEST)


def test_a_frame_that_ends_too_soon_is_named() -> None:
    """Not read as something else."""
    with pytest.raises(Malformed, match="ends before"):
        read_request(end_txn(1)[:20])


@pytest.mark.parametrize("version", [1, 9])
def test_an_address_of_another_length_takes_its_place(version: int) -> None:
    """Host and port are exchanged, what stands around them is not."""
    flexible = version >= 9
    host = b"kafka-1.internal"
    name = bytes([len(host) + 1]) + host if flexible else struct.pack(">h", len(host)) + host
    broker = struct.pack(">i", 1) + name + struct.pack(">i", 9092)
    broker += b"\0\0" if flexible else struct.pack(">h", -1)
    head = struct.pack(">i", 7) + (b"\0" + struct.pack(">i", 0) + b"\2" if flexible
                                   else struct.pack(">i", 1))  # fmt: skip
    answer = framed(head + broker + b"the rest")
    found = brokers_named(answer, Api.METADATA, version)
    assert [named.address for named in found] == [("kafka-1.internal", 9092)]
    changed = with_addresses(answer, found, lambda _: ("127.0.0.1", 1234), flexible)
    again = brokers_named(changed, Api.METADATA, version)
    assert [named.address for named in again] == [("127.0.0.1", 1234)]
    assert changed.endswith(b"the rest")
    assert len(changed) == 4 + struct.unpack_from(">i", changed)[0]


def test_an_address_in_a_tagged_field_keeps_the_field_whole() -> None:
    """The size of the field around it is that of what it then holds."""
    host = b"kafka-1.internal"
    endpoint = struct.pack(">i", 1) + bytes([len(host) + 1]) + host + struct.pack(">i", 9092)
    content = b"\2" + endpoint + b"\0\0"
    tags = b"\1\0" + bytes([len(content)]) + content
    answer = framed(struct.pack(">i", 7) + b"\0" + b"\1" + struct.pack(">i", 0) + tags)
    found = brokers_named(answer, Api.PRODUCE, 10)
    changed = with_addresses(answer, found, lambda _: ("127.0.0.1", 1234), True)
    again = brokers_named(changed, Api.PRODUCE, 10)
    assert [named.address for named in again] == [("127.0.0.1", 1234)]
    assert again[0].inside is not None
    _, begins, size = again[0].inside
    assert begins + size == len(changed)
