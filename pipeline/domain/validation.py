"""Rules an order must keep. A broken rule is a named rejection of the payment, never an error."""

from __future__ import annotations

from datetime import date

from pipeline.domain.card_numbers import is_card_number, is_masked
from pipeline.domain.model import Order
from pipeline.domain.money import MINOR_UNITS
from pipeline.domain.policy import Policy
from pipeline.domain.routing import serves_currency

AMOUNT_MUST_NOT_BE_NEGATIVE = "amount_must_not_be_negative"
AMOUNT_MUST_NOT_EXCEED_LIMIT = "amount_must_not_exceed_limit"
CURRENCY_MUST_BE_ISO_4217 = "currency_must_be_iso_4217"
CURRENCY_MUST_BE_SUPPORTED = "currency_must_be_supported_by_a_gateway"
TOKEN_MUST_BE_PRESENT = "instrument_token_must_be_present"
TOKEN_MUST_NOT_BE_A_CARD_NUMBER = "instrument_token_must_not_be_a_card_number"
TOKEN_MUST_NOT_BE_MASKED = "instrument_token_must_not_be_masked"
TOKEN_MUST_BE_SHORT = "instrument_token_must_be_at_most_255_characters"
CUSTOMER_ID_MUST_BE_SHORT = "customer_id_must_be_at_most_255_characters"
TEXTS_MUST_BE_SHORT = "texts_must_be_at_most_255_characters"
BUSINESS_DATE_MUST_BE_A_DATE = "business_date_must_be_a_date"
SUBMITTED_AT_MUST_BE_RECENT = "submitted_at_must_be_within_24_months"
SUBMITTED_AT_MUST_NOT_BE_AHEAD = "submitted_at_must_not_be_in_the_future"
CAPTURE_METHOD_MUST_BE_KNOWN = "capture_method_must_be_automatic_or_manual"
PAY_BEFORE_MUST_BE_AHEAD = "pay_before_must_be_in_the_future"
# Found by routing, after the rules below: a gateway by what it takes besides the currency.
GATEWAY_MUST_SERVE_THE_PAYMENT = "a_gateway_must_serve_the_payment"
LINE_NUMBERS_MUST_BE_UNIQUE = "line_numbers_must_be_unique"
LINES_MUST_SUM_TO_AMOUNT = "lines_must_sum_to_amount"

RULES = (
    AMOUNT_MUST_NOT_BE_NEGATIVE,
    AMOUNT_MUST_NOT_EXCEED_LIMIT,
    CURRENCY_MUST_BE_ISO_4217,
    TOKEN_MUST_BE_SHORT,
    TOKEN_MUST_NOT_BE_A_CARD_NUMBER,
    TOKEN_MUST_NOT_BE_MASKED,
    CUSTOMER_ID_MUST_BE_SHORT,
    TEXTS_MUST_BE_SHORT,
    BUSINESS_DATE_MUST_BE_A_DATE,
    SUBMITTED_AT_MUST_BE_RECENT,
    SUBMITTED_AT_MUST_NOT_BE_AHEAD,
    LINE_NUMBERS_MUST_BE_UNIQUE,
    LINES_MUST_SUM_TO_AMOUNT,
    TOKEN_MUST_BE_PRESENT,
    CAPTURE_METHOD_MUST_BE_KNOWN,
    PAY_BEFORE_MUST_BE_AHEAD,
    CURRENCY_MUST_BE_SUPPORTED,
)

# Long enough for every gateway's tokens, short enough for a table that is kept for years: at most
# 1,020 bytes of UTF-8 each.
TEXT_LENGTH_MAX = 255


def broken_rule(order: Order, now_ms: int, policy: Policy) -> str | None:
    """The first rule of ``RULES`` that the order breaks, or None when it may be paid.

    ``now_ms`` is the order's own append time. The last four rules are about paying: an order that
    costs nothing needs no instrument and no gateway.
    """
    amount_minor = order.amount_minor
    token = order.instrument_token
    if amount_minor < 0:
        return AMOUNT_MUST_NOT_BE_NEGATIVE
    if amount_minor > policy.amount_minor_max:
        return AMOUNT_MUST_NOT_EXCEED_LIMIT
    if order.currency not in MINOR_UNITS:
        return CURRENCY_MUST_BE_ISO_4217
    if len(token) > TEXT_LENGTH_MAX:
        return TOKEN_MUST_BE_SHORT
    if is_card_number(token):
        return TOKEN_MUST_NOT_BE_A_CARD_NUMBER
    if "***" in token and is_masked(token.encode("utf-8", "surrogatepass")):
        return TOKEN_MUST_NOT_BE_MASKED
    if order.customer_id is not None and len(order.customer_id) > TEXT_LENGTH_MAX:
        return CUSTOMER_ID_MUST_BE_SHORT
    if (
        len(order.payment_method) > TEXT_LENGTH_MAX
        or (order.country is not None and len(order.country) > TEXT_LENGTH_MAX)
        or (order.card_fingerprint is not None and len(order.card_fingerprint) > TEXT_LENGTH_MAX)
        or (order.card_scheme is not None and len(order.card_scheme) > TEXT_LENGTH_MAX)
        or len(order.capture_method) > TEXT_LENGTH_MAX
    ):
        return TEXTS_MUST_BE_SHORT
    if not is_date(order.business_date):
        return BUSINESS_DATE_MUST_BE_A_DATE
    if order.submitted_at_ms < now_ms - policy.submitted_age_ms_max:
        return SUBMITTED_AT_MUST_BE_RECENT
    if order.submitted_at_ms > now_ms + policy.submitted_ahead_ms_max:
        return SUBMITTED_AT_MUST_NOT_BE_AHEAD
    if order.lines:
        lines = order.lines
        if len({line.line_number for line in lines}) != len(lines):
            return LINE_NUMBERS_MUST_BE_UNIQUE
        if sum([line.quantity * line.unit_amount_minor for line in lines]) != amount_minor:
            return LINES_MUST_SUM_TO_AMOUNT
    if amount_minor == 0:
        return None
    if not token.strip():
        return TOKEN_MUST_BE_PRESENT
    if order.capture_method not in ("automatic", "manual"):
        return CAPTURE_METHOD_MUST_BE_KNOWN
    if order.pay_before_ms is not None and order.pay_before_ms <= now_ms:
        return PAY_BEFORE_MUST_BE_AHEAD
    if not serves_currency(policy, order.merchant_id, order.currency):
        return CURRENCY_MUST_BE_SUPPORTED
    return None


def is_date(text: str) -> bool:
    """Whether the text is a calendar date as ``YYYY-MM-DD`` (not the week or basic formats)."""
    if len(text) != 10 or text[4] != "-" or text[7] != "-":
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
