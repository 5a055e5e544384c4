"""Signatures of notices by Standard Webhooks: sign and verify.

The specification (github.com/standard-webhooks, version 1): three headers, ``webhook-id``,
``webhook-timestamp`` (epoch seconds) and ``webhook-signature``, a list separated by spaces of
``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``. A secret is ``whsec_`` and the
base64 of the key. The body is signed as it was sent, byte for byte: read it raw, parse it later.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256

# By how much the sender's clock and ours may differ, the way included. The specification leaves it
# open; five minutes is what its libraries use. A replay within them is caught by the notice's id.
TOLERANCE_S = 300

# The old and the new one while a secret is exchanged; more means that an exchange was never ended.
SECRETS_MAX = 2
# A sender that rotates its own keys signs once with each.
SIGNATURES_MAX = 8

_PREFIX = "whsec_"


def decoded_secret(secret: str) -> bytes:
    """The key of a ``whsec_`` secret. Raises ValueError in words when it is none."""
    if not secret.startswith(_PREFIX):
        raise ValueError("a webhook secret begins with whsec_")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a webhook secret is whsec_ and base64") from None
    if len(key) < 24:
        # The specification asks for 24 to 64 bytes.
        raise ValueError("a webhook secret holds at least 24 bytes")
    return key


def signature(key: bytes, notice_id: str, timestamp_s: int, body: bytes) -> str:
    """The ``v1,...`` signature of one notice under one key."""
    # Bytes of a header that are no UTF-8 come as surrogates, and are signed as they were sent.
    signed = f"{notice_id}.{timestamp_s}.".encode("utf-8", "surrogateescape") + body
    return "v1," + base64.b64encode(hmac.new(key, signed, sha256).digest()).decode()


def signed_headers(
    secrets: Sequence[str], notice_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """The three headers; one signature for each secret."""
    return {
        "webhook-id": notice_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(
            signature(decoded_secret(secret), notice_id, timestamp_s, body) for secret in secrets
        ),
    }


def refusal(
    keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, now_s: int
) -> str | None:
    """Why a notice must not be believed, as one word; None when it is genuine and fresh.

    ``keys`` are the decoded secrets, ``headers`` have lower-case names. Any key may have signed.
    Every comparison takes the same time whatever is wrong, and all are made.
    """
    notice_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    given = headers.get("webhook-signature", "")
    if not notice_id or not timestamp or not given:
        return "signature_missing"
    stale = staleness(timestamp, now_s)
    if stale is not None:
        return stale
    signatures = [each for each in given.split(" ") if each.startswith("v1,")][:SIGNATURES_MAX]
    genuine = False
    for key in keys:
        expected = signature(key, notice_id, int(timestamp), body).encode()
        for each in signatures:
            genuine |= hmac.compare_digest(expected, each.encode("utf-8", "replace"))
    return None if genuine else "signature_wrong"


def staleness(timestamp: str, now_s: int) -> str | None:
    """Why the time of a notice does not do, as one word; None when it does."""
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        return "timestamp_unreadable"
    if abs(now_s - int(timestamp)) > TOLERANCE_S:
        return "timestamp_out_of_tolerance"
    return None
