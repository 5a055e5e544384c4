"""Partitions and ids derived a second time, from their definitions.

The auditor does not ask the code it audits. ``murmur2`` follows the Java client's partitioner,
the ids follow RFC 9562 (version 5: SHA-1 of a namespace and a name).
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

# What may stand in a key or a reference.
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MASK: Final = 0xFFFFFFFF
_MULTIPLIER: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
# RFC 9562, section 6.6: the namespace of domain names.
_DNS_NAMESPACE: Final = bytes.fromhex("6ba7b8109dad11d180b400c04fd430c8")


def home_partition(key: bytes, partitions: int) -> int:
    """Where the Java client's default partitioner puts a record with this key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """The 32-bit hash of ``org.apache.kafka.common.utils.Utils.murmur2``, unsigned."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _MULTIPLIER & _MASK
        k = (k ^ (k >> 24)) * _MULTIPLIER & _MASK
        h = (h * _MULTIPLIER & _MASK) ^ k
    if length > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _MASK
    h = (h ^ (h >> 13)) * _MULTIPLIER & _MASK
    return h ^ (h >> 15)


def payment_id(key: str) -> str:
    """The id of the payment with this record key (``merchant:order``)."""
    return _text(_uuid5(_PAYMENTS, key))


def event_id(payment_id: str, sequence: int) -> str:
    """The id of a payment's n-th event."""
    return _text(_uuid5(_EVENTS, f"{payment_id}:{sequence}"))


def settlement_id(payment_id: str, operation_id: str, kind: str) -> str:
    """The id of the movement of this kind that an operation led to."""
    return _text(_uuid5(_SETTLEMENTS, f"{payment_id}:{operation_id}:{kind}"))


def idempotency_key(payment_id: str, operation_id: str, gateway: str, attempt: int) -> str:
    """What a gateway knows an attempt by."""
    return f"{payment_id}:{operation_id}:{gateway}:{attempt}"


def reversal_operation_id(order_id: str, operation_id: str, attempt: int) -> str:
    """The operation that gives back what an attempt took too late; never the order's own id."""
    text = f"late-{operation_id}-{attempt}"
    if not _ID.fullmatch(text):
        text = f"late-{_text(_uuid5(_SETTLEMENTS, text))}"
    return f"late-{_text(_uuid5(_SETTLEMENTS, text))}" if text == order_id else text


def unasked_order_id(gateway: str, reference: str) -> str:
    """What stands for the order of a charge nobody asked for."""
    return _text(_uuid5(_SETTLEMENTS, f"unasked\0{gateway}\0{reference}"))


def _uuid5(namespace: bytes, name: str) -> bytes:
    digest = bytearray(hashlib.sha1(namespace + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return bytes(digest)


def _text(number: bytes) -> str:
    text = number.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_FLOW: Final = _uuid5(_DNS_NAMESPACE, "io.paystream")
_PAYMENTS: Final = _uuid5(_FLOW, "payment")
_EVENTS: Final = _uuid5(_FLOW, "event")
_SETTLEMENTS: Final = _uuid5(_FLOW, "settlement")
