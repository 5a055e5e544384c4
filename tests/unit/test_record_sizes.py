"""No input makes a record that its topic does not take: the largest of each, from the limits."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from msgspec import Struct
from msgspec.structs import fields, replace

from pipeline.domain import commands as rules
from pipeline.domain.answer import SUCCEEDED, GatewayAnswer
from pipeline.domain.command_memory import COMMAND_IDS_MAX
from pipeline.domain.findings import ACKNOWLEDGEABLE
from pipeline.domain.gateway_text import (
    CODE_LENGTH_MAX,
    GATEWAY_TEXT_LENGTH_MAX,
    PLACE_LENGTH_MAX,
    URL_LENGTH_MAX,
)
from pipeline.domain.model import (
    Acknowledgement,
    Attempt,
    AuditEntry,
    CommandMark,
    Dispute,
    GatewayResult,
    Order,
    Payment,
    PaymentCommand,
    PaymentEvent,
    PaymentRequest,
    RiskCounted,
    Settlement,
)
from pipeline.domain.payment import ATTEMPTS_MAX
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.records import SCHEMA_OF, to_record
from pipeline.domain.risk_rules import RULES_MAX
from pipeline.domain.validation import TEXT_LENGTH_MAX
from pipeline.processors.commands import process_command
from pipeline.processors.disputes import DISPUTES_MAX
from pipeline.processors.gateway import result_of
from pipeline.processors.letters import LETTERS_MAX
from pipeline.processors.notifications import process_notification
from pipeline.processors.order import process_order
from pipeline.processors.settlement import process_result
from pipeline.runtime.dead_letters import KEY_BYTES_MAX, dead_letter
from pipeline.runtime.input_record import InputRecord
from schemas.codec import default_codec
from tests.support.payment_story import Story, yes
from topics.catalogue import DEAD_LETTER_MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES

# The most that one character takes in UTF-8, and one that takes it.
WIDE = "\U0001f4b3"
WIDE_BYTES = 4
# A batch's and a record's own bytes (61 and about 20), the key (129) and headers.
AROUND = 1_024
# Ids of orders and commands, and what is made of them: ``late-ID-NUMBER``, UUIDs.
ID = "i" * 64
MADE_ID = "m" * 80
WORD = "w" * 40
DATE = "2026-11-26"
NUMBER = -(2**63)
SMALL = -(2**31)
TEXT = WIDE * TEXT_LENGTH_MAX
REFERENCE = WIDE * GATEWAY_TEXT_LENGTH_MAX
CODE = WIDE * CODE_LENGTH_MAX
PROSE = WIDE * rules.PROSE_LENGTH_MAX
PLACE = WIDE * PLACE_LENGTH_MAX
URL = WIDE * URL_LENGTH_MAX
# Together the texts of one command may have so many bytes; in the largest one they all do.
COMMAND_TEXTS = {"evidence": "e" * rules.TEXTS_BYTES_MAX}

NOW = 1_790_000_000_000
CHARGE = PaymentRequest(
    merchant_id="shop", order_id="1", payment_id="p", operation_id="1", kind="charge",
    gateway="simulator", amount_minor=500, currency="GBP", instrument_token="tok_1",
    idempotency_key="p:1:simulator:1", attempt=1, try_number=1, send_within_ms=60_000,
    ordered_at_ms=NOW,
)  # fmt: skip
POLICY = Policy(gateways=(GatewayProfile(name="simulator"),))
CODEC = default_codec()

IDS = {
    "merchant_id": ID, "order_id": ID, "payment_id": ID, "command_id": ID, "operation_id": MADE_ID,
    "parent_operation_id": MADE_ID, "assessed_retry": ID, "event_id": ID, "settlement_id": ID,
    "approval": ID, "entry_id": ID, "idempotency_key": MADE_ID + ID + WORD,
}  # fmt: skip
WORDS = dict.fromkeys(
    (
        "status", "state", "kind", "gateway", "permit", "gateway_state", "by", "type",
        "operation_kind", "action",
    ),
    WORD,
)  # fmt: skip
DATES = {"business_date": DATE, "currency": "GBP"}
# What orders, commands and gateways fill: each as long as the rule about it allows.
TEXTS = {
    "instrument_token": TEXT, "card_fingerprint": TEXT, "card_scheme": TEXT, "customer_id": TEXT,
    "capture_method": TEXT, "payment_method": TEXT, "country": TEXT, "retry_token": TEXT,
    "retry_fingerprint": TEXT, "retry_scheme": TEXT, "routed_because": TEXT,
    "approved_by": TEXT, "override": TEXT, "resolved_by": TEXT, "cancel_requested_by": TEXT,
    "actor": TEXT, "gateway_reference": REFERENCE, "parent_reference": REFERENCE,
    "dispute_id": REFERENCE, "charge_reference": REFERENCE, "code": CODE,
    "next_action_url": URL, "reason": PROSE, "figures": PROSE, "finding": WORD,
}  # fmt: skip
LIMITS = {**IDS, **WORDS, **DATES, **TEXTS}


def largest(kind: type[Struct], **given: Any) -> Any:
    """The kind with every number and text as long as can be: a text as LIMITS says."""
    values = dict(given)
    for field in fields(kind):
        types = get_args(field.type) or (field.type,)
        if field.name in values:
            continue
        if str in types:
            assert field.name in LIMITS, (
                f"{kind.__name__}.{field.name}: say in LIMITS how long it is"
            )
            values[field.name] = LIMITS[field.name]
        elif int in types:
            values[field.name] = NUMBER
    for name in ("attempt", "tries", "retries", "inquiries", "resends", "parent_attempt",
                 "sequence", "conflicts", "dead_letters", "try_number", "count"):  # fmt: skip
        if name in values:
            values[name] = SMALL
    return kind(**values)


def size_of(noun: Any) -> int:
    return len(CODEC.encoder(SCHEMA_OF[type(noun)], checked=False)(to_record(noun)))


def largest_letter() -> str:
    """Of another stage, or of the payment's own: of what a gateway says that contradicts it."""
    story = Story()
    story.flow.run(yes)
    texts = {"operation_id": WIDE * 500, "gateway": WIDE * 500, "gateway_reference": WIDE * 255}
    said = story.notice("succeeded", story.order_id, amount_minor=2**63 - 1)
    story.flow.notify(replace(said, attempt=2**31 - 1, **texts))
    (told,) = story.payment.letters
    return max(told, f"gateway {PLACE} {CODE}", key=lambda letter: len(letter.encode()))


def largest_row() -> Payment:
    """Every list full, every text of each as long as its rule allows."""
    without = {name: None for name in TEXTS if name in PaymentCommand.__struct_fields__}
    words = dict.fromkeys(("decision", "gateway", "operation_id", "evidence"))
    command = largest(PaymentCommand, **{**without, **words, **COMMAND_TEXTS})
    # Half of the operations ask for money, by an instrument; the others give it back.
    asked = largest(Attempt, parent_operation_id=None, business_date=None)
    given_back = largest(
        Attempt, instrument_token=None, card_fingerprint=None, approved_by=None, approval=None,
        routed_because=None,
    )  # fmt: skip
    return largest(
        Payment,
        attempts=(asked, given_back) * (ATTEMPTS_MAX // 2),
        commands=(command,) * rules.WAITING_ALWAYS_MAX,
        command_ids=(ID,) * COMMAND_IDS_MAX,
        command_marks=(CommandMark(digest=NUMBER, taken_at_ms=NUMBER),) * COMMAND_IDS_MAX,
        letters=(largest_letter(),) * LETTERS_MAX,
        disputes=(largest(Dispute),) * DISPUTES_MAX,
        risk_awaited=(WORD,) * 8,
        risk_counted=(largest(RiskCounted),) * RULES_MAX,
        acknowledged=tuple(
            largest(Acknowledgement, figures="f" * rules.TEXTS_BYTES_MAX, reason="")
            for _ in ACKNOWLEDGEABLE
        ),
    )


def test_the_largest_row_fits_its_topic() -> None:
    """Full of what orders, commands and gateways may write, in the widest letters there are."""
    assert len(WIDE.encode()) == WIDE_BYTES
    assert size_of(largest_row()) < MAX_MESSAGE_BYTES - AROUND


@pytest.mark.parametrize("kind", [PaymentRequest, Settlement, PaymentEvent, AuditEntry])
def test_the_largest_of_what_is_sent_fits_its_topic(kind: type[Struct]) -> None:
    """Their details tell of every operation at most, or hold a command's texts as JSON."""
    detail = {
        PaymentEvent: WIDE * (ATTEMPTS_MAX * 200),
        # Nine texts of a command, each escaped by at most six characters for one.
        AuditEntry: "\\u0000" * (9 * rules.PROSE_LENGTH_MAX),
    }
    given = {"detail": detail[kind], "subject": ID + ID} if kind in detail else {}
    given = {name: value for name, value in given.items() if name in kind.__struct_fields__}
    assert size_of(largest(kind, **given)) < MAX_MESSAGE_BYTES - AROUND


def order(**more: Any) -> Order:
    given: dict[str, Any] = {
        "merchant_id": "shop", "order_id": "o1", "amount_minor": 500, "currency": "GBP",
        "instrument_token": "tok_1", "business_date": DATE, "submitted_at_ms": NOW,
    }  # fmt: skip
    return Order(**{**given, **more})


@pytest.mark.parametrize("amount_minor", [0, 500, -1, 10**15])
@pytest.mark.parametrize(
    "name", [f.name for f in fields(Order) if str in (get_args(f.type) or (f.type,))]
)
def test_no_text_of_an_order_is_kept_whole_however_long(name: str, amount_minor: int) -> None:
    """Whatever becomes of the order, also of one that nothing is due for."""
    given = order(**{"amount_minor": amount_minor, name: WIDE * 12_000})
    made = process_order(None, given, NOW, POLICY)
    for noun in (made.payment, *made.sends):
        assert noun is None or size_of(noun) < 5_000


def command(**more: Any) -> PaymentCommand:
    given: dict[str, Any] = {
        "merchant_id": "shop", "order_id": "o1", "command_id": "c1", "type": "refund",
        "submitted_at_ms": NOW,
    }  # fmt: skip
    return PaymentCommand(**{**given, **more})


PROSE_FIELDS = [
    f.name
    for f in fields(PaymentCommand)
    if str in (get_args(f.type) or (f.type,))
    and f.name not in ("merchant_id", "order_id", "command_id", "type", "currency", "business_date")
]


@pytest.mark.slow
def test_commands_that_wait_leave_room_in_the_row() -> None:
    """As many as may wait, with texts as long as may be: the row stays below its topic's limit."""
    payment = None
    texts = dict.fromkeys(("evidence", "reason"), WIDE * rules.PROSE_LENGTH_MAX)
    texts["actor"] = "a" * (rules.TEXTS_BYTES_MAX - 2 * WIDE_BYTES * rules.PROSE_LENGTH_MAX)
    for number in range(rules.WAITING_ALWAYS_MAX + 4):
        kind = "refund" if number < rules.WAITING_MAX else "give_back"
        made = process_command(
            payment, command(command_id=f"c{number}", type=kind, **texts), NOW, POLICY
        )
        payment = made.payment or payment
        for noun in made.sends:
            assert size_of(noun) < MAX_MESSAGE_BYTES // 4
    assert payment is not None
    assert len(payment.commands) == rules.WAITING_ALWAYS_MAX
    assert size_of(payment) < MAX_MESSAGE_BYTES // 2


@pytest.mark.parametrize("kind", ["refund", "resolve", "retry", "credit"])
@pytest.mark.parametrize(
    "name", [*PROSE_FIELDS, "type", "currency", "business_date", "merchant_id", "command_id"]
)
def test_no_text_of_a_command_is_kept_whole_however_long(name: str, kind: str) -> None:
    """A command of the longest text in any field is refused by name; nothing of it grows a row."""
    given = command(**{"type": kind, name: WIDE * 12_000})
    made = process_command(None, given, NOW, POLICY)
    for noun in (made.payment, *made.sends):
        assert noun is None or size_of(noun) < 30_000


def test_a_commands_texts_are_bounded_together() -> None:
    """Two of full length in a script of three bytes a letter are taken; more of it are not, nor an
    actor or a card that would stay with each operation."""
    long = "字" * rules.PROSE_LENGTH_MAX
    assert rules.broken_by_itself(command(reason=long, evidence=long, actor="a"), POLICY) is None
    texts = {"reason": long, "evidence": long, "figures": long}
    assert rules.broken_by_itself(command(**texts), POLICY) == (
        "texts_must_be_at_most_8192_bytes_together"
    )
    for name in ("actor", "card_fingerprint", "card_scheme", "override"):
        assert rules.broken_by_itself(command(**{name: "x" * 255}), POLICY) is None
        assert rules.broken_by_itself(command(**{name: "x" * 256}), POLICY) == (
            "actor_card_and_override_must_be_at_most_255_characters"
        )


def test_a_success_under_an_id_that_is_too_long_is_unknown_and_is_asked_about() -> None:
    """The books could not take it and each later request would carry it: a person decides in the
    end, as of anything that is not known."""
    long = GatewayAnswer(outcome=SUCCEEDED, gateway_reference="r" * 256, amount_minor=500)
    made = result_of(CHARGE, long, NOW)
    assert (made.outcome, made.code, made.gateway_reference) == (
        "unknown", "reference_too_long", None,
    )  # fmt: skip
    fits = result_of(CHARGE, replace(long, gateway_reference="r" * 255), NOW)
    assert (fits.outcome, fits.gateway_reference) == ("succeeded", "r" * 255)


@pytest.mark.parametrize("reference", ["ch_\0", "ch_\n1", "\x7f"])
def test_a_success_under_an_id_that_no_book_takes_is_unknown_and_is_asked_about(
    reference: str,
) -> None:
    """PostgreSQL keeps no NUL: the money would have moved, and its settlement be a dead letter."""
    odd = GatewayAnswer(outcome=SUCCEEDED, gateway_reference=reference, amount_minor=500)
    made = result_of(CHARGE, odd, NOW)
    assert (made.outcome, made.code, made.gateway_reference) == (
        "unknown", "reference_not_printable", None,
    )  # fmt: skip
    # Also where another version of the gateway stage has let it through.
    story = Story()
    attempt = story.payment.attempts[0]
    result = GatewayResult(
        merchant_id="shop", order_id=story.order_id, payment_id=story.payment.payment_id,
        operation_id=attempt.operation_id, kind="charge", gateway=attempt.gateway, attempt=1,
        try_number=1, outcome=SUCCEEDED, amount_minor=500, currency="GBP", observed_at_ms=NOW,
        gateway_reference=reference,
    )  # fmt: skip
    decided = process_result(story.payment, result, NOW, POLICY)
    assert decided.payment is not None
    assert decided.payment.captured_minor == 0
    assert decided.payment.attempts[-1].code == "reference_not_printable"
    assert not [each for each in decided.sends if isinstance(each, Settlement)]


@pytest.mark.parametrize("type_", ["operation", "dispute"])
def test_a_notice_with_an_id_that_no_book_takes_is_a_letter_by_name(type_: str) -> None:
    """What hangs on it is settled and booked under it."""
    story = Story()
    story.flow.run(yes)
    notice = story.notice("succeeded", story.order_id, type=type_, dispute_id="d1",
                          dispute_state="opened")  # fmt: skip
    name = "dispute_id" if type_ == "dispute" else "gateway_reference"
    made = process_notification(story.payment, replace(notice, **{name: "x\0"}), NOW, POLICY)
    assert made.dead_letter == ("malformed_dispute" if type_ == "dispute" else "malformed_notice")


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (outcome, name)
        for outcome in ("succeeded", "pending", "declined", "unknown")
        for name in ("gateway_reference", "code", "gateway_code", "next_action_url", "letter")
    ],
)
def test_no_text_of_a_result_is_kept_whole_however_long(outcome: str, name: str) -> None:
    """Also of one that another version of the gateway stage wrote."""
    story = Story()
    attempt = story.payment.attempts[0]
    result = GatewayResult(
        merchant_id="shop", order_id=story.order_id, payment_id=story.payment.payment_id,
        operation_id=attempt.operation_id, kind="charge", gateway=attempt.gateway, attempt=1,
        try_number=1, outcome=outcome, amount_minor=500, currency="GBP", observed_at_ms=NOW,
        code="customer_action_required", gateway_reference="ch_1",
    )  # fmt: skip
    made = process_result(story.payment, replace(result, **{name: WIDE * 12_000}), NOW, POLICY)
    assert made.payment is not None
    for noun in (made.payment, *made.sends):
        assert size_of(noun) < 10_000


NOTICE_TEXTS = ("gateway_reference", "code", "gateway_code", "notification_id", "operation_id",
                "kind", "outcome", "gateway", "type", "currency", "payment_id", "dispute_id",
                "dispute_state")  # fmt: skip


@pytest.mark.parametrize("name", NOTICE_TEXTS)
@pytest.mark.parametrize("type_", ["operation", "dispute", "dead_letter"])
def test_no_text_of_a_notice_is_kept_whole_however_long(type_: str, name: str) -> None:
    """It goes to the dead letters, or is taken with that text cut."""
    story = Story()
    story.flow.run(yes)
    notice = story.notice("succeeded", story.order_id, type=type_, dispute_id="d1",
                          dispute_state="opened")  # fmt: skip
    made = process_notification(
        story.payment, replace(notice, **{name: WIDE * 12_000}), NOW, POLICY
    )
    for noun in (made.payment, *made.sends):
        assert noun is None or size_of(noun) < 10_000


@pytest.mark.parametrize("blank", [" ", "\t\n", "\u00a0"])
def test_a_success_under_blanks_is_unknown(blank: str) -> None:
    """They are no id, whichever version of the gateway stage kept them."""
    said = GatewayAnswer(outcome=SUCCEEDED, gateway_reference=blank, amount_minor=500)
    made = result_of(CHARGE, said, NOW)
    assert (made.outcome, made.code, made.gateway_reference) == (
        "unknown", "reference_missing", None,
    )  # fmt: skip
    story = Story()
    request = story.flow.requests()[-1]
    older = replace(result_of(request, said, NOW), outcome=SUCCEEDED, gateway_reference=blank)
    story.flow.result(older)
    assert (story.status, story.money) == ("outcome_unknown", (0, 0, 0))


@pytest.mark.parametrize("reference", ["r" * 256, "", "  "])
def test_a_notice_with_an_id_too_long_or_blank_is_a_letter_by_name(reference: str) -> None:
    """An id that is cut would be another's."""
    story = Story()
    made = story.notify("succeeded", gateway_reference=reference)
    assert made.dead_letter == "malformed_notice"


@pytest.mark.parametrize("value", [b"v", None, b"v" * (9 * 1024 * 1024)])
@pytest.mark.slow
def test_a_letter_fits_its_topic_whatever_key_its_input_had(value: bytes | None) -> None:
    """A key of megabytes compresses to nothing and comes through the input's topic; in each piece
    of the letter it would be more than any topic takes. One over the limit is looked at here: most
    of the time goes into its card numbers."""
    number = b"4111111111111111 "
    key = number * (KEY_BYTES_MAX // len(number) + 1)
    assert KEY_BYTES_MAX < len(key) < KEY_BYTES_MAX + 100
    record = InputRecord("orders", 3, 7, 1, key, value)
    letters = dead_letter(
        record, topic="dlq", stage="payments", cause="key_mismatch", detail="d" * 10_000_000
    )
    for _, partition, kept, piece, headers in letters:
        told = dict(headers or [])
        assert (partition, kept) == (3, None)
        assert told["dlq.key"].startswith(b"411111******1111")
        size = len(piece or b"") + sum(len(name) + len(text) for name, text in headers or [])
        assert size < DEAD_LETTER_MAX_MESSAGE_BYTES // 2 + 100_000
    (letter,) = dead_letter(
        replace_key(record, b"k" * KEY_BYTES_MAX), topic="dlq", stage="payments", cause="c"
    )[:1]
    assert letter[2] == b"k" * KEY_BYTES_MAX


def replace_key(record: InputRecord, key: bytes) -> InputRecord:
    return InputRecord(record.topic, record.partition, record.offset, 1, key, b"v")
