from __future__ import annotations

import pytest

from pipeline.domain.keys import murmur2, partition_of, record_key, split_key, valid_id

# From the tests of Apache Kafka's Java client (UtilsTest.testMurmur2).
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("data", "expected"), JAVA_VECTORS.items())
def test_murmur2_is_the_java_clients(data: bytes, expected: int) -> None:
    """Other clients find our records where Kafka's Java client would have put them."""
    assert murmur2(data) == expected
    assert partition_of(data, 12) == (expected & 0x7FFFFFFF) % 12


def test_keys_round_trip() -> None:
    """A key splits into the ids it was made of."""
    assert record_key("shop-1", "A.7_b") == b"shop-1:A.7_b"
    assert split_key(b"shop-1:A.7_b") == ("shop-1", "A.7_b")


@pytest.mark.parametrize(
    "key",
    [None, b"", b"shop", b"shop:", b":1", b"a:b:c", b"a b:c", "sh\u00f6p:1".encode(), b"a:b\n"],
)
def test_other_keys_are_refused(key: bytes | None) -> None:
    """Bytes that are no key of ours give None instead of wrong ids."""
    assert split_key(key) is None


@pytest.mark.parametrize(
    ("text", "valid"),
    [("a", True), ("a" * 64, True), ("a" * 65, False), ("", False), ("a\n", False), ("a:b", False)],
)
def test_ids_that_may_stand_in_a_key(text: str, valid: bool) -> None:
    """An id is 1 to 64 plain characters."""
    assert valid_id(text) is valid
