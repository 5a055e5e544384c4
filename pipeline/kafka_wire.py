"""Kafka's wire format: frames, numbers, strings, arrays.

After the protocol's own description (kafka.apache.org/protocol). "Flexible" versions write lengths
as varints and end each structure in tagged fields.
"""

from __future__ import annotations

import struct

# Four bytes of length stand before every frame.
PREFIX = 4


class Malformed(Exception):
    """Bytes that are not what their API and version say."""


class Reader:
    """Reads one frame from ``at`` on; lengths as the version has them."""

    def __init__(self, frame: bytes, at: int = 0, *, flexible: bool = False) -> None:
        self.frame, self.at, self.flexible = frame, at, flexible

    def _take(self, layout: str, size: int) -> int:
        try:
            (value,) = struct.unpack_from(layout, self.frame, self.at)
        except struct.error as error:
            raise Malformed(f"frame of {len(self.frame)} bytes ends before {self.at}") from error
        self.at += size
        return int(value)

    def i8(self) -> int:
        return self._take(">b", 1)

    def i16(self) -> int:
        return self._take(">h", 2)

    def i32(self) -> int:
        return self._take(">i", 4)

    def i64(self) -> int:
        return self._take(">q", 8)

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.frame):
            raise Malformed(f"frame of {len(self.frame)} bytes ends before {self.at}")

    def uvarint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(">B", 1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                raise Malformed("a varint of more than five bytes")

    def _length(self, short: bool) -> int:
        """Of a string or array; -1 stands for null."""
        if self.flexible:
            return self.uvarint() - 1
        return self.i16() if short else self.i32()

    def string(self) -> str | None:
        length = self._length(short=True)
        if length < 0:
            return None
        start = self.at
        self.skip(length)
        return self.frame[start : self.at].decode("utf-8", "replace")

    def data(self) -> bytes:
        """Bytes or records; none where there are null."""
        length = max(0, self._length(short=False))
        start = self.at
        self.skip(length)
        return self.frame[start : self.at]

    def array(self) -> range:
        """One step for each element."""
        return range(max(0, self._length(short=False)))

    def tags(self) -> dict[int, int]:
        """The tagged fields of a flexible structure: where each one's content begins."""
        found: dict[int, int] = {}
        if self.flexible:
            for _ in range(self.uvarint()):
                tag, size = self.uvarint(), self.uvarint()
                found[tag] = self.at
                self.skip(size)
        return found


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body
