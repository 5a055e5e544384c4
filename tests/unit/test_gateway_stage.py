"""The gateway stage over gateways that know keys and gateways that do not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.keys import record_key
from pipeline.domain.records import to_record
from pipeline.record_codec import record_codec
from pipeline.runtime.calls import Call, Calls
from pipeline.runtime.gateway_stage import GatewayStage, GatewayTerms
from pipeline.runtime.input_record import InputRecord
from tests.unit.test_processors_gateway import CHARGE, INQUIRE, NOW
from topics.catalogue import TopicSettings, build_catalogue

CATALOGUE = build_catalogue(TopicSettings())
CODEC = record_codec(CATALOGUE, "")


def stage(*, idempotent: bool) -> GatewayStage:
    return GatewayStage(CATALOGUE, CODEC, terms={"simulator": GatewayTerms(idempotent=idempotent)})


def record(offset: int, request=CHARGE) -> InputRecord:  # type: ignore[no-untyped-def]
    value = CODEC.encoder("payment-request")(to_record(request))
    key = record_key(request.merchant_id, request.order_id)
    return InputRecord(CATALOGUE.name("payment-requests"), 0, offset, NOW, key, value)


def codes(planned: object) -> list[str | None]:
    """The codes of what is written instead of calling."""
    assert isinstance(planned, list)
    decode = CODEC.decoder("gateway-result")
    return [decode(value)["code"] for _, _, _, value, _ in planned]


def test_a_request_read_twice_is_sent_twice_where_keys_are_known() -> None:
    """After an aborted transaction the same key goes out again, and does no harm."""
    one = stage(idempotent=True)
    assert not one.unrepeatable
    one.assigned(0, 10)
    assert all(isinstance(one.plan(record(offset), NOW), Call) for offset in (3, 3, 12))


def test_a_request_read_twice_is_sent_once_where_keys_are_not_known() -> None:
    """What this worker has sent before it rewound is unknown the second time."""
    one = stage(idempotent=False)
    assert one.unrepeatable
    assert isinstance(one.plan(record(5), NOW), Call)
    assert isinstance(one.plan(record(6), NOW), Call)
    assert codes(one.plan(record(5), NOW)) == ["possibly_sent"]
    assert isinstance(one.plan(record(7), NOW), Call)


def test_what_lay_in_a_partition_may_have_been_sent_by_its_former_worker() -> None:
    """Below the end at the assignment nothing is sent but inquiries; what comes after is."""
    one = stage(idempotent=False)
    one.assigned(0, 10)
    assert codes(one.plan(record(9), NOW)) == ["possibly_sent"]
    assert isinstance(one.plan(record(9, INQUIRE), NOW), Call)
    assert isinstance(one.plan(record(10), NOW), Call)
    one.assigned(0, 4)
    assert codes(one.plan(record(10), NOW)) == ["possibly_sent"]


def test_an_inquiry_does_not_make_forgotten_what_others_may_have_sent() -> None:
    """After a takeover an inquiry is read first, then a charge that the former worker had sent:
    sent again, a gateway without keys charges twice."""
    one = stage(idempotent=False)
    one.assigned(0, 10)
    assert isinstance(one.plan(record(3, INQUIRE), NOW), Call)
    assert codes(one.plan(record(9), NOW)) == ["possibly_sent"]


UNREACHED = GatewayAnswer(outcome="not_sent", code="connection_refused")


def outcome(one: GatewayStage, offset: int, answer: GatewayAnswer = UNREACHED) -> str:
    """What is written when a request's call comes to this."""
    call = one.plan(record(offset), NOW)
    assert isinstance(call, Call)
    written = one.result(call.token, call.request, answer, NOW, read_before=call.read_before)
    return str(CODEC.decoder("gateway-result")(written[3] or b"")["outcome"])


def test_what_cannot_be_reached_now_may_have_been_reached_by_a_call_of_before() -> None:
    """Its worker died, or rewound, before it could say so. "Not sent" would let the payment fail
    on the gateway's silence, and its money be taken."""
    one = stage(idempotent=True)
    assert [outcome(one, 5), outcome(one, 6)] == ["not_sent", "not_sent"]
    assert outcome(one, 5) == "unknown", "read again by this worker itself"
    assert outcome(one, 7) == "not_sent"
    other = GatewayStage(CATALOGUE, CODEC, clock_skew_ms=100)
    other.taken(0, NOW - 100)
    assert outcome(other, 8) == "unknown", "appended before it had the partition, as clocks differ"
    other.taken(0, NOW - 101)
    assert outcome(other, 9) == "not_sent"


def test_a_question_knows_when_and_where_it_was_appended() -> None:
    """By the brokers' clock, before the gateway looked: what is not found is said of that time."""
    call = stage(idempotent=True).plan(record(5, INQUIRE), NOW + 5_000)
    assert isinstance(call, Call)
    assert (call.appended_at_ms, call.partition) == (NOW, 0)


def test_what_is_held_back_by_us_is_not_asked_about_for_having_been_read_before() -> None:
    """Such waits end with a call under the same key; a backlog after a start would double."""
    one = stage(idempotent=True)
    one.taken(0, NOW)
    held = GatewayAnswer(outcome="not_sent", code="breaker_open")
    assert outcome(one, 5, held) == "not_sent"


def test_it_is_told_which_requests_somebody_may_have_sent_before() -> None:
    """Not sent by this call, or no longer by anybody: a payment that fails for that must not fail
    on its gateway's silence if a worker before may have charged it."""
    one = stage(idempotent=True)
    decode = CODEC.decoder("gateway-result")
    late = NOW + 10 * CHARGE.send_within_ms

    def flags(offset: int, code: str, now_ms: int = NOW) -> tuple[str, str, int]:
        planned = one.plan(record(offset), now_ms)
        if isinstance(planned, Call):
            held = GatewayAnswer(outcome="not_sent", code=code)
            planned = [
                one.result(
                    planned.token, planned.request, held, NOW, read_before=planned.read_before
                )
            ]
        said = decode(planned[0][3] or b"")
        return str(said["outcome"]), str(said["code"]), int(said["earlier_reads"])

    assert flags(5, "breaker_open") == ("not_sent", "breaker_open", 0)
    assert flags(5, "breaker_open") == ("not_sent", "breaker_open", 1)
    assert flags(6, "", late) == ("not_sent", "send_before_passed", 0)
    assert flags(6, "", late) == ("not_sent", "send_before_passed", 1)


@pytest.mark.parametrize("kind", ["charge", "authorize", "capture", "void", "refund", "inquire"])
def test_each_kind_of_request_reaches_its_own_method(kind: str) -> None:
    """A refund is never sent as a charge."""
    called: list[str] = []

    class Fake:
        name = "simulator"

        async def open(self) -> None: ...

        async def close(self) -> None: ...

        def __getattr__(self, method: str):  # type: ignore[no-untyped-def]
            if method == "charge_now":
                raise AttributeError

            async def asked(request: object, **_: object) -> object:
                called.append(method)
                return GatewayAnswer(outcome="pending")

            return asked

    calls = Calls({"simulator": Fake()})  # type: ignore[dict-item]
    calls.open()
    try:
        calls.start([Call(None, replace(CHARGE, kind=kind), 2**62)])
        assert calls.wait_finished(10)
        (call,) = calls.take_finished() or (calls.wait_finished(10) and calls.take_finished())
    finally:
        calls.close()
    assert called == [kind]
    assert call.answer is not None
    assert call.answer.outcome == "pending"
