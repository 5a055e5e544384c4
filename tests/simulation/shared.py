"""What all runs of a process share, because making it costs more than a run may: bound coders, and
metrics that nobody reads."""

from __future__ import annotations

from functools import cache
from typing import Any

from schemas.codec import Codec, default_codec


class SharedCodec:
    """The real codec, its closures bound once."""

    def __init__(self, codec: Codec) -> None:
        self.encoder: Any = cache(codec.encoder)
        self.decoder: Any = cache(codec.decoder)


class Quiet:
    """Answers whatever it is told with itself."""

    def __getattr__(self, name: str) -> Quiet:
        return self

    def __call__(self, *_args: Any, **_more: Any) -> Quiet:
        return self


@cache
def shared_codec() -> Any:
    return SharedCodec(default_codec())


QUIET: Any = Quiet()
