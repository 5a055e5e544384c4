"""What may be done to a request on its way, and to which one.

A ``Rule`` chooses requests, its ``Fault`` says what happens to them, and every one that it happened
to is an ``Injected``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from pipeline.chaos.wire import TRANSACTIONAL, Api, Request
from pipeline.domain.invariant import invariant


class Lost(Enum):
    """What of the exchange never arrives."""

    NOTHING = "nothing"
    REQUEST = "request"
    ANSWER = "answer"


@dataclass(frozen=True)
class Copy:
    """One more copy of the request, delivered on a connection of its own.

    ``after`` None: at once, behind the original. Otherwise when the ``nth`` request of that kind
    with the same transactional id has been answered, and before its client hears the answer: where
    the copy lands in the transaction is the same every time.
    """

    after: Api | None = None
    nth: int = 1


@dataclass(frozen=True)
class Fault:
    """Made by the functions below, which say what each is.

    ``silently``: the connection stays, so that the client runs into its own time-out; otherwise
    it is cut, as by a broken network.
    """

    name: str
    lost: Lost = Lost.NOTHING
    silently: bool = False
    delay_s: float = 0.0
    copy: Copy | None = None
    swap: bool = False
    answer: int | None = None


def delay(seconds: float) -> Fault:
    """The request, and all that follows on its connection, arrives later."""
    return Fault("delay", delay_s=seconds)


def lose_request(*, silently: bool = False) -> Fault:
    """The broker never sees it."""
    return Fault("lose_request", lost=Lost.REQUEST, silently=silently)


def lose_answer(*, silently: bool = False, delay_s: float = 0.0) -> Fault:
    """The broker has done it and the client is not told."""
    return Fault("lose_answer", lost=Lost.ANSWER, silently=silently, delay_s=delay_s)


def double(*, lost: Lost = Lost.NOTHING, silently: bool = False) -> Fault:
    """It arrives twice in a row; ``lost`` ANSWER: and neither answer comes back."""
    invariant(lost is not Lost.REQUEST, "what arrives twice is not lost")
    return Fault("double", lost=lost, silently=silently, copy=Copy())


def late(after: Api, nth: int = 1, *, lost: Lost = Lost.REQUEST, silently: bool = False) -> Fault:
    """A copy arrives when later requests have overtaken it.

    ``lost`` REQUEST: nothing was doubled, the one that its client gave up is merely late.
    ANSWER: the broker had done it, and is asked to again.
    """
    return Fault("late", lost=lost, silently=silently, copy=Copy(after, nth))


def reorder() -> Fault:
    """It changes places with the next request on its connection, if one comes within a second."""
    return Fault("reorder", swap=True)


def answer(code: int, *, forward: bool) -> Fault:
    """The client is answered with this error code; ``forward``: though the broker has done it."""
    lost = Lost.ANSWER if forward else Lost.REQUEST
    return Fault("answer", lost=lost, silently=True, answer=code)


@dataclass
class Rule:
    """Which requests a fault happens to: the next ``times`` of an API, or all (None).

    ``transactional_id`` and ``client_id`` narrow it to one producer; ``chance`` below 1 leaves the
    others alone, drawn from the proxy's seed.
    """

    api: Api
    fault: Fault
    times: int | None = 1
    transactional_id: str = ""
    client_id: str = ""
    chance: float = 1.0
    matched: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        invariant(self.api in TRANSACTIONAL, "faults are for what writes, not for what asks")
        if self.fault.answer is not None:
            invariant(
                self.api in (Api.END_TXN, Api.ADD_OFFSETS_TO_TXN),
                "an answer of an error code alone is what EndTxn and AddOffsetsToTxn have",
            )

    @property
    def spent(self) -> bool:
        return self.times is not None and self.matched >= self.times

    def chooses(self, request: Request) -> bool:
        """Whether the rule is about this request; chance and ``times`` come on top."""
        return (
            request.api is self.api
            and self.transactional_id in ("", request.transactional_id)
            and self.client_id in ("", request.client_id)
        )


@dataclass
class Injected:
    """One fault that happened. ``copy_answer`` is the broker's error code to the extra copy, None
    while that has not arrived; ``request`` is kept so that it can be sent again."""

    number: int
    at_s: float
    fault: Fault
    request: Request
    upstream: tuple[str, int]
    copy_answer: int | None = None
    copy_at_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a line of the log: what a reader needs, no bytes."""
        fault = {k: v for k, v in asdict(self.fault).items() if v not in (None, False, 0.0)}
        fault["lost"] = self.fault.lost.value
        if self.fault.copy is not None and self.fault.copy.after is not None:
            fault["copy"] = f"after {self.fault.copy.nth} {self.fault.copy.after.name}"
        elif self.fault.copy is not None:
            fault["copy"] = "at once"
        return {
            "number": self.number,
            "at_s": round(self.at_s, 4),
            "request": self.request.name,
            "version": self.request.version,
            "client_id": self.request.client_id,
            "transactional_id": self.request.transactional_id,
            "correlation_id": self.request.correlation_id,
            **fault,
            "copy_answer": self.copy_answer,
        }
