"""What a model's gateways said when nobody waited for it any more.

A worker that gave a question up may hear its answer all the same, and tells it with the next
question of that key that gets none: a success or a decline as it is, "not found" with the time at
which it was asked, and of "pending" only that the gateway has it.
"""

from __future__ import annotations

from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest


class LateWords:
    """Of one model, by the key that was asked about: the newest, and when it was asked for."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[GatewayAnswer, int]] = {}

    def sent(self, request: PaymentRequest) -> None:
        """What was said before says nothing of this sending."""
        self._words.pop(request.idempotency_key, None)

    def hear(self, request: PaymentRequest, answer: GatewayAnswer, asked_at_ms: int) -> None:
        self._words[request.idempotency_key] = (answer, asked_at_ms)

    def instead(self, request: PaymentRequest, unknown: GatewayAnswer) -> GatewayAnswer:
        """The answer of a question that gets none itself."""
        word, asked_at_ms = self._words.pop(request.idempotency_key, (unknown, 0))
        if word.outcome == "not_found":
            return replace(unknown, not_found_asked_at_ms=asked_at_ms)
        if word.outcome == "pending":
            return replace(unknown, code="heard_pending")
        return word
