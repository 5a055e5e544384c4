"""Gateways' own texts: evidence for people, not a place to store pages of HTML or card numbers.

An answer or notice may be long (64 KiB, 256 KiB), and a payment keeps those of all its attempts: no
row, event or request may outgrow its topic by them. Codes are cut; an id that is cut would be
another, and one that is too long, blank, or not printable (PostgreSQL keeps a NUL in no text),
cannot be booked, so what hangs on it is not believed.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from pipeline.domain.answer import SUCCEEDED, UNKNOWN, GatewayAnswer
from pipeline.domain.card_numbers import mask_card_number_start
from pipeline.domain.model import GatewayNotification, GatewayResult

# Texts, and ids, as the books take them.
GATEWAY_TEXT_LENGTH_MAX: Final = 255
# Codes are our own words.
CODE_LENGTH_MAX: Final = 64
# The stages' words of where a letter is: a topic's name has up to 249 characters.
PLACE_LENGTH_MAX: Final = 300
# About what browsers and servers take as an address.
URL_LENGTH_MAX: Final = 2_048

REFERENCE_TOO_LONG: Final = "reference_too_long"
REFERENCE_NOT_PRINTABLE: Final = "reference_not_printable"
REFERENCE_MISSING: Final = "reference_missing"


def cannot_be_booked(gateway_id: str) -> str:
    """Why the books do not take a gateway's id, as a code; "" for one that they take."""
    if len(gateway_id) > GATEWAY_TEXT_LENGTH_MAX:
        return REFERENCE_TOO_LONG
    if not gateway_id.strip():
        return REFERENCE_MISSING
    return "" if gateway_id.isprintable() else REFERENCE_NOT_PRINTABLE


def kept_text(text: str) -> str:
    """As much of a gateway's text as a record keeps, whether it answered or told by itself."""
    return mask_card_number_start(text, GATEWAY_TEXT_LENGTH_MAX)


def kept_answer(answer: GatewayAnswer) -> GatewayAnswer:
    """The answer as far as its record will keep it, but for where the customer would be sent."""
    reference, code, theirs = answer.gateway_reference, answer.code, answer.gateway_code
    if reference is not None and cannot_be_booked(reference):
        reference = None
    return replace(
        answer,
        gateway_reference=reference,
        code=code and code[:CODE_LENGTH_MAX],
        gateway_code=theirs and kept_text(theirs),
        next_action_url=None,
    )


def kept_result(result: GatewayResult) -> GatewayResult:
    """The result as far as it may be kept. A success under an id that no book takes is unknown: the
    gateway is asked, and in the end a person. Where the customer would be sent by an address that
    is too long, nobody is."""
    reference, url = result.gateway_reference, result.next_action_url
    outcome, code = result.outcome, result.code
    wrong = "" if reference is None else cannot_be_booked(reference)
    if wrong:
        reference = None
        if outcome == SUCCEEDED:
            outcome, code = UNKNOWN, wrong
    elif (
        (url is None or len(url) <= URL_LENGTH_MAX)
        and (code is None or len(code) <= CODE_LENGTH_MAX)
        and (result.letter is None or len(result.letter) <= PLACE_LENGTH_MAX)
    ):
        return result
    return replace(
        result,
        outcome=outcome,
        gateway_reference=reference,
        code=code and code[:CODE_LENGTH_MAX],
        letter=result.letter and result.letter[:PLACE_LENGTH_MAX],
        next_action_url=None if url is None or len(url) > URL_LENGTH_MAX else url,
    )


def kept_notice(notice: GatewayNotification) -> GatewayNotification | None:
    """The notice as far as it may be kept; None when an id in it can be nobody's: it is too long,
    blank, or not printable."""
    reference, code = notice.gateway_reference, notice.code
    if len(notice.notification_id) > PLACE_LENGTH_MAX or (
        reference is not None and cannot_be_booked(reference)
    ):
        return None
    if code is None or len(code) <= CODE_LENGTH_MAX:
        return notice
    return replace(notice, code=code[:CODE_LENGTH_MAX])
