"""What a partition's bytes say of its transactions, held against the coordinator's word."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pipeline.chaos.flow.log_bytes import (
    ABORTED,
    COMMITTED,
    OPEN,
    Batch,
    Decision,
    batches,
    broken_ends,
    decisions,
    truth_of,
)

PLACE = ("settlements", 0)
# A transactional id of the coordinator's log, and its producer.
NAME, PRODUCER = "paystream//n1/payments/0", 7


def varint(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def record(key: bytes, value: bytes) -> bytes:
    body = b"\0" + varint(0) + varint(0) + varint(len(key)) + key + varint(len(value)) + value
    body += varint(0)
    return varint(len(body)) + body


def batch_bytes(first: int, count: int, producer: int, attributes: int, body: bytes) -> bytes:
    rest = struct.pack(
        ">ibIhiqqqhii", 0, 2, 0, attributes, count - 1, 0, 0, producer, 0, 0, count
    )  # fmt: skip
    return struct.pack(">qi", first, len(rest) + len(body)) + rest + body


def data(first: int, count: int = 1, producer: int = PRODUCER, *, plain: bool = False) -> bytes:
    body = record(b"k", b"v") * count
    return batch_bytes(first, count, producer, 0 if plain else 0x10, body)


def marker(first: int, *, commits: bool, producer: int = PRODUCER) -> bytes:
    body = record(struct.pack(">hh", 0, int(commits)), b"\0" * 6)
    return batch_bytes(first, 1, producer, 0x30, body)


def read(folder: Path, *parts: bytes) -> list[Batch]:
    (folder / "00000000000000000000.log").write_bytes(b"".join(parts))
    return list(batches(folder))


def test_markers_decide_what_is_committed(tmp_path: Path) -> None:
    """Records of one producer up to its marker share its fate; those without one are open."""
    found = read(
        tmp_path,
        data(0, 2), data(2, producer=8), marker(3, commits=True),
        marker(4, commits=False, producer=8), data(5, plain=True), data(6),
    )  # fmt: skip
    truth = truth_of(found)
    assert list(truth.fate) == [COMMITTED, COMMITTED, ABORTED, 0, 0, COMMITTED, OPEN]


def test_a_batch_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    """A crash may leave the beginning of one at the end of a segment."""
    assert len(read(tmp_path, data(0), data(1)[:-3])) == 1


def decision(*, commits: bool) -> Decision:
    return Decision(NAME, PRODUCER, commits, frozenset({PLACE}))


@pytest.mark.parametrize(
    ("decided", "parts", "wrong"),
    [
        ([True], [data(0), marker(1, commits=True)], []),
        ([True], [data(0), marker(1, commits=False)], ["aborted against the word"]),
        ([False], [data(0), marker(1, commits=True)], ["committed against the word"]),
        ([True], [data(0)], ["no marker of"]),
        # Written again by a coordinator that did not hear of the first: it ends nothing.
        ([True, False], [data(0), marker(1, commits=True), marker(2, commits=True), data(3),
                         marker(4, commits=False)], []),
        # The same before further ends of the same kind.
        ([True, True], [data(0), marker(1, commits=True), marker(2, commits=True), data(3),
                        marker(4, commits=True)], []),
        # An end that nobody decided.
        ([True], [data(0), marker(1, commits=True), data(2), marker(3, commits=True)],
         ["committed against the word"]),
        ([], [data(0), marker(1, commits=True)], ["committed against the word of anybody"]),
        # A late copy of an end: the second transaction is ended against its decision.
        ([False, True], [data(0), marker(1, commits=False), data(2), marker(3, commits=False),
                         data(4), marker(5, commits=True)], ["aborted against the word"]),
    ],
    ids=[
        "as decided", "torn", "made visible", "hangs", "a marker twice", "twice before more",
        "an end too many", "an end of nobody's", "a late end",
    ],
)  # fmt: skip
def test_an_end_against_the_coordinators_word_is_found(
    tmp_path: Path, decided: list[bool], parts: list[bytes], wrong: list[str]
) -> None:
    """In each partition a transaction ends as was decided for all of them."""
    truth = truth_of(read(tmp_path, *parts))
    found = broken_ends([decision(commits=each) for each in decided], {PLACE: truth})
    assert len(found) == len(wrong)
    assert all(part in text for part, text in zip(wrong, found, strict=True))


@pytest.mark.parametrize("version", [0, 1])
def test_the_coordinators_log_is_read_in_both_forms(tmp_path: Path, version: int) -> None:
    """PrepareCommit and PrepareAbort are decisions; what was begun or is complete is none."""
    found = read(
        tmp_path,
        *(
            batch_bytes(at, 1, -1, 0, record(_key(), _value(version, state)))
            for at, state in enumerate((1, 2, 4, 1, 3, 5))
        ),
    )
    assert list(decisions(found)) == [decision(commits=True), decision(commits=False)]


def _key() -> bytes:
    return struct.pack(">hh", 0, len(NAME)) + NAME.encode()


def _value(version: int, state: int) -> bytes:
    head = struct.pack(">hqhib", version, PRODUCER, 0, 10_000, state)
    topic, partition = PLACE
    if version == 0:
        places = (
            struct.pack(">ih", 1, len(topic)) + topic.encode() + struct.pack(">ii", 1, partition)
        )
        return head + places + struct.pack(">qq", 0, 0)
    places = bytes([2, len(topic) + 1]) + topic.encode() + bytes([2])
    places += struct.pack(">i", partition) + b"\0"
    return head + places + struct.pack(">qq", 0, 0) + b"\0"
