"""What all runs of a process share, because making it costs more than a run may: bound coders, and
metrics that nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import count
from typing import Any

from schemas.codec import Codec, default_codec

# Twice what a run decodes of one schema.
DECODED_MAX = 4_096


class SharedCodec:
    """The real codec, its closures bound once. Bytes that were decoded already give the same record
    again: workers, the auditor and people read the same, and nobody changes what was decoded."""

    def __init__(self, codec: Codec) -> None:
        self.encoder: Any = cache(codec.encoder)

        def decoder(name: str) -> Callable[[bytes], dict[str, Any]]:
            return lru_cache(DECODED_MAX)(codec.decoder(name))

        self.decoder: Any = cache(decoder)


class Carried(bytes):
    """Bytes that stand for a record: the wire format's header, a number, and the record itself."""

    schema: str
    record: dict[str, Any]


class CarryingCodec:
    """A codec that hands records on instead of writing and reading Avro, a third of a run's time.

    Other bytes are read by the real one. No record that is handed on is changed by anybody: whoever
    builds a noun of it leaves it as it was (``pipeline/domain/records.py``).
    """

    def __init__(self, real: SharedCodec) -> None:
        self._real = real
        self._numbers = count(1)
        self.encoder: Any = cache(self._encoder)
        self.decoder: Any = cache(self._decoder)

    def _encoder(self, name: str, *, checked: bool = True) -> Callable[[dict[str, Any]], bytes]:
        numbers = self._numbers

        def encode(record: dict[str, Any]) -> bytes:
            made = Carried(b"\x00" + next(numbers).to_bytes(12, "big"))
            made.schema = name
            made.record = record
            return made

        return encode

    def _decoder(self, name: str) -> Callable[[bytes], dict[str, Any]]:
        read = self._real.decoder(name)

        def decode(value: bytes) -> dict[str, Any]:
            if type(value) is Carried and value.schema == name:
                return value.record
            return read(value)  # type: ignore[no-any-return]

        return decode


class Quiet:
    """Answers whatever it is told with itself."""

    def __getattr__(self, name: str) -> Quiet:
        # Found at once the next time.
        setattr(self, name, self)
        return self

    def __call__(self, *_args: Any, **_more: Any) -> Quiet:
        return self


@cache
def shared_codec(avro: bool = True) -> Any:
    """The codec of a run: the real one, or one that carries records (``avro`` False)."""
    real = SharedCodec(default_codec())
    return real if avro else CarryingCodec(real)


QUIET: Any = Quiet()
