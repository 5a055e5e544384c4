"""Dead letters without a broker: burying, joining, selecting, what may be redriven, the pace."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.commands import dead_letters_text as text
from pipeline.domain.model import DeadLetterMarker
from pipeline.runtime.dead_letters import dead_letter, is_redriven
from pipeline.runtime.gateway_stage import GatewayStage
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.redrive.letter import Joiner, Letter, Piece, Whole, join, parse_place
from pipeline.runtime.redrive.letter_log import LetterLog
from pipeline.runtime.redrive.masked import refuse_masked_tokens
from pipeline.runtime.redrive.plan import (
    DISCARDED,
    REDRIVEN,
    REFUSALS,
    Filter,
    Limits,
    Markers,
    Plan,
    histogram,
    plan_discard,
    plan_redrive,
    unknown_places,
)
from pipeline.runtime.redrive.redriver import (
    DISCARD_ACTION,
    Act,
    Pace,
    Redriver,
    _told,
    redrive_headers,
)
from schemas.codec import default_codec
from tests.support.engine_flow import EngineFlow
from topics.catalogue import TopicSettings, build_catalogue

CARD = b"4111111111111111"
LIMITS = Limits(inputs={"orders": 4, "payment-requests": 4}, requests="payment-requests")


class Origin:
    """The client's message, as far as burying looks at it."""

    def __init__(self, headers: list[tuple[str, Any]] | None) -> None:
        self._headers = headers

    def headers(self) -> list[tuple[str, Any]] | None:
        return self._headers


def record(
    value: bytes | None = b"junk",
    headers: list[tuple[str, Any]] | None = None,
    *,
    offset: int = 7,
    topic: str = "orders",
) -> InputRecord:
    return InputRecord(topic, 1, offset, 1_000, b"shop:1", value, Origin(headers))


class Log:
    """The dead-letter topic: what was buried, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def bury(
        self, source: InputRecord, *, stage: str = "payments", cause: str = "truncated", **more: Any
    ) -> None:
        for _, partition, key, value, headers in dead_letter(
            source, topic="dead-letters", stage=stage, cause=cause, **more
        ):
            self.append(partition, key, value, tuple(headers or ()))

    def append(
        self, partition: int, key: bytes | None, value: bytes | None, headers: tuple[Any, ...]
    ) -> None:
        offset = len(self.pieces)
        self.pieces.append(Piece(partition, offset, 5_000 + offset, key, value, headers))

    def letters(self) -> list[Letter]:
        joiner = Joiner()
        for piece in self.pieces:
            joiner.take(piece)
        return joiner.letters

    def wholes(self, letters: Iterable[Letter] | None = None) -> list[Whole]:
        wanted = {
            (letter.partition, offset): letter
            for letter in letters or self.letters()
            for offset in letter.pieces
        }
        return list(join(iter(self.pieces), wanted))


@pytest.mark.slow
def test_a_long_key_does_not_fill_the_table() -> None:
    """A key of 100 kB is shortened in the table, where its ends tell it from others, and whole in
    `show` and in JSON."""
    log = Log()
    key = b"shop:" + b"k" * 100_000 + b"-7"
    log.bury(replace(record(), key=key), cause="c" * 10_000)
    log.bury(record(offset=8))
    (letter, short), markers = log.letters(), Markers()
    head, *lines = text.letter_lines((letter, short), markers)
    assert max(map(len, (head, *lines))) < 250
    assert "shop:kkk" in lines[0]
    assert "kkk-7" in lines[0]
    assert "…" in lines[0]
    assert "…" not in lines[1]
    assert max(map(len, text.histogram_lines(histogram([letter])))) < 150
    assert len(text.nothing_found([letter], markers, "open")) < 200
    whole = key.decode()
    assert f"key       {whole}" in list(text.whole_lines(log.wholes()[0], markers, "junk"))
    assert text.letter_json(letter, markers)["key"] == whole


def only(log: Log) -> Letter:
    (letter,) = log.letters()
    return letter


def marker(letter: Letter, state: str = REDRIVEN, first: tuple[int, int] | None = None) -> Any:
    first = first or letter.place
    return DeadLetterMarker(
        letter_partition=letter.partition,
        letter_offset=letter.offset,
        state=state,
        source_topic=letter.topic,
        source_partition=letter.source_partition,
        source_offset=letter.source_offset,
        first_partition=first[0],
        first_offset=first[1],
        redrives=1,
        audit_entry_id="e",
        occurred_at_ms=9_000,
    )


# Burying


def test_a_letter_tells_where_why_and_since_when() -> None:
    """Whoever reads one letter knows its input, its cause and that it came for the first time."""
    log = Log()
    log.bury(record(headers=[("trace", b"t-1")]), cause="truncated", detail="ends inside")
    letter = only(log)
    assert letter.source == ("orders", 1, 7)
    assert (letter.stage, letter.cause, letter.detail) == ("payments", "truncated", "ends inside")
    assert (letter.attempts, letter.first, letter.first_ms) == (0, (1, 0), 1_000)
    assert letter.masked == ""
    (whole,) = log.wholes()
    assert (whole.value, whole.headers) == (b"junk", [("trace", b"t-1")])


def test_a_record_that_comes_back_keeps_its_history() -> None:
    """Buried again after a redrive it names its first letter and since when, and its own headers
    are those that it had at first."""
    log = Log()
    log.bury(record(headers=[("trace", b"t-1")]))
    first = only(log)
    (whole,) = log.wholes()
    again = record(headers=[*whole.headers, *redrive_headers(first, first.place, 1)], offset=30)
    assert is_redriven(again)
    assert not is_redriven(record())
    log.bury(again)
    second = log.letters()[1]
    assert second.source == ("orders", 1, 30)
    assert (second.attempts, second.first, second.first_ms) == (1, first.place, 1_000)
    assert log.wholes([second])[0].headers == [("trace", b"t-1")]


@pytest.mark.parametrize(
    "forged",
    [
        [("redrive.first", b"x"), ("redrive.count", b"1"), ("redrive.first_ms", b"1")],
        [("redrive.first", b"1:1"), ("redrive.count", b"-1"), ("redrive.first_ms", b"1")],
        [("redrive.first", b"1:1"), ("redrive.count", "٣"), ("redrive.first_ms", b"1")],
        [("redrive.first", None)],
        # No year has as many digits.
        [("redrive.first", b"0:1"), ("redrive.count", b"1"), ("redrive.first_ms", b"9" * 18)],
    ],
)
def test_a_history_that_is_not_well_formed_is_none(forged: list[tuple[str, Any]]) -> None:
    """Whoever writes inputs can write such headers; nonsense in them must not stop a worker."""
    log = Log()
    log.bury(record(headers=forged))
    assert (only(log).attempts, only(log).first) == (0, (1, 0))


def test_a_time_that_is_none_is_shown_all_the_same() -> None:
    """Old letters have what their inputs claimed."""
    letter = replace(only_buried(), first_ms=10**17, at_ms=10**17)
    shown = "\n".join(text.whole_lines(Whole(letter, b"", []), Markers(), "junk"))
    assert f"first seen {10**17} ms UTC" in shown
    assert f"{10**17} ms" in "\n".join(text.letter_lines([letter], Markers()))


def only_buried() -> Letter:
    log = Log()
    log.bury(record())
    return only(log)


def test_what_was_masked_is_known() -> None:
    """The letter says whether value or headers are not what they were."""
    log = Log()
    log.bury(record(b"pan " + CARD))
    log.bury(record(headers=[("pan", CARD)]))
    log.bury(record(b"pan " + CARD, headers=[("pan", CARD)]))
    log.bury(record(b"411111******1111 was masked by its writer"))
    assert [letter.masked for letter in log.letters()] == ["value", "headers", "value,headers", ""]


def test_a_card_number_in_a_key_that_names_no_order_is_masked() -> None:
    """Neither the letter nor what is shown of it has the number; declared ids stay as they are."""
    log = Log()
    log.bury(replace(record(), key=b"shop:" + CARD + b" x"))
    log.bury(replace(record(), key=b"shop:" + CARD))
    masked, declared = log.letters()
    assert (masked.key, masked.masked) == (b"shop:411111******1111 x", "key")
    assert (declared.key, declared.masked) == (b"shop:" + CARD, "")
    plan = plan_redrive([masked], [masked], Markers(), LIMITS)
    assert plan.refused == {"bytes_must_be_the_original": [masked]}
    shown = list(text.whole_lines(Whole(masked, b"", []), Markers(), "junk"))
    assert "masked    card numbers in the key" in shown


def test_a_letter_of_before_the_header_shows_by_its_stars() -> None:
    """Old letters do not say that they were masked: six digits, stars and four digits do."""
    log = Log()
    headers = tuple((n, v) for n, v in _headers_of(Log()) if not n.startswith("dlq.attempts"))
    log.append(1, b"k", b"pan 411111******1111.", headers)
    log.append(1, b"k", b"pan 4111-11**-****-1111.", headers)
    log.append(1, b"k", b"plain ****** 1111", headers)
    assert [letter.masked for letter in log.letters()] == ["value", "value", ""]


def _headers_of(log: Log) -> tuple[tuple[str, bytes | None], ...]:
    log.bury(record())
    return log.pieces[0].headers


# Joining


@given(
    value=st.binary(min_size=1, max_size=60).filter(lambda v: b"*" not in v),
    chunk_bytes=st.integers(1, 30),
)
def test_a_split_input_is_joined_to_what_it_was(value: bytes, chunk_bytes: int) -> None:
    """However it was split, and whatever other letters lie between its pieces."""
    split, other = Log(), Log()
    split.bury(record(value), chunk_bytes=chunk_bytes)
    other.bury(record(b"other", offset=8), chunk_bytes=2)
    mixed = Log()
    for piece in _shuffled(split.pieces, other.pieces):
        mixed.append(piece.partition, piece.key, piece.value, piece.headers)
    whole = {w.letter.source_offset: w.value for w in mixed.wholes()}
    masked = dead_letter(record(value), topic="d", stage="s", cause="c")[0][3]
    assert whole == {7: masked, 8: b"other"}
    assert all(letter.problem is None for letter in mixed.letters())


def _shuffled(left: list[Piece], right: list[Piece]) -> list[Piece]:
    taken: list[Piece] = []
    for index in range(max(len(left), len(right))):
        taken += [*left[index : index + 1], *right[index : index + 1]]
    return taken


@pytest.mark.parametrize(("lost", "problem"), [(0, "1 of 3"), (1, "2 of 3"), (2, "3 of 3")])
def test_a_letter_with_a_missing_piece_is_refused_by_name(lost: int, problem: str) -> None:
    """What is not whole is not written back, and the piece that is missing is named."""
    log = Log()
    log.bury(record(b"abcdef"), chunk_bytes=2)
    del log.pieces[lost]
    letters = log.letters()
    plan = plan_redrive(letters, letters, Markers(), LIMITS)
    assert plan.todo == []
    assert any(
        f"piece {problem} is missing" in (letter.problem or "")
        for letter in plan.refused["letter_must_be_whole"]
    )


def test_pieces_sent_again_after_half_of_them_are_one_letter() -> None:
    """The ledger sends a letter again as a whole when half of it failed: the torn one is refused
    and the other redriven."""
    log = Log()
    log.bury(record(b"abcdef"), chunk_bytes=2)
    del log.pieces[2:]
    log.bury(record(b"abcdef"), chunk_bytes=2)
    torn, whole = letters = log.letters()
    plan = plan_redrive(letters, letters, Markers(), LIMITS)
    assert plan.todo == [whole]
    assert plan.refused == {"letter_must_be_whole": [torn]}
    assert log.wholes([whole])[0].value == b"abcdef"


# Selecting


@pytest.mark.parametrize(
    ("chosen", "offsets"),
    [
        (Filter(), [0, 1, 2, 3]),
        (Filter(causes=frozenset({"truncated", "malformed"})), [0, 2, 3]),
        (Filter(stages=frozenset({"ledger"})), [2]),
        (Filter(topics=frozenset({"orders"})), [0, 1, 3]),
        (Filter(key=b"shop:2"), [3]),
        (Filter(since_ms=5_001), [1, 2, 3]),
        (Filter(until_ms=5_001), [0]),
        (Filter(since_ms=5_001, until_ms=5_003, stages=frozenset({"payments"})), [1]),
        (Filter(places=frozenset({(1, 3), (1, 0)})), [0, 3]),
        (Filter(causes=frozenset({"nonsense"})), []),
    ],
)
def test_a_filter_takes_what_matches_all_of_it(chosen: Filter, offsets: list[int]) -> None:
    """Each part narrows; several values of one part widen."""
    log = Log()
    log.bury(record(), cause="truncated")
    log.bury(record(offset=8), cause="key_mismatch")
    log.bury(record(topic="settlements"), cause="malformed", stage="ledger")
    other = InputRecord("orders", 1, 9, 1_000, b"shop:2", b"x")
    log.bury(other, cause="malformed")
    assert [letter.offset for letter in chosen.select(log.letters())] == offsets
    assert chosen.narrows == (chosen != Filter())


def test_what_a_stranger_wrote_is_chosen_by_one_cause() -> None:
    """It names no cause, so it is listed, counted and set aside as `no_lineage`."""
    log = Log()
    log.append(0, None, b"not of this flow", ())
    log.bury(record(), cause="truncated")
    chosen = Filter(causes=frozenset({"no_lineage"})).select(log.letters())
    assert histogram(chosen) == [("no_lineage", "", "", 1)]
    assert plan_discard(chosen, Markers()).todo == chosen
    assert list(plan_redrive(chosen, chosen, Markers(), LIMITS).refused) == ["letter_must_be_whole"]


def test_a_card_number_that_a_stranger_wrote_is_masked_where_it_is_shown() -> None:
    """This flow masks what it buries; of what others put beside it only `--raw` has the number."""
    log = Log()
    original = ("dlq.header.pan", b"4111 1111 1111 1111")
    log.append(0, CARD, b"pan " + CARD, (("dlq.detail", b"of " + CARD), original))
    (letter,) = log.letters()
    (whole,) = join(iter(log.pieces), {letter.place: letter})
    assert whole.value == b"pan " + CARD
    for shown in (
        "\n".join(text.whole_lines(whole, Markers(), "junk")),
        "\n".join(text.letter_lines([letter], Markers())),
        base64.b64decode(text.whole_json(whole, Markers(), "junk")["value_base64"]).decode(),
        json.dumps(text.whole_json(whole, Markers(), "junk")),
    ):
        assert CARD.decode() not in shown
        assert "4111 1111 1111" not in shown
    assert "|pan 411111******|" in "\n".join(text.whole_lines(whole, Markers(), "junk"))


def test_pieces_that_name_no_input_are_letters_by_themselves() -> None:
    """Joined, the second could be neither named nor set aside."""
    log = Log()
    for chunk in (b"1/2", b"2/2"):
        log.append(0, b"k", b"not of this flow", (("dlq.chunk", chunk),))
    letters = log.letters()
    assert [letter.place for letter in letters] == [(0, 0), (0, 1)]
    assert {letter.problem for letter in letters} == {"it has no header dlq.topic"}
    assert plan_discard(letters, Markers()).todo == letters


def test_the_histogram_counts_the_most_frequent_first() -> None:
    """What there is most of is what a person looks at first."""
    log = Log()
    for offset in range(3):
        log.bury(record(offset=offset), cause="truncated")
    log.bury(record(topic="settlements"), cause="malformed", stage="ledger")
    assert histogram(log.letters()) == [
        ("truncated", "payments", "orders", 3),
        ("malformed", "ledger", "settlements", 1),
    ]
    assert unknown_places({(1, 0), (1, 9)}, log.letters()) == ["1:9"]
    assert [parse_place(t) for t in ("3:17", "3", "3:", ":1", "a:1", "-1:2")] == [
        (3, 17), None, None, None, None, None,
    ]  # fmt: skip


# What may be done


def test_each_refusal_has_its_rule_and_its_sentence() -> None:
    """Nothing is left out in silence: every letter is to do, done before, or refused by a rule."""
    log = Log()
    log.bury(record(offset=0))
    log.bury(record(b"pan " + CARD, offset=1))
    log.bury(record(offset=2, topic="elsewhere"))
    log.bury(record(offset=0))
    log.bury(record(offset=4, topic="payment-requests"), cause="killed_the_process")
    log.bury(record(offset=5, topic="payment-requests"), cause="unknown_schema_id")
    log.bury(record(offset=6))
    letters = log.letters()
    markers = Markers()
    markers.take(marker(letters[6], DISCARDED))
    plan = plan_redrive(letters, letters, markers, LIMITS)
    assert [letter.offset for letter in plan.todo] == [0, 5]
    assert plan.closed == []
    assert {rule: [each.offset for each in refused] for rule, refused in plan.refused.items()} == {
        "bytes_must_be_the_original": [1],
        "source_must_be_an_input": [2],
        "letter_must_be_the_first_of_its_input": [3],
        "request_must_not_have_been_called": [4],
        "letter_must_not_be_discarded": [6],
    }
    assert set(plan.refused) <= set(REFUSALS)
    masked_too = Limits(inputs=LIMITS.inputs, requests=LIMITS.requests, masked_too=True)
    assert plan_redrive([letters[1]], letters, markers, masked_too).todo == [letters[1]]
    discard = plan_discard(letters, markers)
    assert (len(discard.todo), discard.closed) == (6, [letters[6]])


def test_what_was_closed_in_the_other_way_is_refused() -> None:
    """Nobody is told that a letter was redriven which was set aside, or the other way round."""
    log = Log()
    log.bury(record(offset=0))
    log.bury(record(offset=1))
    set_aside, gone_back = log.letters()
    markers = Markers()
    markers.take(marker(set_aside, DISCARDED))
    markers.take(marker(gone_back, REDRIVEN))
    redrive = plan_redrive([set_aside, gone_back], [set_aside, gone_back], markers, LIMITS)
    assert (redrive.todo, redrive.closed) == ([], [gone_back])
    assert redrive.refused == {"letter_must_not_be_discarded": [set_aside]}
    discard = plan_discard([set_aside, gone_back], markers)
    assert (discard.todo, discard.closed) == ([], [set_aside])
    assert discard.refused == {"letter_must_not_be_redriven": [gone_back]}
    assert {*redrive.refused, *discard.refused} <= set(REFUSALS)

    # The same where somebody else does it after this was planned.
    planned = Plan(todo=[set_aside, gone_back])
    catalogue, codec, server = build_catalogue(TopicSettings()), default_codec(), "127.0.0.1:1"
    no_log = cast(LetterLog, None)  # A discard reads no letters.
    redriver = Redriver(server, catalogue, codec, no_log, markers, LIMITS)
    done = redriver.run(planned, Act("ann", "test"), action=DISCARD_ACTION)
    assert (done.letters, done.already) == (0, 1)
    assert done.refused == {"letter_must_not_be_redriven": [gone_back]}


def test_a_masked_token_is_not_redriven_to_be_charged() -> None:
    """With ``--masked-too`` masked text goes back, but no order or retry whose token was masked:
    the rule names the field that is needed."""
    codec = default_codec()
    encode = {name: codec.encoder(name) for name in ("order", "payment-command")}
    order = {
        "merchant_id": "shop", "order_id": "1", "amount_minor": 1, "currency": "GBP",
        "instrument_token": CARD.decode(), "business_date": "2026-01-01", "submitted_at_ms": 1,
    }  # fmt: skip
    retry = {
        "merchant_id": "shop", "order_id": "1", "command_id": "c", "type": "retry",
        "instrument_token": CARD.decode(), "submitted_at_ms": 1,
    }  # fmt: skip
    prose = {**retry, "instrument_token": "tok_2", "reason": CARD.decode()}
    log = Log()
    log.bury(record(encode["order"](order), offset=0))
    log.bury(record(encode["payment-command"](retry), offset=1, topic="payment-commands"))
    log.bury(record(encode["payment-command"](prose), offset=2, topic="payment-commands"))
    log.bury(record(b"junk " + CARD, offset=3))
    letters = log.letters()
    inputs = {**LIMITS.inputs, "payment-commands": 2}
    limits = Limits(inputs=inputs, requests=LIMITS.requests, masked_too=True)
    plan = plan_redrive(letters, letters, Markers(), limits)
    assert len(plan.todo) == 4
    decoders = {
        "orders": codec.decoder("order"),
        "payment-commands": codec.decoder("payment-command"),
    }
    refuse_masked_tokens(plan, log.wholes, decoders)
    assert [letter.source_offset for letter in plan.todo] == [2, 3]
    rule = "instrument_token_must_not_be_masked"
    assert [each.source_offset for each in plan.refused[rule]] == [0, 1]
    assert any(rule in line for line in text.plan_lines(plan, "redriven", None))


def test_a_record_is_redriven_no_more_often_than_the_limit() -> None:
    """Counted over all its burials, by the markers of its first letter."""
    log, markers = Log(), Markers()
    log.bury(record(offset=0))
    for redrives in range(1, 4):
        letters = log.letters()
        letter = letters[-1]
        plan = plan_redrive([letter], letters, markers, LIMITS)
        assert plan.todo == [letter]
        first, before = markers.history(letter)
        assert (first, before) == ((1, 0), redrives - 1)
        markers.take(marker(letter, first=first))
        headers = redrive_headers(letter, first, redrives)
        log.bury(record(headers=list(headers), offset=redrives))
    letters = log.letters()
    plan = plan_redrive([letters[-1]], letters, markers, LIMITS)
    assert list(plan.refused) == ["redrives_must_not_exceed_limit"]
    assert letters[-1].attempts == 3
    more = Limits(inputs=LIMITS.inputs, requests=LIMITS.requests, redrives_max=4)
    assert plan_redrive([letters[-1]], letters, markers, more).todo == [letters[-1]]


def test_a_claimed_history_counts_only_if_the_markers_know_it() -> None:
    """An input cannot make itself or another unredrivable by what its headers say."""
    log, markers = Log(), Markers()
    forged = [("redrive.first", b"1:0"), ("redrive.count", b"99"), ("redrive.first_ms", b"1")]
    log.bury(record(offset=0))
    log.bury(record(headers=forged, offset=1))
    letters = log.letters()
    assert letters[1].attempts == 99
    assert markers.history(letters[1]) == ((1, 1), 0)
    assert plan_redrive([letters[1]], letters, markers, LIMITS).todo == [letters[1]]


def test_a_redriven_request_calls_no_gateway() -> None:
    """Its payment is told that the outcome is unknown, and asks: it may have been charged
    elsewhere while the request lay among the dead letters."""
    flow = EngineFlow("", "t.", None, partitions=2)  # type: ignore[arg-type]
    stage = GatewayStage(flow.catalogue, flow.codec)
    request = flow.request(flow.order("1"))
    value = flow.encode("payment-request", request)
    asked = InputRecord("t.payment-requests", 0, 5, 1_000, b"shop:1", value, Origin(None))
    assert not isinstance(stage.plan(asked, 1_000), list)
    log = Log()
    log.bury(asked)
    letter = only(log)
    again = InputRecord(
        "t.payment-requests", 0, 9, 1_000, b"shop:1", value,
        Origin(redrive_headers(letter, letter.place, 1)),
    )  # fmt: skip
    written = stage.plan(again, 1_000)
    assert isinstance(written, list)
    ((topic, _, _, result, _),) = written
    assert topic == "t.gateway-results"
    decoded = default_codec().decoder("gateway-result")(result or b"")
    assert (decoded["outcome"], decoded["code"]) == ("unknown", "redriven")


# The pace


def test_the_rate_is_kept_over_the_whole_run() -> None:
    """A thousand letters at 100 a second take ten seconds, in small batches."""
    now_s = 50.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    pace = Pace(100, clock=lambda: now_s, sleep=sleep)
    assert pace.batch_letters == 20
    for _ in range(50):
        pace.wait_for(20, lambda: False)
    assert 59.5 <= now_s <= 60.0
    assert Pace(0.5).batch_letters == 1
    assert Pace(1_000_000).batch_letters == Pace(None).batch_letters == 200


def test_a_stop_is_heard_while_waiting() -> None:
    """Ctrl-C does not wait for the next letter of a slow run."""
    slept: list[float] = []
    pace = Pace(0.001, clock=lambda: 0.0, sleep=slept.append)
    pace.wait_for(1, lambda: False)
    pace.wait_for(1, lambda: len(slept) > 1)
    assert slept == [0.2, 0.2]


def test_a_fence_that_the_client_wraps_is_known_for_what_it_is() -> None:
    """The client may call its logger with the exception already set; the run still ends with the
    sentence about the other run, not with a traceback."""
    fence = KafkaException(KafkaError(KafkaError._FENCED, "fenced", True))
    once, twice = SystemError("a result with an exception set"), SystemError("and again")
    once.__cause__, twice.__cause__ = fence, once
    cause = _told(twice)
    assert cause is not None
    assert (cause.code(), cause.fatal()) == (KafkaError._FENCED, True)
    assert _told(SystemError("of something else")) is None


# What a person reads


def test_a_value_is_decoded_where_it_can_be_and_hex_where_not() -> None:
    """show gives the fields of a record, and the bytes of what is none."""
    catalogue = build_catalogue(TopicSettings())
    codec = default_codec()
    flow = EngineFlow("", "", None)  # type: ignore[arg-type]
    log = Log()
    log.bury(record(flow.encode("order", flow.order("1"))), cause="order_conflict")
    log.bury(record(b"junk\x1b[31m"), cause="not_wire_format")
    good, bad = log.wholes()
    schema = catalogue["orders"].schema
    fields = text.decoded(good, schema, codec)
    assert not isinstance(fields, str)
    assert fields["order_id"] == "1"
    assert '  "order_id": "1",' in [
        line.removeprefix("  ") for line in text.whole_lines(good, Markers(), fields)
    ]
    said = text.decoded(bad, schema, codec)
    assert isinstance(said, str)
    lines = list(text.whole_lines(bad, Markers(), said))
    assert "  00000000  6a 75 6e 6b 1b 5b 33 31 6d                       |junk.[31m|" in lines
    assert not any("\x1b" in line for line in lines), "a record must not steer a terminal"
