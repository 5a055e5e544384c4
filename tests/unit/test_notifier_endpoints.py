"""Endpoints as data: what is taken, what is refused in words, and changes while running."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from consumers.notifier.callback import CannotBeTold, callback_of
from consumers.notifier.endpoints import (
    MERCHANT_EVENTS,
    EndpointFile,
    Endpoints,
    known_events,
    read_endpoints,
)
from pipeline.domain.ids import event_id, payment_id
from pipeline.domain.model import PaymentEvent
from pipeline.errors import UserError
from tests.house import TOP
from tests.support.receiver import SECRET

EVENT = PaymentEvent(
    event_id=event_id(payment_id("shop", "1"), 2),
    merchant_id="shop",
    order_id="1",
    payment_id=payment_id("shop", "1"),
    sequence=2,
    type="captured",
    status="captured",
    amount_minor=1250,
    currency="GBP",
    occurred_at_ms=1_790_000_000_123,
    gateway="northbank",
    attempt=1,
    detail="chosen because it is cheap",
    actor="alice",
)


def read(**changed: Any) -> Endpoints:
    table = {"merchant": "shop", "url": "https://shop.example/h", "secrets": [SECRET], **changed}
    text = json.dumps({"endpoints": {"shop-main": table}})
    return read_endpoints(text, "endpoints.json", allow_http=False, allow_private=False)


def test_an_endpoint_hears_of_its_own_merchants_outcomes() -> None:
    """Other merchants' events, and steps on the way, are not for it; it may ask for them."""
    told = read()
    assert [each.name for each in told.of(EVENT)] == ["shop-main"]
    assert told.of(replace(EVENT, merchant_id="other")) == []
    assert told.of(replace(EVENT, type="inquiry_started")) == []
    assert read(events=["inquiry_started"]).of(EVENT) == []
    assert read(events=["*"]).of(replace(EVENT, type="inquiry_started")) != []


def test_the_documents_example_and_list_are_what_the_program_takes() -> None:
    """The file in docs/notifications.md can be used as it stands, and names every default event."""
    text = (TOP / "docs/notifications.md").read_text(encoding="utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    told = read_endpoints(example, "the example", allow_http=False, allow_private=False)
    assert [len(each.secrets) for each in told.by_name.values()] == [1, 2]
    (listed,) = re.findall(r"By default an endpoint hears: ([^.]*)\.", text)
    assert set(re.findall(r"`(\w+)`", listed)) == MERCHANT_EVENTS


def test_every_event_that_is_told_by_default_exists() -> None:
    """A misspelt one would be told never; the vocabulary is the lifecycle's own."""
    assert known_events() >= MERCHANT_EVENTS
    assert {"captured", "refunded", "dispute_opened", "payment_started"} <= known_events()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"url": "http://shop.example/h"}, "https"),
        ({"url": "https://10.0.0.7/h"}, "public"),
        ({"secrets": []}, "secrets"),
        ({"secrets": [SECRET] * 5}, "secrets"),
        ({"secrets": ["plain"]}, "whsec_"),
        ({"events": ["capturd"]}, "capturd"),
        ({"merchant": "no merchant"}, "merchant"),
        ({"timeout_ms": 5}, "timeout_ms"),
        ({"concurrency_max": 0}, "concurrency_max"),
        ({"urll": "x"}, "urll"),
    ],
)
def test_what_is_wrong_is_named_with_its_endpoint(changed: dict[str, Any], why: str) -> None:
    """A person reads which endpoint and what of it, and no secret."""
    with pytest.raises(UserError, match="shop-main") as refused:
        read(**changed)
    assert why in str(refused.value)
    assert SECRET not in str(refused.value)


def one_table(name: str) -> str:
    return (
        f'[endpoints.{name}]\nmerchant="shop"\nurl="https://shop.example/h"\nsecrets=["{SECRET}"]\n'
    )


def stood(file: EndpointFile) -> list[str]:
    """The names in force once two looks found the same."""
    file.look()
    return list(file.look().by_name)


def test_a_change_of_the_file_is_taken_and_a_bad_one_is_not(tmp_path: Path) -> None:
    """A new secret counts without a restart; a file that cannot be used changes nothing."""
    path = tmp_path / "endpoints.toml"
    text = one_table("a")
    path.write_text(text)
    file = EndpointFile(path)
    assert list(file.load().by_name) == ["a"]
    path.write_text(text + one_table("b"))
    assert stood(file) == ["a", "b"]
    for broken in (b"nonsense", text.replace("https", "http").encode(), b"\xff"):
        path.write_bytes(broken)
        assert stood(file) == ["a", "b"]
    path.unlink()
    assert stood(file) == ["a", "b"]
    path.write_text(text)
    assert stood(file) == ["a"]
    with pytest.raises(UserError, match="PAYSTREAM_MERCHANT_ENDPOINTS"):
        EndpointFile(tmp_path / "missing").load()


@pytest.mark.parametrize("nothing", ["", "# none\n", "{}"])
def test_an_emptied_file_ends_its_endpoints_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, nothing: str
) -> None:
    """Who takes out the last endpoint has nothing more sent there."""
    path = tmp_path / "endpoints.toml"
    path.write_text(one_table("a"))
    file = EndpointFile(path)
    file.load()
    path.write_text(nothing)
    with caplog.at_level("INFO"):
        assert stood(file) == []
    assert caplog.messages == [f"0 endpoints of {path} are in force, gone: a"]
    assert list(EndpointFile(path).load().by_name) == [], "a restart reads the same"


def test_a_file_that_is_half_written_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An editor that empties the file first, takes it away for a moment or writes it in parts takes
    no endpoint away; what it leaves in the end counts, also when it is what there was."""
    path = tmp_path / "endpoints.toml"
    before = one_table("a") + one_table("b")
    path.write_text(before)
    file = EndpointFile(path)
    file.load()
    with caplog.at_level("INFO"):
        for half in ("", one_table("a"), one_table("a") + "[endpoi", None, before):
            path.unlink(missing_ok=True)
            if half is not None:
                path.write_text(half)
            assert list(file.look().by_name) == ["a", "b"]
        assert stood(file) == ["a", "b"]
        assert caplog.messages == []
        path.write_text(before + one_table("c"))
        assert stood(file) == ["a", "b", "c"]
    assert caplog.messages == [f"3 endpoints of {path} are in force"]


def test_an_event_has_one_id_and_one_body_for_ever() -> None:
    """Repeated from anywhere, a receiver sees the same bytes under the same id."""
    first, again = callback_of(EVENT, "shop-main", 3), callback_of(EVENT, "shop-main", 3)
    assert first == again
    assert first.event_id == EVENT.event_id
    said = json.loads(first.body)
    assert (said["type"], said["timestamp"]) == ("payment.captured", "2026-09-21T14:13:20.123Z")
    assert said["data"]["amount_minor"] == 1250


@pytest.mark.parametrize(
    "changed",
    [
        {"occurred_at_ms": 253_402_300_800_000},
        {"occurred_at_ms": 2**63 - 1},
        {"occurred_at_ms": -(2**63)},
        {"order_id": "a\0b"},
        {"payment_id": "p" * 65},
    ],
)
def test_an_event_that_no_callback_can_say_is_named(changed: dict[str, Any]) -> None:
    """A time after the year 9999, a text that a database does not keep: never a crash, which the
    same record would bring on again at each start."""
    with pytest.raises(CannotBeTold, match=r"no time is|has a NUL or more than"):
        callback_of(replace(EVENT, **changed), "shop-main", 3)
    last = replace(EVENT, occurred_at_ms=253_402_300_799_000)
    assert b"9999-12-31T23:59:59.000Z" in callback_of(last, "shop-main", 3).body


def test_what_is_written_for_our_own_people_stays_here() -> None:
    """No detail, no person's name, no gateway goes to a merchant."""
    body = callback_of(EVENT, "shop-main", 3).body
    for inside in (b"cheap", b"alice", b"northbank", b"attempt", b"actor", b"detail"):
        assert inside not in body
