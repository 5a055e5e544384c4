"""The record key, and the partition that Kafka's Java client would choose for it.

Key: the UTF-8 bytes of ``merchant_id:order_id``. All topics of the flow use the same key and the
same number of partitions, so all records of one order meet in one lane.
"""

from __future__ import annotations

import re
import struct

from pipeline.domain.card_numbers import mask_card_numbers

ID_PATTERN = r"[A-Za-z0-9._-]{1,64}"

_ID = re.compile(ID_PATTERN)
_KEY = re.compile(rf"({ID_PATTERN}):({ID_PATTERN})".encode("ascii"))

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF


def valid_id(text: str) -> bool:
    """Whether a merchant's or order's id may stand in a key: 1 to 64 of ``A-Za-z0-9._-``."""
    return _ID.fullmatch(text) is not None


def record_key(merchant_id: str, order_id: str) -> bytes:
    """The key of every record of this order. The ids are not checked: see ``valid_id``."""
    return f"{merchant_id}:{order_id}".encode()


def reference_key(gateway: str, gateway_reference: str) -> bytes:
    """The record key of a gateway's own id of an operation."""
    return f"{gateway}:{gateway_reference}".encode()


def split_key(key: bytes | None) -> tuple[str, str] | None:
    """(merchant_id, order_id) of a record key, or None when it is not one."""
    if key is None:
        return None
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    merchant, order = match.groups()
    return merchant.decode("ascii"), order.decode("ascii")


def masked_key(key: bytes | None) -> bytes | None:
    """A key as what is kept may have it: one that names no order may hold a card number as any
    text, and is masked. Declared ids may look like one and stay as they are."""
    return key if key is None or split_key(key) is not None else mask_card_numbers(key)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: Java's default partitioner, librdkafka's ``murmur2_random``."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 as a signed integer, equal to the Java client's ``Utils.murmur2``."""
    length = len(data)
    whole = length & ~3
    h = _SEED ^ length
    for k in struct.unpack_from(f"<{whole >> 2}I", data):
        k = k * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ (k >> 24)) * _M & _MASK)
    rest = length - whole
    if rest:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    h ^= h >> 15
    return h - 0x100000000 if h & 0x80000000 else h
