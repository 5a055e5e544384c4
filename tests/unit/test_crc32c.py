"""The checksum of a batch of records."""

from __future__ import annotations

import pytest

from pipeline.batches.crc32c import crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_it_is_castagnoli_s(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
