"""Where answers name brokers, so that clients who come through the proxy stay on its way."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.chaos.wire import VERSION_MAX, Api, answer_reader, pass_produced_partition
from pipeline.kafka_wire import PREFIX, Reader, framed

Address = tuple[str, int]

# ``node endpoints`` are an answer's first tagged field, there when a partition's leader has moved.
_ENDPOINTS_TAG = 0
NAMING = (
    Api.METADATA,
    Api.FIND_COORDINATOR,
    Api.DESCRIBE_CLUSTER,
    Api.PRODUCE,
    Api.FETCH,
)


@dataclass(frozen=True)
class NamedBroker:
    """A host and port that stand at ``start`` to ``end`` of the frame.

    ``inside``: where the size of the tagged field around them stands, and what it says.
    """

    address: Address
    start: int
    end: int
    inside: tuple[int, int, int] | None = None


def brokers_named(answer: bytes, api: Api, version: int) -> list[NamedBroker]:
    """Every broker's address in the answer, in its order. Malformed if it is laid out otherwise."""
    reader = answer_reader(answer, api, version)
    read = {
        Api.METADATA: _metadata,
        Api.FIND_COORDINATOR: _find_coordinator,
        Api.DESCRIBE_CLUSTER: _describe_cluster,
        Api.PRODUCE: _produce,
        Api.FETCH: _fetch,
    }[api]
    # No host: nobody is known, as in an answer that is an error.
    return [named for named in read(reader, version) if named.address[0]]


def with_addresses(
    answer: bytes, found: list[NamedBroker], replace: Callable[[Address], Address], flexible: bool
) -> bytes:
    """The same answer with other addresses, of whatever length."""
    patches: list[tuple[int, int, bytes]] = []
    grown: dict[tuple[int, int, int], int] = {}
    for named in found:
        host, port = replace(named.address)
        raw = host.encode()
        length = _uvarint(len(raw) + 1) if flexible else struct.pack(">h", len(raw))
        new = length + raw + struct.pack(">i", port)
        patches.append((named.start, named.end, new))
        if named.inside is not None:
            more = len(new) - (named.end - named.start)
            grown[named.inside] = grown.get(named.inside, 0) + more
    patches += [(start, end, _uvarint(size + more)) for (start, end, size), more in grown.items()]
    parts, at = [], PREFIX
    for start, end, new in sorted(patches):
        parts += [answer[at:start], new]
        at = end
    parts.append(answer[at:])
    return framed(b"".join(parts))


def with_versions_cut(answer: bytes, version: int) -> bytes:
    """An answer to ApiVersions that offers nothing newer than what is read here."""
    reader = answer_reader(answer, Api.API_VERSIONS, version)
    if reader.i16():
        # UNSUPPORTED_VERSION: comes in the oldest form, and the client asks again.
        return answer
    cut = bytearray(answer)
    for _ in reader.array():
        key = reader.i16()
        reader.i16()
        at, newest = reader.at, reader.i16()
        known = VERSION_MAX.get(key)  # type: ignore[call-overload]
        if known is not None and newest > known:
            struct.pack_into(">h", cut, at, known)
        reader.tags()
    return bytes(cut)


def finalized_features(answer: bytes, version: int) -> dict[str, int]:
    """The features of the cluster, by an answer to ApiVersions: name to version level."""
    reader = answer_reader(answer, Api.API_VERSIONS, version)
    reader.i16()
    for _ in reader.array():
        reader.skip(6)
        reader.tags()
    reader.i32()  # throttle time
    at = reader.tags().get(2)
    if at is None:
        return {}
    reader.at = at
    found = {}
    for _ in reader.array():
        name = reader.string() or ""
        found[name] = reader.i16()
        reader.i16()
        reader.tags()
    return found


def _broker(reader: Reader) -> NamedBroker:
    start = reader.at
    host = reader.string() or ""
    port = reader.i32()
    return NamedBroker((host, port), start, reader.at)


def _metadata(reader: Reader, version: int) -> Iterator[NamedBroker]:
    if version >= 3:
        reader.i32()  # throttle time
    for _ in reader.array():
        reader.i32()  # node id
        yield _broker(reader)
        if version >= 1:
            reader.string()  # rack
        reader.tags()


def _find_coordinator(reader: Reader, version: int) -> Iterator[NamedBroker]:
    if version >= 1:
        reader.i32()  # throttle time
    if version >= 4:
        for _ in reader.array():
            reader.string()  # key
            reader.i32()  # node id
            yield _broker(reader)
            reader.i16()  # error
            reader.string()
            reader.tags()
        return
    reader.i16()  # error
    if version >= 1:
        reader.string()
    reader.i32()  # node id
    yield _broker(reader)


def _describe_cluster(reader: Reader, version: int) -> Iterator[NamedBroker]:
    reader.i32()  # throttle time
    reader.i16()  # error
    reader.string()
    if version >= 1:
        reader.i8()  # brokers or controllers
    reader.string()  # cluster id
    reader.i32()  # controller
    for _ in reader.array():
        reader.i32()  # node id
        yield _broker(reader)
        reader.string()  # rack
        if version >= 2:
            reader.i8()  # fenced
        reader.tags()


def _produce(reader: Reader, version: int) -> Iterator[NamedBroker]:
    if version < 10:
        return
    for _ in reader.array():
        if version >= 13:
            reader.skip(16)  # topic id
        else:
            reader.string()
        for _ in reader.array():
            reader.skip(6)  # partition, error
            pass_produced_partition(reader, version)
        reader.tags()
    reader.i32()  # throttle time
    yield from _endpoints(reader)


def _fetch(reader: Reader, version: int) -> Iterator[NamedBroker]:
    if version < 16:
        return
    reader.skip(4 + 2 + 4)  # throttle time, error, session
    for _ in reader.array():
        reader.skip(16)  # topic id
        for _ in reader.array():
            # Partition, error, high watermark, last stable offset, log start.
            reader.skip(4 + 2 + 8 + 8 + 8)
            for _ in reader.array():
                reader.skip(16)  # an aborted transaction
                reader.tags()
            reader.i32()  # preferred replica
            reader.data()
            reader.tags()
        reader.tags()
    yield from _endpoints(reader)


def _endpoints(reader: Reader) -> Iterator[NamedBroker]:
    for _ in range(reader.uvarint()):
        tag, start = reader.uvarint(), reader.at
        size = reader.uvarint()
        inside = (start, reader.at, size)
        if tag != _ENDPOINTS_TAG:
            reader.skip(size)
            continue
        for _ in reader.array():
            reader.i32()  # node id
            named = _broker(reader)
            yield NamedBroker(named.address, named.start, named.end, inside)
            reader.string()  # rack
            reader.tags()


def _uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
