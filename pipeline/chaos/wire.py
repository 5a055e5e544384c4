"""As much of Kafka's requests and answers as the proxy needs: headers, ids, error codes.

After the protocol's own description (kafka.apache.org/protocol).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from pipeline.kafka_wire import PREFIX, Malformed, Reader, framed


class Api(IntEnum):
    """The requests that the proxy looks into; every other one passes unread."""

    PRODUCE = 0
    FETCH = 1
    METADATA = 3
    FIND_COORDINATOR = 10
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    DESCRIBE_CLUSTER = 60


# From this version on an API is flexible.
FLEXIBLE_FROM = {
    Api.PRODUCE: 9,
    Api.FETCH: 12,
    Api.METADATA: 9,
    Api.FIND_COORDINATOR: 3,
    Api.API_VERSIONS: 3,
    Api.INIT_PRODUCER_ID: 2,
    Api.ADD_PARTITIONS_TO_TXN: 3,
    Api.ADD_OFFSETS_TO_TXN: 3,
    Api.END_TXN: 3,
    Api.TXN_OFFSET_COMMIT: 3,
    Api.DESCRIBE_CLUSTER: 0,
}
# The newest version whose layout is written down here. Answers to ApiVersions are cut down to
# these, so that no client speaks one that would pass the proxy unread.
VERSION_MAX = {
    Api.PRODUCE: 13,
    Api.FETCH: 18,
    Api.METADATA: 13,
    Api.FIND_COORDINATOR: 6,
    Api.INIT_PRODUCER_ID: 6,
    Api.ADD_PARTITIONS_TO_TXN: 3,
    Api.ADD_OFFSETS_TO_TXN: 4,
    Api.END_TXN: 5,
    Api.TXN_OFFSET_COMMIT: 5,
    Api.DESCRIBE_CLUSTER: 2,
}
# Those that begin with the transactional id and may be chosen for a fault by it.
TRANSACTIONAL = (
    Api.PRODUCE,
    Api.INIT_PRODUCER_ID,
    Api.ADD_PARTITIONS_TO_TXN,
    Api.ADD_OFFSETS_TO_TXN,
    Api.END_TXN,
    Api.TXN_OFFSET_COMMIT,
)
NO_ERROR = 0
INVALID_PRODUCER_EPOCH = 47
INVALID_TXN_STATE = 48
INVALID_PRODUCER_ID_MAPPING = 49
FENCED_INSTANCE_ID = 82
PRODUCER_FENCED = 90


@dataclass(frozen=True)
class Request:
    """A request as it goes by. ``transactional_id`` is empty where there is none."""

    frame: bytes
    api_key: int
    version: int
    correlation_id: int
    client_id: str
    transactional_id: str

    @property
    def api(self) -> Api | None:
        try:
            return Api(self.api_key)
        except ValueError:
            return None

    @property
    def name(self) -> str:
        api = self.api
        return str(self.api_key) if api is None else api.name.title().replace("_", "")


def is_flexible(api: Api, version: int) -> bool:
    return version >= FLEXIBLE_FROM[api]


def read_request(frame: bytes) -> Request:
    """Header, and the transactional id of those that begin with one."""
    reader = Reader(frame, PREFIX)
    api_key, version, correlation_id = reader.i16(), reader.i16(), reader.i32()
    # The client id keeps the old form of a string in every version of the header.
    client_id = reader.string() or ""
    transactional_id = ""
    if api_key in TRANSACTIONAL:
        api = Api(api_key)
        reader.flexible = is_flexible(api, version)
        reader.tags()
        if api is not Api.PRODUCE or version >= 3:
            transactional_id = reader.string() or ""
    return Request(frame, api_key, version, correlation_id, client_id, transactional_id)


def correlation_id_of(answer: bytes) -> int:
    return Reader(answer, PREFIX).i32()


def answer_reader(answer: bytes, api: Api, version: int) -> Reader:
    """At the beginning of the answer's body."""
    flexible = is_flexible(api, version)
    reader = Reader(answer, PREFIX + 4, flexible=flexible)
    # Answers to ApiVersions keep the old header: their reader knows no version yet.
    if api is not Api.API_VERSIONS:
        reader.tags()
    return reader


def error_of(answer: bytes, api: Api, version: int) -> int:
    """The first error code other than 0 in the answer to a transactional request."""
    reader = answer_reader(answer, api, version)
    if api is Api.PRODUCE:
        return _produce_error(reader, version)
    reader.i32()  # throttle time
    if api in (Api.END_TXN, Api.ADD_OFFSETS_TO_TXN, Api.INIT_PRODUCER_ID):
        return reader.i16()
    if api not in (Api.ADD_PARTITIONS_TO_TXN, Api.TXN_OFFSET_COMMIT):
        raise Malformed(f"the errors of {api.name} are not read here")
    for _ in reader.array():
        reader.string()
        for _ in reader.array():
            reader.i32()
            if code := reader.i16():
                return code
            reader.tags()
        reader.tags()
    return NO_ERROR


def _produce_error(reader: Reader, version: int) -> int:
    for _ in reader.array():
        if version >= 13:
            reader.skip(16)  # topic id
        else:
            reader.string()
        for _ in reader.array():
            reader.i32()
            if code := reader.i16():
                return code
            pass_produced_partition(reader, version)
        reader.tags()
    return NO_ERROR


def pass_produced_partition(reader: Reader, version: int) -> None:
    """What an answer to Produce says of a partition behind its index and error code."""
    reader.i64()  # base offset
    if version >= 2:
        reader.i64()  # log append time
    if version >= 5:
        reader.i64()  # log start offset
    if version >= 8:
        for _ in reader.array():
            reader.i32()
            reader.string()
            reader.tags()
        reader.string()
    reader.tags()


def api_versions_request() -> Request:
    """Asks what a broker speaks and which features its cluster has, in the first flexible form."""
    name = b"paystream"
    header = struct.pack(">hhih", Api.API_VERSIONS, 3, 0, len(name)) + name + b"\0"
    body = bytes([len(name) + 1]) + name + b"\x02" + b"1" + b"\0"
    return read_request(framed(header + body))


def plain_answer(request: Request, code: int) -> bytes:
    """The answer to EndTxn or AddOffsetsToTxn that consists of an error code."""
    if request.api not in (Api.END_TXN, Api.ADD_OFFSETS_TO_TXN):
        raise Malformed(f"an answer to {request.name} is more than an error code")
    tags = b"\0" if is_flexible(Api(request.api_key), request.version) else b""
    body = struct.pack(">i", request.correlation_id) + tags + struct.pack(">ih", 0, code)
    if request.api is Api.END_TXN and request.version >= 5:
        body += struct.pack(">qh", -1, -1)  # the producer's next id and epoch: none
    return framed(body + tags)
