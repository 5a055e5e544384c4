"""Which call goes wrong, and how: a pure function of the seed, the call's key and a count.

The order in which calls arrive plays no part, so two runs with one seed inject the same faults
whatever the timing. A key's faults end: after ``faulted_calls_max`` faulted calls its next call is
served, so a caller that retries or inquires always comes to an end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import msgspec

from pipeline.errors import UserError


class FaultKind(StrEnum):
    """What can go wrong, worded for the counters of ``GET /v1/faults``."""

    DECLINE = "decline"
    SLOW = "slow"
    RATE_LIMITED = "rate_limited"
    ERROR_BEFORE = "500_before"
    ERROR_AFTER = "500_after"
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    HANG_BEFORE = "hang_before"
    HANG_AFTER = "hang_after"
    INQUIRY_ERROR = "inquiry_500"
    INQUIRY_NOT_FOUND = "inquiry_not_found"
    IN_PROGRESS = "in_progress"
    MALFORMED = "malformed"
    NOTICE_DUPLICATE = "notice_duplicate"
    NOTICE_BEFORE_ANSWER = "notice_before_answer"
    NOTICE_BAD_SIGNATURE = "notice_bad_signature"


# In the order of the draw: changing it changes every seed's faults.
CALL_FAULTS = (
    FaultKind.SLOW,
    FaultKind.RATE_LIMITED,
    FaultKind.ERROR_BEFORE,
    FaultKind.ERROR_AFTER,
    FaultKind.RESET_BEFORE,
    FaultKind.RESET_AFTER,
    FaultKind.HANG_BEFORE,
    FaultKind.HANG_AFTER,
    FaultKind.IN_PROGRESS,
    FaultKind.MALFORMED,
)

# What the default plan injects. The two that came later are left to tokens and plans of one's own:
# drawn last, they leave every older seed's faults as they were.
DEFAULT_FAULTS = CALL_FAULTS[:8]

# Nothing is charged by a call that meets one of these. SLOW is among them because its charge is
# made by a second step, after the delay.
BEFORE_CHARGE = frozenset(
    {
        FaultKind.SLOW,
        FaultKind.RATE_LIMITED,
        FaultKind.ERROR_BEFORE,
        FaultKind.RESET_BEFORE,
        FaultKind.HANG_BEFORE,
        FaultKind.IN_PROGRESS,
    }
)

# What can go wrong with a notice, in the order of the draw.
NOTICE_FAULTS = (
    FaultKind.NOTICE_DUPLICATE,
    FaultKind.NOTICE_BEFORE_ANSWER,
    FaultKind.NOTICE_BAD_SIGNATURE,
)

# What the default plan gives a rate, and what any plan may.
RATED = (FaultKind.DECLINE, *DEFAULT_FAULTS, FaultKind.INQUIRY_ERROR)
RATES = (FaultKind.DECLINE, *CALL_FAULTS, FaultKind.INQUIRY_ERROR, *NOTICE_FAULTS)

DECLINE_WEIGHTS: Mapping[str, float] = {
    "insufficient_funds": 5,
    "card_declined": 3,
    "do_not_honor": 3,
    "expired_card": 2,
    "lost_card": 1,
    "processing_error": 1,
}


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """How often each thing goes wrong. Rates are shares of calls, 0 to 1, by fault kind.

    The rates of the faults of one call add up to 1 at most; a decline is drawn once per key, before
    them, and a declined key meets no other fault. ``inquiry_500`` is drawn per inquiry.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    decline_weights: Mapping[str, float] = field(default_factory=lambda: dict(DECLINE_WEIGHTS))
    faulted_calls_max: int = 2
    slow_ms_min: int = 200
    slow_ms_max: int = 1_500
    # Clients give up after 5 to 10 s; longer than that only keeps sockets open.
    hang_ms: int = 30_000
    retry_after_s: int = 1
    inquiry_grace_ms: int = 0
    # Grace of tok_not_found_grace: long enough for one inquiry to miss, short enough for a test.
    token_grace_ms: int = 1_500
    # How long what is pending takes: long enough for one inquiry to see it pending.
    pending_ms: int = 1_500
    # A notice leaves this long after the change it tells of: usually after the answer.
    notice_delay_ms: int = 50
    # Before the first repetition of a notice that was not taken; each next one waits twice as long.
    notice_retry_ms: int = 500

    def __post_init__(self) -> None:
        """Raise UserError naming the first field that cannot be meant."""
        for kind, rate in self.rates.items():
            if kind not in RATES:
                known = ", ".join(RATES)
                raise UserError(f"Fault plan: there is no rate {kind!r}; use one of {known}.")
            if not 0 <= rate <= 1:
                raise UserError(f"Fault plan: rate {kind} is {rate}; give a share from 0 to 1.")
        if sum(self.rates.get(kind, 0.0) for kind in CALL_FAULTS) > 1:
            raise UserError(
                "Fault plan: the rates of the faults of one call add up to more than 1."
            )
        if sum(self.rates.get(kind, 0.0) for kind in NOTICE_FAULTS) > 1:
            raise UserError(
                "Fault plan: the rates of the faults of one notice add up to more than 1."
            )
        if not self.decline_weights or any(w <= 0 for w in self.decline_weights.values()):
            raise UserError("Fault plan: decline_weights needs a positive weight for each code.")
        for name in (
            "faulted_calls_max",
            "slow_ms_min",
            "hang_ms",
            "retry_after_s",
            "inquiry_grace_ms",
            "token_grace_ms",
            "pending_ms",
            "notice_delay_ms",
            "notice_retry_ms",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"Fault plan: {name} is below zero; give 0 or more.")
        if self.slow_ms_max < self.slow_ms_min:
            raise UserError("Fault plan: slow_ms_max is below slow_ms_min; raise it.")

    @classmethod
    def none(cls) -> Self:
        """Nothing goes wrong unless a test token asks for it."""
        return cls()

    @classmethod
    def default(cls) -> Self:
        """Everything goes wrong now and then: about every fourth payment meets something.

        Of 337 keys (three days of a small shop) about 15 are declined and about 10 meet each other
        fault, retries included, so that a run over so few orders has seen every kind: the chance
        that a given one is missing is about 1 in 10,000. ``forecast`` tells for known keys.
        """
        rates: dict[str, float] = dict.fromkeys(DEFAULT_FAULTS, 0.027)
        rates[FaultKind.DECLINE] = 0.045
        # Drawn per inquiry, and only about 60 of the 337 are inquired about.
        rates[FaultKind.INQUIRY_ERROR] = 0.15
        return cls(rates=rates)

    @classmethod
    def from_json(cls, raw: bytes, *, where: str) -> Self:
        """The plan a JSON object describes; fields left out keep their defaults (rates: 0).

        Raises UserError naming ``where`` and the field.
        """
        try:
            given: Any = msgspec.json.decode(raw)
            if not isinstance(given, dict):
                raise UserError(f"{where} is not a fault plan: it is not a JSON object.")
            # A misspelt field must not pass for a default.
            unknown = sorted(set(given) - {known.name for known in fields(cls)})
            if unknown:
                raise UserError(f"{where} is not a fault plan: unknown field {unknown[0]!r}.")
            return msgspec.convert(given, cls)
        except msgspec.DecodeError as error:
            raise UserError(f"{where} is not a fault plan: {error}.") from error

    @classmethod
    def named(cls, name: str) -> Self:
        """``default``, ``none``, or the path of a JSON file."""
        if name == "default":
            return cls.default()
        if name == "none":
            return cls.none()
        try:
            raw = Path(name).read_bytes()
        except OSError as error:
            raise UserError(
                f"Fault plan {name!r} cannot be read ({error.strerror}); "
                "say default, none, or the path of a JSON file."
            ) from error
        plan = cls.from_json(raw, where=f"The file {name}")
        if not msgspec.json.decode(raw):
            raise UserError(f"The file {name} names no fault at all; for none of them say none.")
        return plan

    def to_json(self) -> bytes:
        """The JSON form that ``from_json`` reads back."""
        return msgspec.json.format(msgspec.json.encode(asdict(self)))


def call_fault(plan: FaultPlan, seed: int, key: str, faulted_calls: int) -> FaultKind | None:
    """The fault that the next call with this idempotency key meets.

    ``faulted_calls`` is how many calls with the key have met a fault before, so the n-th call of a
    key always meets the same thing. A key that is to be declined meets none.
    """
    if faulted_calls >= plan.faulted_calls_max or decline_code(plan, seed, key) is not None:
        return None
    drawn = _draw(seed, "call", key, faulted_calls)
    edge = 0.0
    for kind in CALL_FAULTS:
        edge += plan.rates.get(kind, 0.0)
        if drawn < edge:
            return kind
    return None


def decline_code(plan: FaultPlan, seed: int, key: str) -> str | None:
    """The code with which a charge under this key is declined, or None if it is not."""
    if _draw(seed, "decline", key, 0) >= plan.rates.get(FaultKind.DECLINE, 0.0):
        return None
    drawn = _draw(seed, "code", key, 0) * sum(plan.decline_weights.values())
    edge = 0.0
    for code, weight in plan.decline_weights.items():
        edge += weight
        if drawn < edge:
            return code
    return next(reversed(list(plan.decline_weights)))  # rounding left the last edge short


def inquiry_fault(plan: FaultPlan, seed: int, reference: str, faulted_inquiries: int) -> bool:
    """Whether the next inquiry about this reference is answered with a 500."""
    if faulted_inquiries >= plan.faulted_calls_max:
        return False
    rate = plan.rates.get(FaultKind.INQUIRY_ERROR, 0.0)
    return _draw(seed, "inquiry", reference, faulted_inquiries) < rate


def notice_fault(plan: FaultPlan, seed: int, key: str) -> FaultKind | None:
    """What goes wrong with the notices of the operation with this key."""
    drawn = _draw(seed, "notice", key, 0)
    edge = 0.0
    for kind in NOTICE_FAULTS:
        edge += plan.rates.get(kind, 0.0)
        if drawn < edge:
            return kind
    return None


def slow_ms(plan: FaultPlan, seed: int, key: str) -> int:
    """How long a slow call with this key takes before its charge is made."""
    span = plan.slow_ms_max - plan.slow_ms_min
    return plan.slow_ms_min + int(_draw(seed, "slow", key, 0) * span)


def forecast(plan: FaultPlan, seed: int, keys: Iterable[str]) -> Counter[FaultKind]:
    """How often each fault will be met if every key is called until it is served.

    Inquiries are left out: whether there are any is the caller's choice.
    """
    counts: Counter[FaultKind] = Counter()
    for key in keys:
        if decline_code(plan, seed, key) is not None:
            counts[FaultKind.DECLINE] += 1
        faulted_calls = 0
        while (kind := call_fault(plan, seed, key, faulted_calls)) is not None:
            counts[kind] += 1
            faulted_calls += 1
    return counts


def _draw(seed: int, purpose: str, key: str, count: int) -> float:
    """A number in [0, 1) that depends on the arguments alone, alike on every machine."""
    text = f"{seed}\0{purpose}\0{key}\0{count}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest()) / (1 << 56)
