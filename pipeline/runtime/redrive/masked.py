"""Letters that may be redriven although card numbers in them were masked, but not to be charged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pipeline.domain.card_numbers import is_masked
from pipeline.runtime.redrive.letter import Letter, Whole
from pipeline.runtime.redrive.plan import Plan
from schemas.errors import DecodeError

# What a gateway is asked for money with: no other bytes will do.
NEEDED_FIELD: Final = "instrument_token"
TOKEN_MUST_NOT_BE_MASKED: Final = "instrument_token_must_not_be_masked"

# Decodes the value of a topic's record.
Decode = Callable[[bytes], Mapping[str, Any]]


def refuse_masked_tokens(
    plan: Plan,
    wholes: Callable[[list[Letter]], Iterable[Whole]],
    decoders: Mapping[str, Decode],
) -> None:
    """Take out of the plan what would be charged with a masked token. ``decoders`` by topic; what
    cannot be decoded is refused again by its stage, and charged by nobody."""
    # Letters of before `dlq.masked` do not say so when they lie in several pieces.
    suspect = [each for each in plan.todo if each.masked or len(each.pieces) > 1]
    refused = {
        whole.letter.place
        for whole in wholes(suspect)
        if _has_masked_token(whole, decoders.get(whole.letter.topic))
    }
    for letter in plan.todo:
        if letter.place in refused:
            plan.refuse(TOKEN_MUST_NOT_BE_MASKED, letter)
    plan.todo = [letter for letter in plan.todo if letter.place not in refused]


def _has_masked_token(whole: Whole, decode: Decode | None) -> bool:
    if decode is None or whole.value is None:
        return False
    try:
        token = decode(whole.value).get(NEEDED_FIELD)
    except DecodeError:
        return False
    return isinstance(token, str) and is_masked(token.encode("utf-8", "surrogatepass"))
