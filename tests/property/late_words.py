"""What a model's gateways said when nobody waited for it any more, and how workers tell it.

A worker that gave a call up may hear its answer all the same. It tells what it hears of a question
with the next one of that key that gets no answer (``earlier_question``): a success or a decline as
it is, "not found" with the time at which it was asked, of "pending" that the gateway has it. What
makes another end of a payment, or may contradict what was told, it tells by itself as well
(``late_answer``), whenever its next transaction is. Where it has heard a success and a decline of
one operation, both are told, the decline right behind the success (``contradicts``).
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import GatewayResult, PaymentRequest
from pipeline.processors.gateway import result_of

# From what says least to what says most; a refund that was made may come back.
RANKS: Final = ("not_found", "pending", "declined", "succeeded")
RANKS_OF_REFUNDS: Final = ("not_found", "pending", "succeeded", "declined")
UNKNOWN: Final = GatewayAnswer(outcome="unknown", code="timeout")


class LateWords:
    """Of one model's worker. ``told``: what it tells by itself, once it has a transaction."""

    def __init__(self) -> None:
        self.told: list[GatewayResult] = []
        # By the key that was asked about: what was heard, and when it was asked for.
        self._words: dict[str, tuple[GatewayAnswer, int]] = {}
        self._behind: dict[str, GatewayAnswer] = {}

    def sent(self, request: PaymentRequest) -> None:
        """What was said before says nothing of this sending, but that it was made already."""
        word = self._words.get(request.idempotency_key)
        if word is not None and not stays_true(request, word[0]):
            del self._words[request.idempotency_key]

    def made(self, request: PaymentRequest, answer: GatewayAnswer, now_ms: int) -> None:
        """The answer to a call that was given up, or whose worker has lost its transaction: of that
        only money that was taken is told."""
        if stays_true(request, answer):
            self._words[request.idempotency_key] = answer, now_ms
            self._tell(request, answer, now_ms)

    def hear(
        self, request: PaymentRequest, answer: GatewayAnswer, asked_at_ms: int, now_ms: int
    ) -> None:
        """The answer to a question that was given up."""
        refunds = request.operation_kind == "refund"
        known = self._words.get(request.idempotency_key)
        rank = (RANKS_OF_REFUNDS if refunds else RANKS).index
        if known is None or rank(known[0].outcome) <= rank(answer.outcome):
            self._words[request.idempotency_key] = answer, asked_at_ms
        declined = answer.outcome == "declined" and not refunds
        if declined or makes_another_end(request, answer):
            self._tell(request, answer, now_ms)

    def answer(self, request: PaymentRequest, answer: GatewayAnswer) -> GatewayAnswer:
        """What is told of a question that was answered so in time, or ended ``UNKNOWN``."""
        key = request.idempotency_key
        word, asked_at_ms = self._words.get(key, (answer, 0))
        if {word.outcome, answer.outcome} == {"succeeded", "declined"} and (
            request.operation_kind != "refund"
        ):
            no = word if word.outcome == "declined" else answer
            self._behind[key] = replace(no, heard="contradicts")
        if word.outcome == "pending" and answer.outcome in ("unknown", "not_found"):
            return replace(UNKNOWN, code="heard_pending")
        if makes_another_end(request, word):
            return answer if word.outcome == answer.outcome else _earlier(word)
        self._words.pop(key, None)
        if answer.outcome != "unknown" or word is answer:
            return answer
        if word.outcome == "not_found":
            return replace(answer, not_found_asked_at_ms=asked_at_ms)
        return _earlier(word)

    def behind(self, request: PaymentRequest, now_ms: int) -> GatewayResult | None:
        """What contradicts the answer that was just told of this request."""
        word = self._behind.pop(request.idempotency_key, None)
        return None if word is None else result_of(request, word, now_ms)

    def lose(self) -> None:
        """The worker is gone, and all that it had heard and not told."""
        self.told.clear()
        self._words.clear()

    def _tell(self, request: PaymentRequest, answer: GatewayAnswer, now_ms: int) -> None:
        self.told.append(result_of(request, replace(answer, heard="late_answer"), now_ms))


def stays_true(request: PaymentRequest, answer: GatewayAnswer) -> bool:
    """Whether a word says for ever that money was moved."""
    return answer.outcome == "succeeded" and request.operation_kind != "refund"


def makes_another_end(request: PaymentRequest, answer: GatewayAnswer) -> bool:
    """Whether no later word undoes this one: money was moved, or a refund came back."""
    returned = request.operation_kind == "refund" and answer.code == "returned"
    return returned or stays_true(request, answer)


def _earlier(word: GatewayAnswer) -> GatewayAnswer:
    return replace(word, heard="earlier_question")
