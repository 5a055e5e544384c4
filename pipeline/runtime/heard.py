"""What questions heard of that nobody waited for any more, kept for the next question.

A gateway that looks up slowly, beside calls that hang, would never be heard otherwise: each
question is given up before its answer comes. What may be made of a late word:

- ``succeeded`` stays true of a charge, an authorization, a capture or a void. It is the answer of
  every later question, and nobody is asked. A refund may come back after it, so of one the gateway
  is asked again as below, and the success counts where no newer word says so. That it came back
  stays true as well, whatever an answer says that may have been looked up before.
- ``declined`` and ``not_found`` are said of their moment, so the gateway is asked again and a newer
  word counts instead. Only where that question gets no answer either is the earlier word taken: a
  decline as what it is, final for its key; "not found" beside the answer "unknown", with the time
  at which it was asked, since it proves something only of what was sent long before that.
- ``pending`` says that the gateway has it, which no "not found" undoes: told as the code of the
  answer "unknown", it is asked about for as long as what is pending. Nothing else of it is told: it
  may ask the customer for something, or say that nobody does any more, and a notice may have said
  otherwise since.

The time is the append time of the question's request: by the brokers' clock, and surely before the
gateway looked. Clocks differ, so when an operation is sent again, all that was heard before of its
key is forgotten, but for a success that stays true: both come through the same partition, in the
order in which they were decided.
All of it is memory of one worker. Another one asks for itself.

There may be no next question: the payment may have ended by another word, by silence, or by a
person's, or wait for a person since the last one was asked. So what changes anything then is told
by itself as well (``late_words``): evidence like any other. That is a success, of a refund too,
since its return is taken before it or behind it; that a refund came back; ``pending``, or a person
could say that nothing was made of what the gateway has; and a decline, which contradicts a success
that was told in time. Where a word and the answer of a question contradict one another, both are
told, the one that counts first.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.answer import (
    DECLINED,
    NOT_FOUND,
    PENDING,
    SUCCEEDED,
    UNKNOWN,
    GatewayAnswer,
)
from pipeline.domain.gateway_text import kept_answer
from pipeline.domain.health import NOT_CALLED_CODES
from pipeline.domain.lifecycle import REFUND
from pipeline.domain.model import PaymentRequest
from pipeline.domain.payment import HEARD_PENDING
from pipeline.domain.reversals import RETURNED

# Words that nobody has asked for yet, a kilobyte each at most; the oldest go first. Whose word is
# gone is asked about again.
HEARD_MAX: Final = 10_000

_KEPT: Final = frozenset({SUCCEEDED, DECLINED, NOT_FOUND, PENDING})

_Asked = tuple[str, str]


class Word(Struct, frozen=True):
    """One late answer; ``asked_at_ms`` is 0 where it is not known."""

    answer: GatewayAnswer
    asked_at_ms: int
    partition: int


class Heard:
    """The late answers of one worker, by what was asked about."""

    def __init__(self, words_max: int = HEARD_MAX) -> None:
        self._words_max = words_max
        self._words: dict[_Asked, Word] = {}

    def __len__(self) -> int:
        return len(self._words)

    def keep(
        self, request: PaymentRequest, answer: GatewayAnswer, asked_at_ms: int, partition: int
    ) -> None:
        """Remember what a question heard that had been given up. Gateways may look in another order
        than they are asked in, so which word counts is told by what it says; of two that say the
        same, the later question's counts."""
        answer = kept_answer(answer)
        if answer.outcome not in _KEPT or (
            answer.outcome == SUCCEEDED and not answer.gateway_reference
        ):
            # A success that cannot be booked is none, and must not displace what is known.
            return
        asked = _asked(request)
        known = self._words.get(asked)
        if known is not None and not _counts_instead(
            request.operation_kind, answer, asked_at_ms, known
        ):
            return
        self._words.pop(asked, None)
        self._words[asked] = Word(answer, asked_at_ms, partition)
        while len(self._words) > self._words_max:
            self._words.pop(next(iter(self._words)))

    def known(self, request: PaymentRequest) -> GatewayAnswer | None:
        """What an earlier question heard, whatever may be made of it."""
        word = self._words.get(_asked(request))
        return None if word is None else word.answer

    def success(self, request: PaymentRequest) -> GatewayAnswer | None:
        """The answer of a question that need not be asked, because an earlier one succeeded. Known
        on, since the transaction that tells it may be aborted, and the question asked again."""
        word = self._words.get(_asked(request))
        if word is None or not stays_true(request.operation_kind, word.answer):
            return None
        return word.answer

    def instead(self, request: PaymentRequest, answer: GatewayAnswer) -> GatewayAnswer:
        """What is said of a question that ended, or was given up, with this answer. It has been
        asked by now, so what was known before serves this once, unless no answer undoes it
        or it is pending and this one says nothing newer."""
        word = self._words.get(_asked(request))
        if word is None:
            return answer
        if ends_otherwise(request.operation_kind, word.answer):
            return answer if answer.outcome == word.answer.outcome else word.answer
        del self._words[_asked(request)]
        if answer.outcome in (SUCCEEDED, DECLINED):
            return answer
        if word.answer.outcome == SUCCEEDED:
            return word.answer
        if word.answer.outcome == PENDING and answer.outcome in (UNKNOWN, NOT_FOUND):
            # Known on: the transaction that tells it may be aborted, and the gateway, which is slow
            # to find it, be asked again. It ends by another word, or when the operation is resent.
            self._words[_asked(request)] = word
            if answer.code in NOT_CALLED_CODES:
                # The gateway did not look, so this was no question.
                return answer
            return replace(answer, outcome=UNKNOWN, code=HEARD_PENDING)
        if answer.outcome != UNKNOWN:
            return answer
        if word.answer.outcome == NOT_FOUND:
            return replace(answer, not_found_asked_at_ms=max(0, word.asked_at_ms))
        return word.answer

    def forget(self, request: PaymentRequest) -> None:
        """The operation is sent again: what was said of it before is of another time, unless it
        stays true."""
        asked = request.idempotency_key, request.kind
        word = self._words.get(asked)
        if word is not None and not stays_true(request.kind, word.answer):
            del self._words[asked]

    def keep_only(self, partitions: Set[int]) -> None:
        """Forget what was asked for all others: somebody else asks there now, or has since."""
        self._words = {
            asked: word for asked, word in self._words.items() if word.partition in partitions
        }


def stays_true(kind: str, answer: GatewayAnswer) -> bool:
    """Whether nothing that the gateway does or says afterwards undoes this word."""
    return answer.outcome == SUCCEEDED and kind != REFUND


def ends_otherwise(kind: str, answer: GatewayAnswer) -> bool:
    """Whether this word is the last about its operation: it was made, or as a refund came back."""
    return (stays_true(kind, answer) and tells_success(answer)) or (
        kind == REFUND and (answer.outcome, answer.code) == (DECLINED, RETURNED)
    )


def tells_success(answer: GatewayAnswer) -> bool:
    """Whether this answer, to a call of any kind, says that money was moved, and can be booked. It
    was, though it may have been sent again or come back since."""
    return answer.outcome == SUCCEEDED and bool(answer.gateway_reference)


def contradicts(kind: str, one: GatewayAnswer, other: GatewayAnswer) -> bool:
    """Whether the gateway says that it made an operation, and that it declined it. A refund may be
    made and come back."""
    return kind != REFUND and {one.outcome, other.outcome} == {SUCCEEDED, DECLINED}


def is_told(kind: str, answer: GatewayAnswer) -> bool:
    """Whether this word changes anything where no question follows: what was made or came back is
    booked, what is pending is asked about again, and a decline may contradict what was told in
    time. All else that it says is known by then, or left to the person who is asked."""
    return (
        tells_success(answer)
        or ends_otherwise(kind, answer)
        or answer.outcome == PENDING
        or (kind != REFUND and answer.outcome == DECLINED)
    )


# From the word that says least to the one that says most.
_RANKS: Final = (NOT_FOUND, PENDING, DECLINED, SUCCEEDED)
_RANKS_OF_REFUNDS: Final = (NOT_FOUND, PENDING, SUCCEEDED, DECLINED)


def _counts_instead(kind: str, answer: GatewayAnswer, asked_at_ms: int, known: Word) -> bool:
    """Whether a word that comes now counts instead of the known one, in whatever order they come: a
    charge that was made stays made, and of a refund it is the decline that comes last."""
    rank = (_RANKS_OF_REFUNDS if kind == REFUND else _RANKS).index
    new, old = rank(answer.outcome), rank(known.answer.outcome)
    return new > old or (new == old and asked_at_ms >= known.asked_at_ms)


def _asked(request: PaymentRequest) -> _Asked:
    """One operation at one gateway in one attempt. The kind as well: a gateway that was told of two
    operations under one key would answer about either."""
    return request.idempotency_key, request.operation_kind
