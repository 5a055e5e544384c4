"""``paystream up`` as it is used: orders from other terminals, crashes, Ctrl-C, and again."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.house import TOP
from tests.support.cli import Cli, Terminal
from tests.support.raw_record import ZSTD, produce_raw, record_bytes, zeros
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

UP = ("up", "--metrics-port", "0", "--partitions", "3")
RUNNING = "In another terminal"
# Workers drain in 45 s at most, the broker stops in 20 s; a quiet machine takes 3 s for both.
STOP_S = 90.0
# After a death groups settle within half a minute and open transactions end in twenty seconds; a
# machine that is busy with others takes several times that.
WHOLE_S = 240.0
# A process that has been told to end is gone at once, unless the machine has no time for it.
GONE_S = 30.0


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


SUBMIT = ("order", "submit", "--currency", "GBP", "--token", "tok_ok")


def submit(
    cli: Cli,
    order_id: str,
    environment: Mapping[str, str] | None = None,
    *,
    merchant: str = "shop",
) -> None:
    done = cli.run(
        *SUBMIT,
        *("--merchant", merchant, "--order-id", order_id, "--amount", "12.50"),
        environment=environment,
    )
    assert done.code == 0, done


def metrics(up: Terminal) -> dict[str, float]:
    """Each series with its labels, and its value."""
    with urllib.request.urlopen(up.value("metrics"), timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def whole(cli: Cli, up: Terminal, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The summary of `verify` in another terminal, once it finds nothing; if it goes on finding
    something, all that can be known is shown."""
    judged = []

    def judge() -> bool:
        judged.append(cli.run("verify", "--wait", "30", "--json", environment=environment))
        # What is broken does not mend itself.
        assert judged[-1].code != 1, judged[-1]
        return judged[-1].code == 0

    try:
        wait_until(judge, WHOLE_S, "all is whole")
    except AssertionError as late:
        places = [Path(place) for place in (environment or {}).values()] or [cli.state_dir]
        log = (places[0] / "workers.log").read_text(errors="replace")[-6_000:]
        hanging = cli.run("transactions", "list", environment=environment)
        said = f"{judged[-1]}\n{hanging}\n{up.said[-3_000:]}\n{log}"
        raise AssertionError(f"{late}\n{said}") from None
    summary: dict[str, Any] = json.loads(judged[-1].out)["summary"]
    return summary


def stopped_clean(cli: Cli, up: Terminal) -> None:
    """Ctrl-C drained it: no process and no temporary file is left."""
    up.interrupt()
    assert up.ended(STOP_S) == 0, up.said
    assert "draining" in up.said
    assert up.said.rstrip().endswith("stopped")
    assert "Traceback" not in up.said
    cli.wait_until_nothing_runs(GONE_S)
    assert cli.temporary_files() == []


@pytest.mark.long
def test_a_day_with_up(cli: Cli) -> None:
    """Orders come from other terminals, a worker crashes, Ctrl-C drains, the next up goes on."""
    with cli.start(*UP) as up:
        up.wait_for(RUNNING)
        assert re.fullmatch(r"127\.0\.0\.1:\d+", up.value("broker"))
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", up.value("simulator"))
        assert up.value("database") == f"sqlite:///{cli.state_dir}/ledger.sqlite"
        # Nobody has to name the broker, the books or the gateway.
        submit(cli, "1001")
        (cli.cwd / "more.jsonl").write_text(
            "\n".join(
                json.dumps(
                    {
                        "merchant_id": "shop",
                        "order_id": f"file-{i}",
                        "amount_minor": 100 + i,
                        "currency": "GBP",
                        "instrument_token": "tok_ok",
                    }
                )
                for i in range(5)
            )
        )
        assert cli.run("orders", "import", "more.jsonl").code == 0
        assert whole(cli, up)["payments"] == {"captured": 6}
        traced = cli.run("trace", "shop:1001")
        assert traced.code == 0
        assert "captured" in traced.out
        # What a person runs on this machine by mistake is refused, and harms nothing.
        again = cli.run(*UP)
        assert again.code == 2
        assert "another `paystream up`" in again.err

        seen = metrics(up)
        counted = 'paystream_records_total{stage="payments",topic="orders"}'
        assert seen[counted] == 6
        assert any(name.startswith("paystream_consumer_lag{") for name in seen)
        restarts = 'paystream_worker_restarts{worker="payments-0"}'
        assert seen[restarts] == 0
        worker = worker_of(up, "payments")
        # Frozen, it dies of nothing: only that nothing is committed tells of it.
        os.kill(worker, signal.SIGSTOP)
        submit(cli, "1004")
        stalled = 'paystream_consumer_stalled_seconds{group="payments",topic="orders"}'
        # What waits in a tier does so for its time, by design.
        tier = re.compile("paystream_consumer_stalled_seconds.*payment-(retry|inquiry|timer)-")
        assert not any(tier.match(name) for name in seen)
        wait_until(lambda: metrics(up)[stalled] > 5, 60, "an order waits for a stage that stands")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: metrics(up)[restarts] >= 1, 60, "the supervisor counts the restart")
        # With its time, on the terminal and in the log of the workers.
        ended = "payments-0 ended with code -9; started again in"
        assert re.search(rf"^\d\d:\d\d:\d\d {ended}", up.said, re.MULTILINE), up.said
        log = cli.state_dir / "workers.log"
        began = "payments-0 runs as process "
        wait_until(lambda: log.read_text().count(began) == 2, 60, "its next one is started")
        assert f"{began}{worker_of(up, 'payments')}\n" in log.read_text()
        assert re.search(rf"^\d{{4}}-.* WARNING .*: {ended}", log.read_text(), re.MULTILINE)
        submit(cli, "1002")
        assert whole(cli, up)["payments"] == {"captured": 8}
        wait_until(lambda: metrics(up)[stalled] == 0, 60, "nothing waits any more")
        stopped_clean(cli, up)

    assert not (cli.state_dir / "up.json").exists()
    with cli.start(*UP) as up:
        up.wait_for(RUNNING)
        submit(cli, "1001")  # it is the same order: known, and charged before
        submit(cli, "1003")
        summary = whole(cli, up)
        assert summary["payments"] == {"captured": 9}
        assert summary["orders_repeated"] == 1
        assert summary["gateway"]["charges"] == 9
        stopped_clean(cli, up)


def examples() -> list[str]:
    """The Python programs of the documents for clients; what is only a part of one is left out."""
    texts = [(TOP / name).read_text("utf-8") for name in ("README.md", "docs/clients.md")]
    found = [e for text in texts for e in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    return [each for each in dict.fromkeys(found) if "\nwith " in each]


@pytest.mark.long
def test_the_programs_of_the_documents_run_beside_up(cli: Cli) -> None:
    """As they stand, wherever its broker listens: orders and a refund are published, what becomes
    of them is heard."""
    followers = {
        "SettlementSubscriber(": ["py-1 1250 GBP", "1001 1250 GBP", "1001 -500 GBP"],
        "EventSubscriber(": ["shop-a py-1 order_conflict amount_must_not_change"],
    }
    with cli.start(*UP) as up:
        up.wait_for(RUNNING)
        publish = [each for each in examples() if "Subscriber(" not in each]
        assert len(publish) == 3
        for program in publish:
            done = cli.start_program(program)
            assert done.ended() == 0, done.said
        submit(cli, "py-1", merchant="shop-a")
        refused = ("--amount", "99.00", "--wait", "60")
        other = cli.run(*SUBMIT, "--merchant", "shop-a", "--order-id", "py-1", *refused)
        assert (other.code, other.out.split()[-1]) == (1, "captured"), other
        assert "rejected  amount_must_not_change" in other.out, other
        for name, said in followers.items():
            (program,) = [each for each in examples() if name in each]
            running = cli.start_program(program)
            for text in said:
                running.wait_for(text)
            running.interrupt()
            running.ended()
        stopped_clean(cli, up)


@pytest.mark.long
def test_a_lost_ledger_is_made_anew_by_the_next_up(cli: Cli, tmp_path: Path) -> None:
    """The guide's way without a backup: settlements and decisions come back from the topics, to the
    same hashes, and a rebuild beside has nothing to compare with."""

    def books() -> dict[str, Any]:
        shown = cli.run("ledger", "verify", "--json")
        assert shown.code == 0, shown
        found: dict[str, Any] = json.loads(shown.out)
        return found

    def decision_waits() -> bool:
        judged = json.loads(cli.run("verify", "--json").out)
        return [each["name"] for each in judged["findings"]] == ["decision_not_booked"]

    def sealed() -> bool:
        return sum(head["entries"] for head in books()["heads"]) == 3

    with cli.start(*UP) as up:
        up.wait_for(RUNNING)
        submit(cli, "1001")
        submit(cli, "1002")
        whole(cli, up)
        lines = ("suspense:simulator=5.00:GBP", "gateway_receivable:simulator=-5.00:GBP")
        posted = cli.run("ledger", "post", *lines, "--date", "2024-01-02", "--reason", "found")
        assert posted.code == 0, posted
        wait_until(sealed, WHOLE_S, "all three entries are sealed")
        before = books()["heads"]
        stopped_clean(cli, up)
    for lost in cli.state_dir.glob("ledger.sqlite*"):
        lost.unlink()
    with cli.start(*UP) as up:
        up.wait_for(RUNNING)
        wait_until(decision_waits, WHOLE_S, "all but what the decision posts is booked again")
        assert (books()["entries"], books()["unpublished_decisions"]) == (2, 1)
        assert cli.run("ledger", "publish").code == 0
        whole(cli, up)
        wait_until(sealed, WHOLE_S, "all three entries are sealed again")
        assert books()["heads"] == before
        rebuilt = cli.run(
            *("ledger", "rebuild", "--into", f"sqlite:///{tmp_path / 'beside.sqlite'}"),
            *("--ledger-url", f"sqlite:///{tmp_path / 'lost.sqlite'}"),
        )
        assert rebuilt.code == 0, rebuilt
        assert rebuilt.out.rstrip().endswith("there is no live ledger any more")
        stopped_clean(cli, up)


@pytest.mark.long
def test_what_no_client_of_ours_would_write_is_refused_and_holds_up_nobody(cli: Cli) -> None:
    """A header that is not UTF-8, some kilobytes that unfold to more than the client's default
    bound, and some to more than any of ours: each has its letter, and the order behind them is
    settled."""
    with cli.start(*UP[:-1], "1") as up:
        up.wait_for(RUNNING)
        named = [(b"Gr\xf6\xdfe", b"v")]
        produce_raw(up.value("broker"), "orders", record_bytes(b"shop:odd", b"junk", named))
        produce_raw(up.value("broker"), "orders", zeros(110), ZSTD)
        produce_raw(up.value("broker"), "orders", zeros(300), ZSTD)
        submit(cli, "1001")
        summary = whole(cli, up)
        assert summary["payments"] == {"captured": 1}
        letters = cli.run("dead-letters", "list")
        assert "not_wire_format    payments  orders        1" in letters.out, letters
        assert "unknown_schema_id  payments  orders        1" in letters.out, letters
        assert "unreadable_batch   payments  orders        1" in letters.out, letters
        again = ("dead-letters", "redrive", "--cause", "unreadable_batch", "--reason", "try")
        refused = cli.run(*again, "--yes")
        assert refused.code == 1, refused
        assert "batch_must_be_readable" in refused.out + refused.err, refused
        judged = json.loads(cli.run("verify", "--json").out)
        assert [f["name"] for f in judged["findings"]] == ["headers_unreadable"]
        traced = cli.run("trace", "shop:odd")
        assert "its headers cannot be read" in traced.out, traced
        assert "cannot be decompressed" in traced.err, traced
        stopped_clean(cli, up)


@pytest.mark.long
def test_a_killed_up_takes_everything_with_it_and_loses_nothing(cli: Cli) -> None:
    """SIGKILL of `up` ends workers, simulator and broker; the next one carries on."""
    place = str(cli.folder / "a place")
    here = {"PAYSTREAM_STATE_DIR": place}
    with cli.start(*UP, "--state-dir", place) as up:
        up.wait_for(RUNNING)
        up.wait_for(f"export PAYSTREAM_STATE_DIR='{place}'")
        for index in range(3):
            submit(cli, f"k-{index}", environment=here)
        up.process.kill()
        up.ended()
        # A worker whose broker went with its supervisor still tries to drain, within 30 s.
        cli.wait_until_nothing_runs(30.0 + STOP_S)
        assert cli.temporary_files() == []
    with cli.start(*UP, "--state-dir", place) as up:
        up.wait_for(RUNNING)
        summary = whole(cli, up, here)
        assert summary["payments"] == {"captured": 3}
        assert summary["gateway"]["charges"] == 3
        assert cli.run("transactions", "list", environment=here).code == 0
        stopped_clean(cli, up)


@pytest.mark.long
def test_up_brings_back_a_simulator_and_a_kafka_that_died(cli: Cli) -> None:
    """Both come back where they were, which is said, and the terminal stays readable."""
    with cli.start(*UP) as up:
        up.wait_for(RUNNING)
        submit(cli, "d-1")
        brokers = json.loads((cli.state_dir / "kafka" / "running.json").read_text())
        simulator = next(p for p, c in cli.processes().items() if "gateways.simulator" in c)
        for pid, said in (
            (simulator, "The simulator answers again"),
            (brokers["1"]["pid"], "Kafka serves again"),
        ):
            os.kill(pid, signal.SIGKILL)
            up.wait_for(said)
        submit(cli, "d-2")
        summary = whole(cli, up)
        assert summary["payments"] == {"captured": 2}
        assert summary["gateway"]["charges"] == 2
        # The client's own lines about each connection that failed.
        for text in (up.said, (cli.state_dir / "workers.log").read_text()):
            assert re.search(r"%\d\|[\d.]+\|FAIL", text) is None
        stopped_clean(cli, up)
    # The topics keep their count, which need not be given again, and cannot be another.
    other = cli.run("up", "--metrics-port", "0", "--partitions", "4")
    assert other.code == 2
    assert "have 3 partitions, not 4" in other.err
    with cli.start("up", "--metrics-port", "0") as up:
        up.wait_for("topics of 3 partitions")
        up.interrupt()
        assert up.ended(STOP_S) in (130, 0), up.said


@pytest.mark.parametrize(
    "moment",
    [
        "Starting Kafka",
        "Kafka serves",
        pytest.param("Starting workers", marks=pytest.mark.long),
    ],
)
def test_ctrl_c_while_starting_leaves_nothing(cli: Cli, moment: str) -> None:
    """A start is left at once, whatever it was doing, and twice is not worse than once."""
    with cli.start(*UP) as up:
        up.wait_for(moment)
        up.interrupt()
        up.interrupt()
        assert up.ended(STOP_S) in (130, 0), up.said
        assert "Traceback" not in up.said
        cli.wait_until_nothing_runs(GONE_S)
        assert cli.temporary_files() == []
        assert not (cli.state_dir / "up.json").exists()


def worker_of(up: Terminal, stage: str) -> int:
    """The process id of a stage's worker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            told = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # Its parent, and when it was started: process ids begin anew when they have run out.
        if int(told[1]) == up.process.pid and line.endswith(f"\0{stage}-0\0".encode()):
            found.append((int(told[19]), int(folder.name)))
    return max(found)[1]
