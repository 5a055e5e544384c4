"""The reasons of declines in one vocabulary, whatever words a gateway has for them.

Merchants and notifiers see the normalised code; the gateway's own word stays beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

# What a cardholder can do about it is what tells these apart.
NORMALISED: Mapping[str, str] = {
    "insufficient_funds": "insufficient_funds",
    "card_declined": "card_declined",
    "generic_decline": "card_declined",
    "do_not_honor": "do_not_honor",
    "expired_card": "expired_card",
    "lost_card": "lost_card",
    "stolen_card": "lost_card",
    "processing_error": "processing_error",
    "invalid_request": "invalid_request",
}


def normalised_decline(gateway_code: str) -> str:
    """The code for people and reports; an unknown word is a plain ``card_declined``."""
    return NORMALISED.get(gateway_code, "card_declined")
