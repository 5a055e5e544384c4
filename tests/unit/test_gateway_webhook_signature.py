"""Standard Webhooks: the published vector, and everything that must not be believed."""

from __future__ import annotations

import base64

import pytest

from pipeline.gateways.webhook_signature import (
    TOLERANCE_S,
    decoded_secret,
    refusal,
    signature,
    signed_headers,
)

# The vector of the specification's own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOTICE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
SENT_AT_S = 1_614_265_330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

OTHER_SECRET = "whsec_" + base64.b64encode(b"another key of 24 bytes!").decode()
HEADERS = {
    "webhook-id": NOTICE_ID,
    "webhook-timestamp": str(SENT_AT_S),
    "webhook-signature": SIGNATURE,
}


def judged(now_s: int = SENT_AT_S, body: bytes = BODY, *secrets: str, **headers: str) -> str | None:
    changed = {name.replace("_", "-"): value for name, value in headers.items()}
    keys = [decoded_secret(secret) for secret in secrets or (SECRET,)]
    return refusal(keys, {**HEADERS, **changed}, body, now_s)


def test_the_published_vector_is_signed_and_believed() -> None:
    """Ours agrees with every other implementation of the specification."""
    assert signature(decoded_secret(SECRET), NOTICE_ID, SENT_AT_S, BODY) == SIGNATURE
    assert signed_headers([SECRET], NOTICE_ID, SENT_AT_S, BODY) == HEADERS
    assert judged() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": BODY + b" "}, "signature_wrong"),
        ({"webhook_id": "msg_other"}, "signature_wrong"),
        ({"webhook_timestamp": str(SENT_AT_S + 1)}, "signature_wrong"),
        ({"webhook_signature": SIGNATURE.replace("v1,", "v2,")}, "signature_wrong"),
        ({"webhook_signature": SIGNATURE[:-4]}, "signature_wrong"),
        ({"webhook_signature": "v1,ü"}, "signature_wrong"),
        ({"webhook_signature": ""}, "signature_missing"),
        # What an HTTP server makes of header bytes that are no UTF-8.
        ({"webhook_id": "msg_\udce9"}, "signature_wrong"),
        ({"webhook_id": ""}, "signature_missing"),
        ({"webhook_timestamp": "yesterday"}, "timestamp_unreadable"),
        ({"webhook_timestamp": "-5"}, "timestamp_unreadable"),
        ({"now_s": SENT_AT_S + TOLERANCE_S + 1}, "timestamp_out_of_tolerance"),
        ({"now_s": SENT_AT_S - TOLERANCE_S - 1}, "timestamp_out_of_tolerance"),
    ],
)
def test_what_was_changed_or_is_stale_is_not_believed(changes: dict, reason: str) -> None:  # type: ignore[type-arg]
    """Each part of what is signed counts, and so does the age, both ways."""
    now_s = changes.pop("now_s", SENT_AT_S)
    body = changes.pop("body", BODY)
    assert judged(now_s, body, **changes) == reason


def test_the_tolerance_includes_its_ends() -> None:
    """Five minutes late or early is still taken."""
    assert judged(SENT_AT_S + TOLERANCE_S) is None
    assert judged(SENT_AT_S - TOLERANCE_S) is None


def test_old_and_new_secret_are_both_believed_while_they_are_exchanged() -> None:
    """Whichever side changes first, no notice is lost."""
    assert judged(SENT_AT_S, BODY, OTHER_SECRET, SECRET) is None
    assert judged(SENT_AT_S, BODY, OTHER_SECRET) == "signature_wrong"
    both = signed_headers([OTHER_SECRET, SECRET], NOTICE_ID, SENT_AT_S, BODY)["webhook-signature"]
    assert judged(webhook_signature=both) is None
    assert judged(webhook_signature="v1a,x " + SIGNATURE) is None


@pytest.mark.parametrize("secret", ["", "MfKQ9r8GKYqr", "whsec_!!!", "whsec_c2hvcnQ="])
def test_a_secret_that_cannot_be_meant_is_refused(secret: str) -> None:
    """Without its prefix, not base64, or too short to be one."""
    with pytest.raises(ValueError, match="webhook secret"):
        decoded_secret(secret)
