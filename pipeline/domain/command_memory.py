"""Which commands a payment has taken: so that each is taken once, and none is mistaken for another.

What is remembered of a command is its id, when it was taken, and a digest of what it asks for. The
list is bounded. Once it is full, ids give way that no record of the commands' topic can bring back
any more; where there are none, a new command is refused, unless it is one of those that a person
needs to end what nothing else can end: for these the oldest id gives way.

An id that was forgotten may be taken again, except that no operation ever begins twice under one id
(``commands.names_another_operation``).
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from msgspec import json
from msgspec.structs import asdict, replace

from pipeline.domain.card_numbers import mask_card_number_text
from pipeline.domain.model import CommandMark, Payment, PaymentCommand
from pipeline.domain.policy import Policy

# More commands than a merchant gives a payment, few enough that a snapshot stays small: 256 ids of
# 64 characters and their marks are 20 KiB.
COMMAND_IDS_MAX: Final = 256

# Not what is asked for, but for what, by whom, when, and in which words.
_NOT_CONTENT: Final = frozenset(
    {"merchant_id", "order_id", "command_id", "submitted_at_ms", "actor", "reason", "evidence"}
)


def content_digest(command: PaymentCommand) -> int:
    """64 bits of what a command asks for. A field without a value does not count, so that a field
    that is new in a later version changes no digest of before."""
    content = [
        # Of a card number, which has no place here, not even a digest is kept.
        (name, mask_card_number_text(value) if isinstance(value, str) else value)
        for name, value in sorted(asdict(command).items())
        if value is not None and name not in _NOT_CONTENT
    ]
    return int.from_bytes(sha256(json.encode(content)).digest()[:8], "big", signed=True)


def is_remembered(payment: Payment, command: PaymentCommand) -> bool:
    """Whether a command of this id was taken."""
    return command.command_id in payment.command_ids


def is_another(payment: Payment, command: PaymentCommand) -> bool:
    """Whether the command of this id that was taken asked for something else. Of ids that were
    taken before digests were kept it is not known: then it is the same."""
    marks, ids = payment.command_marks, payment.command_ids
    unmarked = len(ids) - len(marks)
    at = ids.index(command.command_id) - unmarked
    return at >= 0 and marks[at].digest != content_digest(command)


def remembering(
    payment: Payment, command: PaymentCommand, now_ms: int, policy: Policy, *, always: bool
) -> Payment | None:
    """The payment with one more command taken, or None when it has no room for it.

    ``always``: there has to be room. Commands that wait are never forgotten.
    """
    ids, marks = payment.command_ids, payment.command_marks
    if len(ids) >= COMMAND_IDS_MAX:
        gone = _forgettable(payment, now_ms - policy.command_memory_ms, always=always)
        if gone is None:
            return None
        unmarked = len(ids) - len(marks)
        ids = ids[:gone] + ids[gone + 1 :]
        if gone >= unmarked:
            marks = marks[: gone - unmarked] + marks[gone - unmarked + 1 :]
    mark = CommandMark(digest=content_digest(command), taken_at_ms=now_ms)
    return replace(payment, command_ids=(*ids, command.command_id), command_marks=(*marks, mark))


def _forgettable(payment: Payment, before_ms: int, *, always: bool) -> int | None:
    """Where the oldest id stands that may be forgotten."""
    waiting = {each.command_id for each in payment.commands}
    marks = payment.command_marks
    unmarked = len(payment.command_ids) - len(marks)
    # Those without a mark were taken before all that have one.
    latest_unmarked_ms = marks[0].taken_at_ms if marks else payment.updated_at_ms
    for at, command_id in enumerate(payment.command_ids):
        taken_at_ms = latest_unmarked_ms if at < unmarked else marks[at - unmarked].taken_at_ms
        if not always and taken_at_ms >= before_ms:
            return None
        if command_id not in waiting:
            return at
    return None
