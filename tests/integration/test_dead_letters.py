"""Dead letters on a real broker, by the command that a person types."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from pipeline.audit.verify import Sources, verify
from pipeline.cli import app
from pipeline.commands.stopping import SIGNALS
from pipeline.domain.keys import partition_of, record_key
from pipeline.errors import UserError
from pipeline.runtime import failpoints
from pipeline.runtime.dead_letters import dead_letter
from pipeline.runtime.input_record import InputRecord
from schemas.codec import Codec, wire_header
from schemas.ids import locked_ids
from tests.support.cli import Cli, Done
from tests.support.cli_runner import CliRunner
from tests.support.engine_flow import EngineFlow, ends_of, headers_of
from tests.support.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.integration

NEW_SCHEMA_ID = 4_711
CARD = b"4111111111111111"
KILLED_AT = ("redrive.half_produced", "redrive.produced", "redrive.committed")
WHY = ("--reason", "mended", "--actor", "ops")


class Tool:
    """`paystream dead-letters` over a flow of its own, whose letters the test buries."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.flow = EngineFlow(kafka, prefix, folder / "state").provisioned()
        self.cli = Cli(
            folder, {"PAYSTREAM_BOOTSTRAP_SERVERS": kafka, "PAYSTREAM_TOPIC_PREFIX": prefix}
        )

    def run(self, *words: str) -> Done:
        """In this process, which saves a start of two seconds; main() turns the errors of people
        into a sentence and a code, and so does this."""
        began_s = time.monotonic()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        home = {"XDG_STATE_HOME": str(self.cli.home)}
        try:
            result = CliRunner().invoke(
                app, ["dead-letters", *words], env={**self.cli.environment, **home}
            )
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        error, code = result.stderr, result.exit_code
        if isinstance(result.exception, UserError):
            error, code = f"{error}paystream: {result.exception}\n", result.exception.exit_code
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(code, result.stdout, error, time.monotonic() - began_s)

    def run_as_process(self, *words: str, environment: Mapping[str, str] | None = None) -> Done:
        done = self.cli.run("dead-letters", *words, environment=environment)
        assert "Traceback" not in done.err + done.out, done.err
        return done

    def bury(
        self,
        order_id: str,
        value: bytes | None = b"junk",
        *,
        cause: str = "not_wire_format",
        headers: list[tuple[str, bytes]] | None = None,
        pieces: slice = slice(None),
        **more: Any,
    ) -> str:
        """An input on `orders` that was refused; the name of its letter."""
        key = record_key("shop", order_id)
        partition = partition_of(key, self.flow.partitions)
        _, offset = self.flow.send("orders", key, b"at", partition=partition, headers=headers)

        class Origin:
            def headers(self) -> list[tuple[str, bytes]] | None:
                return headers

        source = InputRecord(
            self.flow.topic("orders"), partition, offset, 1_000, key, value, Origin()
        )
        letters = dead_letter(
            source, topic="", stage="payments", cause=cause, detail="a sentence", **more
        )
        places = [
            self.flow.send("dead-letters", key, text, partition=partition, headers=said)
            for _, _, _, text, said in letters[pieces]
        ]
        return f"{places[0][0]}:{places[0][1]}"

    def copies(self) -> list[Message]:
        """What was redriven."""
        return [m for m in self.flow.messages("orders") if "redrive.letter" in headers_of(m)]

    def redriven(self) -> Counter[str]:
        return Counter(headers_of(m)["redrive.letter"] for m in self.copies())

    def markers(self) -> dict[str, str]:
        marks = self.flow.nouns("dead-letter-markers")
        named = [(f"{m.letter_partition}:{m.letter_offset}", m.state) for m in marks]
        assert len(named) == len(dict(named)), "one marker for each letter"
        return dict(named)

    def audited(self) -> list[str]:
        """The letters of all audit entries."""
        entries = self.flow.nouns("audit")
        assert len({e.entry_id for e in entries}) == len(entries)
        return [name for e in entries for name in json.loads(e.detail)["letters"]]


@pytest.fixture
def tool(kafka: str, topic_prefix: str, tmp_path: Path) -> Tool:
    return Tool(kafka, topic_prefix, tmp_path)


class NewIds:
    """The committed ids and one more, as a registry knows it after a writer has moved on."""

    def __init__(self) -> None:
        self._locked = locked_ids()

    def current_id(self, name: str) -> int:
        return self._locked.current_id(name)

    def schema_of(self, schema_id: int) -> Any:
        known = self._locked.current_id("order") if schema_id == NEW_SCHEMA_ID else schema_id
        return self._locked.schema_of(known)


def test_an_order_refused_for_its_schema_and_redriven_is_one_payment(tool: Tool) -> None:
    """Once the schema is known, the letter goes back once; it is one payment and one settlement,
    and the audit finds nothing: neither before the redrive nor after it."""
    flow = tool.flow
    order = flow.order("late")
    key = record_key("shop", "late")
    value = wire_header(NEW_SCHEMA_ID) + flow.encode("order", order)[5:]
    at = flow.send("orders", key, value, headers=[("trace", b"t-1")])
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(at), running=running)
    assert [headers_of(m)["dlq.cause"] for m in flow.messages("dead-letters")] == [
        "unknown_schema_id"
    ]
    sources = Sources(flow.bootstrap, flow.prefix)
    before = verify(sources)
    assert before.exit_code == 0, before.to_json()
    assert before.summary["dead_letters_by_state"] == {"open": 1}

    done = tool.run("redrive", "--cause", "unknown_schema_id", *WHY)
    assert done.code == 0, done.err
    assert "redriven 1 of 1" in done.out
    (copy,) = tool.copies()
    assert (copy.partition(), copy.key(), copy.value()) == (at[0], key, value)
    assert headers_of(copy)["trace"] == "t-1"

    flow.codec = Codec(NewIds())
    end = {at[0]: (copy.offset() or 0) + 1}
    with flow.running_payments() as running:
        flow.wait_consumed(end, running=running)
        (request,) = flow.messages("payment-requests")
        result = flow.send_result(order)
        flow.wait_consumed(ends_of(result), running=running, role="gateway-results")
    assert request.key() == key
    assert len(flow.messages("settlements")) == 1
    assert flow.payments()["late"].status == "captured"
    after = verify(sources, codec=flow.codec)
    assert after.exit_code == 0, after.to_json()
    assert after.summary["dead_letters_by_state"] == {"redriven": 1}


def test_what_is_buried_again_is_redriven_up_to_the_limit(tool: Tool) -> None:
    """A record that cannot be handled comes back with its history, three times and no more."""
    flow = tool.flow
    at = flow.send("orders", record_key("shop", "bad"), b"junk")
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(at), running=running)
        for redrives in range(1, 4):
            assert tool.run("redrive", "--all", *WHY).code == 0
            newest = max((m.offset() or 0) for m in tool.copies())
            flow.wait_consumed({at[0]: newest + 1}, running=running)
            letter = headers_of(flow.messages("dead-letters")[-1])
            assert (letter["dlq.attempts"], letter["dlq.first"]) == (str(redrives), f"{at[0]}:0")
        refused = tool.run("redrive", "--all", *WHY)
    assert refused.code == 1
    assert "redrives_must_not_exceed_limit" in refused.out
    assert set(tool.redriven().values()) == {1}
    assert len(tool.copies()) == 3
    report = verify(Sources(flow.bootstrap, flow.prefix))
    assert report.exit_code == 0, report.to_json()
    assert report.summary["dead_letters_by_state"] == {"redriven": 3, "open": 1}


@pytest.mark.long
def test_a_run_that_is_killed_anywhere_and_run_again_is_one_effect(
    tool: Tool, tmp_path: Path
) -> None:
    """SIGKILL between copies and markers, before the commit and right after it: each letter goes
    back once, with its marker and its entry."""
    names = {tool.bury(f"o{n}") for n in range(6)}
    kills = tmp_path / "kills"
    kills.mkdir()
    for point in KILLED_AT:
        environment = {"PAYSTREAM_FAILPOINTS": point, "PAYSTREAM_FAILPOINTS_DIR": str(kills)}
        killed = tool.run_as_process("redrive", "--all", "--yes", *WHY, environment=environment)
        assert killed.code == -signal.SIGKILL, killed.err
        if point != "redrive.committed":
            assert tool.redriven() == {}, point
    assert failpoints.fired(kills) == dict.fromkeys(KILLED_AT, 1)
    assert tool.run("redrive", "--all", "--yes", *WHY).code == 0
    assert tool.redriven() == dict.fromkeys(names, 1)
    assert tool.markers() == dict.fromkeys(names, "redriven")
    assert sorted(tool.audited()) == sorted(names)


def test_two_runs_at_once_and_one_more_are_one_effect(tool: Tool) -> None:
    """The later run ends the earlier one, which says so; no letter goes back twice."""
    names = {tool.bury(f"o{n}") for n in range(30)}
    # So slow that it is still at it when another command has started on a busy machine.
    slow = ("dead-letters", "redrive", "--all", "--yes", *WHY, "--rate", "0.5")
    with tool.cli.start(*slow) as first:
        wait_until(tool.redriven, WAIT_S, "the first run has begun")
        second = tool.run_as_process("redrive", "--all", "--yes", *WHY)
        assert first.process.wait(30) == 2, first.said
        assert "has taken over" in first.said
    assert second.code == 0, second.err
    assert tool.redriven() == dict.fromkeys(names, 1)
    assert sorted(tool.audited()) == sorted(names)
    third = tool.run("redrive", *sorted(names), "--yes", *WHY)
    assert third.code == 0
    assert "30 selected: 0 to be redriven, 30 done before" in third.out
    assert tool.redriven() == dict.fromkeys(names, 1)


def test_a_run_keeps_its_rate_and_ends_in_good_order_on_ctrl_c(tool: Tool) -> None:
    """Ten letters a second are ten a second; what was begun is finished, and the rest is named."""
    names = {tool.bury(f"o{n}") for n in range(40)}
    words = ("dead-letters", "redrive", "--all", "--yes", *WHY, "--rate", "10")
    with tool.cli.start(*words) as running:
        wait_until(lambda: len(tool.redriven()) >= 15, WAIT_S, "some are redriven")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 130, running.said
        assert "stopped;" in running.said
        assert "are left, run the same command again" in running.said
    times_s = sorted(m.timestamp()[1] / 1000 for m in tool.copies())
    assert 15 <= len(times_s) < 40
    # The first batch goes at once, so a rate is seen from there on.
    per_s = (len(times_s) - 2) / (times_s[-1] - times_s[0])
    assert 5 < per_s < 12, times_s
    assert tool.run("redrive", "--all", "--yes", *WHY).code == 0
    assert tool.redriven() == dict.fromkeys(names, 1)


def test_a_discarded_letter_stays_and_is_closed(tool: Tool) -> None:
    """It is marked with who and why, is not listed as open any more, and is not redriven."""
    gone, kept = tool.bury("gone", cause="order_conflict"), tool.bury("kept")
    before = len(tool.flow.messages("dead-letters"))
    done = tool.run("discard", "--cause", "order_conflict", "--reason", "told the shop")
    assert done.code == 0, done.err
    assert "discarded 1 of 1" in done.out
    assert tool.markers() == {gone: "discarded"}
    (entry,) = tool.flow.nouns("audit")
    assert (entry.action, entry.reason) == ("dead_letters_discard", "told the shop")
    assert entry.actor
    assert json.loads(entry.detail) == {
        "letters": [gone],
        "chosen_by": {"cause": ["order_conflict"]},
    }
    assert len(tool.flow.messages("dead-letters")) == before
    assert "shop:gone" not in tool.run("list").out
    assert "discarded" in tool.run("list", "--state", "discarded").out
    again = tool.run("redrive", gone, *WHY)
    assert (again.code, tool.redriven()) == (1, {})
    assert "letter_must_not_be_discarded" in again.out
    assert tool.run("redrive", kept, *WHY).code == 0
    assert tool.redriven() == {kept: 1}


def test_split_masked_and_torn_letters(tool: Tool) -> None:
    """A large input goes back byte by byte; what was masked or is not whole is refused by name."""
    large = os.urandom(300_000) + b"x" * 20_000_000
    names = {
        "split": tool.bury("split", large.replace(b"4", b"_")),
        "masked": tool.bury("masked", b"pan " + CARD),
        "torn": tool.bury("torn", b"abcdef", chunk_bytes=2, pieces=slice(0, 2)),
    }
    dry = tool.run("redrive", "--all", "--dry-run")
    assert dry.code == 1
    assert "3 selected: 1 to be redriven, 2 refused" in dry.out
    assert "nothing was written" in dry.out
    assert tool.copies() == []
    assert not tool.flow.messages("dead-letter-markers", "read_uncommitted")
    done = tool.run("redrive", "--all", *WHY)
    assert done.code == 1
    assert "bytes_must_be_the_original: card numbers in it were masked" in done.out
    assert f"  {names['torn']}: piece 3 of 3 is missing" in done.out
    (copy,) = tool.copies()
    assert copy.value() == large.replace(b"4", b"_")
    shown = tool.run("show", names["torn"])
    assert "2 of 3" in shown.out
    assert tool.run("redrive", names["masked"], "--masked-too", *WHY).code == 0
    assert tool.redriven() == {names["split"]: 1, names["masked"]: 1}


def test_an_order_whose_token_was_masked_is_never_charged(tool: Tool) -> None:
    """``--masked-too`` does not send it back, and says what is missing; published all the same it
    is rejected by that name."""
    flow = tool.flow
    order = flow.order("o1", instrument_token=CARD.decode())
    name = tool.bury("o1", flow.encode("order", order), cause="card_number_in_field")
    for more in (("--dry-run",), WHY):
        done = tool.run("redrive", name, "--masked-too", *more)
        assert done.code == 1
        assert "instrument_token_must_not_be_masked: its instrument_token was masked" in done.out
    assert tool.redriven() == {}
    with flow.running_payments() as running:
        masked = flow.order("o1", instrument_token="411111******1111")
        flow.wait_consumed(ends_of(flow.send_order(masked)), running=running)
    payment = flow.payments()["o1"]
    assert (payment.status, payment.reason) == ("rejected", "instrument_token_must_not_be_masked")
    assert flow.messages("payment-requests") == []


def test_what_does_not_fit_its_topic_is_refused_and_the_rest_goes(tool: Tool) -> None:
    """A record that is larger than its topic takes, whatever the compression, stops no other."""
    big = tool.bury("big", os.urandom(2_000_000).replace(b"4", b"_"))
    small = tool.bury("small")
    done = tool.run("redrive", "--all", "--yes", *WHY)
    assert done.code == 1, done.err
    assert "record_must_fit_its_topic" in done.out
    assert f"  {big}" in done.out
    assert tool.redriven() == {small: 1}


def test_a_person_reads_lists_and_letters(tool: Tool) -> None:
    """The list is a table with a count, or JSON; show gives fields or bytes."""
    flow = tool.flow
    good = tool.bury("good", flow.encode("order", flow.order("good")), cause="order_conflict")
    bad = tool.bury("bad", b"junk\x1b[2J", headers=[("trace", b"t-1")])
    listed = tool.run("list")
    assert listed.code == 0
    rows = listed.out.splitlines()
    assert rows[0].split() == [
        "letter", "buried", "(UTC)", "cause", "stage", "topic", "key", "bytes", "redriven",
    ]  # fmt: skip
    assert {row.split()[0] for row in rows[1:3]} == {good, bad}
    assert rows[4].split() == ["cause", "stage", "topic", "letters"]
    found = json.loads(tool.run("list", "--key", "shop:bad", "--json").out)
    assert [letter["letter"] for letter in found["letters"]] == [bad]
    assert found["count"] == 1
    assert "matches; their causes: " in tool.run("list", "--cause", "nonsense").out
    assert '"order_id": "good"' in tool.run("show", good).out
    shown = tool.run("show", bad).out
    assert "|junk.[2J|" in shown
    assert "trace: t-1" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("list", "--stage", "nonsense"), "ledger, risk, notifications, webhooks."),
        (("list", "--topic", "nonsense"), "its inputs are gateway-results"),
        (("list", "--since", "yesterday"), "write 2026-11-25T22:00 (UTC)"),
        (("list", "--since", "1h", "--until", "2h"), "no letter can match"),
        (("list", "--key", "shop"), "shop:1001"),
        (("list", "--state", "nonsense"), "open, redriven, discarded or all"),
        (("show", "nonsense"), "as 3:17"),
        (("show", "0:999"), "There is no dead letter 0:999"),
        (("redrive", *WHY), "a filter such as --cause, or --all"),
        (("redrive", "--all", "--key", "a:b", *WHY), "contradict each other"),
        (("redrive", "0:999", *WHY), "There is no dead letter 0:999"),
        (("redrive", "--all"), "Say why with --reason"),
        (("redrive", "--all", *WHY), "add --yes"),
        (("discard", "--all", *WHY), "add --yes"),
        (("list", "--prefix", "nowhere."), "has no topic 'nowhere.dead-letters'"),
        (("list", "--bootstrap-servers", "127.0.0.1:1"), "No Kafka broker answers"),
    ],
    ids=lambda value: " ".join(value[:3])[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_meant_is_one_sentence(
    shared_tool: Tool, words: tuple[str, ...], part: str
) -> None:
    """It says what was wrong and what to do, exits with 2 and has written nothing."""
    done = shared_tool.run(*words)
    assert done.code == 2, done.out
    assert part in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert shared_tool.redriven() == {}
    assert shared_tool.markers() == {}


@pytest.fixture(scope="module")
def shared_tool(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Tool:
    tool = Tool(kafka, f"t-dlq-{os.getpid()}.", tmp_path_factory.mktemp("shared"))
    for n in range(2):
        tool.bury(f"o{n}")
    return tool


def test_on_a_terminal_a_person_is_asked(tool: Tool) -> None:
    """More than one letter is asked about: no writes nothing, yes redrives all of them."""
    names = {tool.bury(f"o{n}") for n in range(3)}
    said, code = typed(tool, "n\n")
    assert "3 letters will be redriven. Go on? [y/N]" in said
    assert "Nothing was redriven." in said
    assert code == 2
    assert tool.redriven() == {}
    said, code = typed(tool, "y\n")
    assert code == 0, said
    assert "redriven 3 of 3" in said
    assert tool.redriven() == dict.fromkeys(names, 1)


def typed(tool: Tool, answer: str) -> tuple[str, int]:
    """The command in a terminal, where somebody types this."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "dead-letters", "redrive", "--all", *WHY],
        env={**tool.cli._env(None), "TERM": "xterm", "COLUMNS": "120"},
        cwd=tool.cli.cwd,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    said, deadline, answered = b"", time.monotonic() + 60, False
    try:
        while time.monotonic() < deadline:
            try:
                said += os.read(mine, 65_536)
            except OSError:
                break  # the terminal's other side has gone
            if b"Go on?" in said and not answered:
                os.write(mine, answer.encode())
                answered = True
        return said.decode(), process.wait(30)
    finally:
        process.kill()
        os.close(mine)
