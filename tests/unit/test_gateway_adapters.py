"""Every adapter over answers that are cut, about something else, or nonsense: never a guess."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.answer import OUTCOMES, GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.domain.normalisation import GATEWAY_CODES, STANDARD
from pipeline.gateways.adapters import known
from pipeline.gateways.adapters.base import HttpReply
from pipeline.gateways.adapters.pacific import major, minor
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.notice import Notice, NoticeRefused
from pipeline.gateways.simulator.operations import Operation, Reply
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.gateways.simulator.wires.base import Question
from tests.unit.test_gateway_http import a_request, answering, http, play

KINDS = ("charge", "authorize", "capture", "void", "refund")
# A new one that is not in all places yet is named by test_gateway_places, once.
ADAPTERS = {
    name: adapter
    for name, adapter in known.ADAPTERS.items()
    if name in PERSONALITIES and name in GATEWAY_CODES
}
each_adapter = pytest.mark.parametrize("name", ADAPTERS)
each_kind = pytest.mark.parametrize("kind", KINDS)


def a_call(kind: str) -> PaymentRequest:
    parent = None if kind in ("charge", "authorize") else "ch_1"
    return replace(a_request(), kind=kind, operation_kind=kind, parent_reference=parent)


def an_operation(kind: str, **changes: Any) -> Operation:
    """What the gateway would show of it."""
    request = a_call(kind)
    fields: dict[str, Any] = {
        "seq": 1,
        "kind": kind,
        "id": f"{kind}_1",
        "reference": request.idempotency_key,
        "parent_id": request.parent_reference,
        "amount_minor": request.amount_minor,
        "currency": request.currency,
        "merchant_id": "m-1",
        "order_id": "o-1",
        "instrument_token": "tok",
        "idempotency_key": request.idempotency_key,
        "created_at_ms": 1,
        "changed_at_ms": 1,
        "status": "succeeded",
        "code": None,
        "due_at_ms": None,
        "due_status": None,
        "closed": None,
        "expires_at_ms": 2,
        "forced_token": None,
    }
    return Operation(**{**fields, **changes})


def said(name: str, operation: Operation, *, inquired: bool) -> Reply:
    wire = PERSONALITIES[name].wire("http://gateway")
    return wire.found(operation) if inquired else wire.answer(operation)


def read(name: str, kind: str, reply: HttpReply, *, inquired: bool) -> GatewayAnswer:
    adapter, request = ADAPTERS[name](), a_call(kind)
    return adapter.inquired(request, reply) if inquired else adapter.answered(request, reply)


@each_adapter
@each_kind
@pytest.mark.parametrize("inquired", [False, True])
def test_an_answer_that_ends_early_is_never_believed(name: str, kind: str, inquired: bool) -> None:
    """Cut at any byte, neither a success nor a decline is taken from what is left."""
    for changes in ({}, {"status": "failed", "code": "expired_card"}):
        reply = said(name, an_operation(kind, **changes), inquired=inquired)
        whole = read(name, kind, HttpReply(reply.status, reply.body), inquired=inquired)
        assert whole.outcome == ("declined" if changes else "succeeded")
        for length in range(len(reply.body)):
            cut = HttpReply(reply.status, reply.body[:length])
            assert read(name, kind, cut, inquired=inquired).outcome == "unknown", length


@each_adapter
@each_kind
@pytest.mark.parametrize("inquired", [False, True])
@pytest.mark.parametrize(
    "changes", [{"reference": "pay-2:o:sim:1"}, {"currency": "EUR"}, {"amount_minor": 1}]
)
def test_an_answer_about_something_else_is_never_believed(
    name: str, kind: str, inquired: bool, changes: dict[str, Any]
) -> None:
    """Another key, currency or amount is no answer to this request."""
    reply = said(name, an_operation(kind, **changes), inquired=inquired)
    answer = read(name, kind, HttpReply(reply.status, reply.body), inquired=inquired)
    if kind == "void" and "amount_minor" in changes:
        assert answer.outcome == "succeeded"  # a void has no amount of its own
    else:
        assert (answer.outcome, answer.code) == ("unknown", "mismatched_answer")
        # Under another key it is another operation's id as well.
        assert (answer.gateway_reference is None) == ("reference" in changes)


# Where an answer that finds or takes nothing names our key; None: nowhere.
KEY_FIELD = {
    "simulator": "reference",
    "northbank": None,
    "pacific": "clientRef",
    "legacy": "MERCHREF",
}
NAMES_KEYS = tuple(name for name in ADAPTERS if KEY_FIELD.get(name) is not None)


def test_of_each_adapter_it_is_said_where_its_answers_name_our_key() -> None:
    """What is about another key is never believed, so a new gateway has to be looked at."""
    assert set(KEY_FIELD) == set(known.ADAPTERS)


def naming(reply: Reply, name: str, key: str) -> HttpReply:
    """The same answer, naming a key where the gateway's answers name it."""
    field = KEY_FIELD[name]
    if not reply.body.startswith(b"{"):
        return HttpReply(reply.status, reply.body + f"{field}={key}\r\n".encode())
    said = {**msgspec.json.decode(reply.body), field: key}
    return HttpReply(reply.status, msgspec.json.encode(said))


@pytest.mark.parametrize("name", ADAPTERS)
@each_kind
def test_not_found_is_believed_of_the_key_alone_that_was_asked_for(name: str, kind: str) -> None:
    """That the gateway knows nothing of another key says nothing of ours. An empty one is
    as good as left out. Northbank's list is empty then, and names none."""
    request = a_call(kind)
    reply = PERSONALITIES[name].wire("http://gateway").not_found(Question(kind, reference="k"))
    plain = read(name, kind, HttpReply(reply.status, reply.body), inquired=True)
    assert plain.outcome == "not_found"
    for key in (request.idempotency_key, "", "pay-2:o:sim:1") if name in NAMES_KEYS else ():
        answer = read(name, kind, naming(reply, name, key), inquired=True)
        anothers = key == "pay-2:o:sim:1"
        expected = ("unknown", "mismatched_answer") if anothers else ("not_found", None)
        assert (answer.outcome, answer.code) == expected


@pytest.mark.parametrize("name", NAMES_KEYS)
@each_kind
@pytest.mark.parametrize("code", ["rate_limited", "declined:expired_card", "parent_not_found"])
def test_a_refusal_is_believed_of_the_key_alone_that_was_sent(
    name: str, kind: str, code: str
) -> None:
    """Neither a no nor "turned away" of another key ends our call, or has it sent again."""
    reply = PERSONALITIES[name].wire("http://gateway").refusal(code, "no", None)
    plain = read(name, kind, HttpReply(reply.status, reply.body), inquired=False)
    assert plain.outcome in ("declined", "not_sent")
    ours = naming(reply, name, a_call(kind).idempotency_key)
    assert read(name, kind, ours, inquired=False) == plain
    answer = read(name, kind, naming(reply, name, "pay-2:o:sim:1"), inquired=False)
    assert (answer.outcome, answer.code) == ("unknown", "mismatched_answer")


@each_adapter
@given(
    kind=st.sampled_from(KINDS),
    status=st.sampled_from([200, 201, 202, 302, 400, 401, 402, 404, 409, 422, 429, 500, 503]),
    body=st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [
                b"{}",
                b"[]",
                b"null",
                b'{"code": 5}',
                b'{"resultCode": "0"}',
                b"STATUS=OK\r\n",
                b'{"operations": null}',
                b'{"payment": null}',
                b'{"found": true}',
                b"STATUS\r\n",
            ]
        ),
    ),
    inquired=st.booleans(),
)
def test_nonsense_is_read_without_raising_and_proves_nothing(
    name: str, kind: str, status: int, body: bytes, inquired: bool
) -> None:
    """Whatever comes, the answer is in the vocabulary and claims no money moved."""
    answer = read(name, kind, HttpReply(status, body), inquired=inquired)
    assert answer.outcome in OUTCOMES - {"succeeded", "pending"}
    assert answer.code is None or answer.code in STANDARD
    if inquired:
        assert answer.outcome == "unknown"


DEEP = b"[" * 20_000


@each_adapter
@each_kind
@pytest.mark.parametrize("inquired", [False, True])
def test_an_amount_that_no_record_holds_is_no_answer(name: str, kind: str, inquired: bool) -> None:
    """JSON numbers may have any length; one of more than 64 bits is an answer nobody can read, of a
    void too, whose amount is not compared."""
    for amount_minor in (2**63, 2**64, 10**40):
        reply = said(name, an_operation(kind, amount_minor=amount_minor), inquired=inquired)
        answer = read(name, kind, HttpReply(reply.status, reply.body), inquired=inquired)
        assert answer.outcome == "unknown"
        assert answer.code in ("undecodable_answer", "gateway_error")
        assert -(2**63) <= answer.amount_minor < 2**63


@each_adapter
@each_kind
@pytest.mark.parametrize("inquired", [False, True])
@pytest.mark.parametrize("status", [200, 402, 500])
def test_brackets_in_thousands_of_brackets_are_no_answer(
    name: str, kind: str, inquired: bool, status: int
) -> None:
    """Whatever depth a decoder takes, the answer is that nothing is known."""
    for body in (DEEP, b'{"more": ' + DEEP + b"}"):
        assert read(name, kind, HttpReply(status, body), inquired=inquired).outcome == "unknown"


@pytest.mark.parametrize("name", [n for n, each in ADAPTERS.items() if each.sends_notices])
def test_a_genuine_notice_that_no_record_holds_is_refused_by_name(name: str) -> None:
    """Signed by the gateway, with an amount beyond 64 bits or brackets without end: unreadable."""
    secret = "whsec_" + "a" * 32
    wire = PERSONALITIES[name].wire("http://gateway")
    gateway = HttpGateway("sim", "http://x", adapter=ADAPTERS[name](), notice_secrets=(secret,))

    def told(body: bytes) -> Notice | NoticeRefused:
        return gateway.read_notice(wire.notice_headers([secret], "n-1", 100, body), body, 100)

    fine = wire.operation_notice(an_operation("charge", reference="p:o:sim:1"), "n-1")
    assert fine is not None
    assert isinstance(told(fine), Notice)
    for amount_minor in (2**63, 10**40):
        huge = an_operation("charge", reference="p:o:sim:1", amount_minor=amount_minor)
        assert told(wire.operation_notice(huge, "n-1") or b"") == NoticeRefused("unreadable")
    for body in (DEEP, fine[:-1] + b', "more": ' + DEEP + b"}"):
        assert told(body) == NoticeRefused("unreadable")


@each_adapter
@each_kind
def test_what_a_request_names_cannot_climb_out_of_its_place(name: str, kind: str) -> None:
    """Ids and tokens with separators in them stay one value."""
    nasty = "../x?a=1&AMOUNT=9#%2e\r\nX: y"
    request = replace(a_call(kind), parent_reference=nasty, instrument_token=nasty, order_id=nasty)
    call = ADAPTERS[name]().send(request)
    assert call.path.count("?") == call.path.count("#") == 0
    assert "../" not in call.path
    body = call.body or b""
    assert b"\r\nX: y" not in body
    assert body.count(b"AMOUNT=") <= 1 or name != "legacy"


@each_adapter
def test_only_gateways_with_keys_are_sent_one(name: str) -> None:
    """A key that nobody reads would only look like safety."""
    adapter = ADAPTERS[name]()
    sent = a_call("charge").idempotency_key in adapter.send(a_call("charge")).headers.values()
    assert sent is adapter.idempotent is PERSONALITIES[name].idempotent


@given(st.integers(1, 10**14), st.sampled_from(["GBP", "JPY", "BHD", "USD"]))
def test_amounts_survive_their_decimal_form(amount_minor: int, currency: str) -> None:
    """No cent is lost on the way to major units and back."""
    assert minor(major(amount_minor, currency), currency) == amount_minor


@pytest.mark.parametrize("text", ["12.345", "1e3", "-1.00", "1,000.00", "", " 1.00", "1."])
def test_an_amount_that_is_none_is_not_read(text: str) -> None:
    """Nothing is rounded and nothing is guessed."""
    assert minor(text, "GBP") is None


def test_a_throttled_inquiry_says_nothing_about_the_operation() -> None:
    """Turned away is no "not found"."""
    for name in ADAPTERS:
        wire = PERSONALITIES[name].wire("http://gateway")
        reply = wire.refusal("rate_limited", "wait", None)
        answer = read(name, "charge", HttpReply(reply.status, reply.body, 2_000), inquired=True)
        assert (answer.outcome, answer.code) == ("unknown", "rate_limited")
        assert answer.retry_after_ms == 2_000


def test_a_refund_that_is_too_late_is_not_written_either() -> None:
    """The last check before the socket guards every call that may move money."""
    clock = iter([0, 10**18])

    async def call(gateway: HttpGateway) -> GatewayAnswer:
        return await gateway.refund(a_call("refund"), send_before_ms=1)

    answer, played = play(answering(http(201, {})), call, now_ms=lambda: next(clock))
    assert (answer.outcome, answer.code) == ("not_sent", "send_before_passed")
    assert played.requests == []
