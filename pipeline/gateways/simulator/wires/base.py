"""What a wire format of the simulator is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from pipeline.gateways.simulator.operations import Asked, Operation, Reply, Wire

# 2**53: beyond it JSON readers that use floats lose the last digit of an amount.
AMOUNT_MINOR_MAX = 1 << 53
NAME_LENGTH_MAX = 255

_Body = TypeVar("_Body", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Route:
    """A path and what it is for; ``hint`` is handed to the wire's ``parse``."""

    method: str
    path: str
    hint: str


@dataclass(frozen=True, slots=True)
class Parts:
    """One HTTP request. ``headers`` compare without regard to case."""

    headers: Mapping[str, str]
    match: Mapping[str, str]
    query: Mapping[str, str]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Question:
    """An inquiry: by the caller's reference, or by the gateway's own id."""

    kind: str
    reference: str | None = None
    id: str | None = None


class GatewayWire(Wire, Protocol):
    """One gateway's format: HTTP in, bytes out."""

    content_type: str

    @property
    def routes(self) -> Sequence[Route]: ...

    def key(self, parts: Parts) -> str | None:
        """The idempotency key; None where the gateway has none. Raises ValueError by name."""
        ...

    def parse(self, hint: str, parts: Parts) -> Asked | Question:
        """What is asked. Raises ValueError with a sentence about the first thing wrong."""
        ...

    def found(self, operation: Operation) -> Reply:
        """The answer to an inquiry about what there is."""
        ...

    def not_found(self, question: Question) -> Reply:
        """The answer to an inquiry about what is not to be seen."""
        ...

    def notice_headers(
        self, secrets: Sequence[str], notice_id: str, now_s: int, body: bytes
    ) -> dict[str, str]:
        """The headers that make a notice believable."""
        ...


def checked_key(text: str, name: str) -> str:
    """An idempotency key of a header; raises ValueError naming the header."""
    if not 1 <= len(text) <= NAME_LENGTH_MAX or not text.isascii() or not text.isprintable():
        raise ValueError(f"the header {name} must have 1 to 255 ASCII characters")
    return text


def checked_instrument(token: str, name: str = "instrument_token") -> str:
    """Refuse what looks like a card number; raises ValueError."""
    if token.isdigit() and 12 <= len(token) <= 19:
        raise ValueError(f"{name} looks like a card number; send a token, never a card")
    return token


def decoded(raw: bytes, kind: type[_Body]) -> _Body:
    """A JSON body; raises ValueError with a sentence."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def form_fields(raw: bytes) -> dict[str, str]:
    """The fields of a form-encoded body; raises ValueError with a sentence."""
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=bool(raw))
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"the body is no form: {error}") from error
    return dict(pairs)


def needed(fields: Mapping[str, str], name: str) -> str:
    """A field that must be there; raises ValueError naming it."""
    text = fields.get(name, "")
    if not 1 <= len(text) <= NAME_LENGTH_MAX:
        raise ValueError(f"{name} must have 1 to 255 characters")
    return text


def whole_amount(text: str, name: str) -> int:
    """An amount in minor units; raises ValueError naming the field."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:17]) <= AMOUNT_MINOR_MAX:
        raise ValueError(f"{name} must be a whole number of minor units above zero")
    return int(text[:17])
