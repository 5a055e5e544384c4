"""What a person reads when something outside is wrong: one sentence, no traceback, soon."""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.support.cli import Cli, Done
from tests.support.ports import free_port
from topics.catalogue import TopicSettings, build_catalogue
from topics.provisioning import provision

pytestmark = pytest.mark.integration

# Ten seconds are waited for a broker; the rest is a busy machine's imports.
SECONDS_MAX = 30.0
SUBMIT: tuple[str, ...] = (
    "order",
    "submit",
    "--merchant",
    "m",
    "--order-id",
    "1",
    "--amount",
    "1.00",
)
SUBMIT += ("--currency", "GBP", "--token", "tok_ok")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def one_sentence(done: Done, *parts: str, code: int = 2) -> None:
    """It failed by saying what was wrong, and nothing else."""
    said = done.err.strip()
    assert done.code == code, (done.out, said)
    assert "Traceback" not in done.err + done.out
    # A warning of a library, or a client's own lines, would be more than one.
    assert len(said.splitlines()) == 1, said
    for part in parts:
        assert part in said
    assert done.seconds < SECONDS_MAX


@pytest.mark.long
def test_a_broker_that_is_away_is_told(cli: Cli) -> None:
    """The sentence names the address that did not answer and how to name another."""
    address = f"127.0.0.1:{free_port()}"
    code_of = {
        ("run", "payments", "--metrics-port", "0"): 2,
        ("topics", "plan"): 2,
        ("topics", "apply"): 2,
        SUBMIT: 2,
        ("verify", "--no-ledger"): 3,
        ("trace", "m:1", "--no-ledger"): 3,
    }
    # Each waits for up to ten seconds: all at once.
    with ThreadPoolExecutor(len(code_of)) as terminals:
        asked = {
            words: terminals.submit(
                cli.run, *words, environment={"PAYSTREAM_BOOTSTRAP_SERVERS": address}
            )
            for words in code_of
        }
    for words, code in code_of.items():
        one_sentence(asked[words].result(), address, "--bootstrap-servers", code=code)


@pytest.mark.parametrize("command", ["up", "run"])
def test_a_taken_metrics_port_is_told_before_anything_starts(
    cli: Cli, taken_port: int, command: str
) -> None:
    """No broker is started, or asked, for a run that could not be watched."""
    words = ("up",) if command == "up" else ("run", "ledger")
    done = cli.run(*words, "--metrics-port", str(taken_port))
    one_sentence(done, f"127.0.0.1:{taken_port}", "--metrics-port")
    assert "Kafka" not in done.out
    assert not (cli.state_dir / "kafka").exists()


@pytest.mark.parametrize(
    ("words", "lock", "said"),
    [
        (("up",), "up.lock", "another `paystream up` runs over"),
        (("run", "ledger"), "ledger.lock", "ledger workers run over"),
    ],
    ids=["up", "run"],
)
def test_a_second_one_is_told_of_the_first_and_not_of_its_port(
    cli: Cli, taken_port: int, words: tuple[str, ...], lock: str, said: str
) -> None:
    """Another port would only lead to the next refusal."""
    cli.state_dir.mkdir(parents=True)
    with (cli.state_dir / lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = cli.run(*words, "--metrics-port", str(taken_port))
    one_sentence(done, said)
    assert "--metrics-port" not in done.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("orders", "import", "nowhere.csv"), "nowhere.csv cannot be read"),
        (("orders", "import", "."), "cannot be read"),
        (("demo", "--orders", "nowhere.csv"), "nowhere.csv cannot be read"),
        (("demo", "--faults", "nowhere.json"), "nowhere.json"),
        (("up", "--faults", "nowhere.json"), "nowhere.json"),
        (("simulator", "--faults", "nowhere.json"), "nowhere.json"),
        (("up", "--state-dir", "/proc/nowhere", "--metrics-port", "0"), "/proc/nowhere"),
        (("simulator", "--books", "/proc/nowhere/books"), "/proc/nowhere"),
        (("run", "payments", "--bootstrap-servers", "kafka-1:9092"), "--node-id"),
        (("run", "payments", "--node-id", "app 7"), "node_id"),
        (("schemas", "register"), "PAYSTREAM_SCHEMA_REGISTRY_URL"),
        (("topics", "plan", "--prefix", "eu/"), "topic_prefix"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_a_file_or_an_option_that_cannot_be_used_is_told(
    cli: Cli, words: tuple[str, ...], part: str
) -> None:
    """The sentence names it; nothing has been started."""
    done = cli.run(*words)
    one_sentence(done, part)
    assert done.out == ""
    assert not cli.processes()


def test_wrong_settings_are_told(cli: Cli) -> None:
    """A file that is not TOML, a value of another kind and a file that is not there."""
    (cli.cwd / "bad.toml").write_text("partitions = [")
    one_sentence(
        cli.run("up", environment={"PAYSTREAM_CONFIG": "bad.toml"}), "bad.toml cannot be read"
    )
    one_sentence(
        cli.run("up", environment={"PAYSTREAM_CONFIG": "no.toml"}), "no.toml, which is not a file"
    )
    one_sentence(
        cli.run("run", "ledger", environment={"PAYSTREAM_RETRY_MAX": "often"}),
        "PAYSTREAM_RETRY_MAX",
    )
    one_sentence(
        cli.run("verify", environment={"PAYSTREAM_LEDGER_URL": "books"}),
        "'books' is no database",
        code=3,
    )


def test_an_order_that_nobody_knows_is_told(cli: Cli, kafka: str, topic_prefix: str) -> None:
    """Exit code 1 tells an unknown order from one that cannot be looked for."""
    cluster = {"PAYSTREAM_BOOTSTRAP_SERVERS": kafka, "PAYSTREAM_TOPIC_PREFIX": topic_prefix}
    one_sentence(cli.run("trace", "m:1", environment=cluster), topic_prefix, code=3)
    assert (
        cli.run("topics", "apply", environment={**cluster, "PAYSTREAM_PARTITIONS": "2"}).code == 0
    )
    options = ("--no-ledger", "--no-gateway")
    one_sentence(cli.run("trace", "m:1", *options, environment=cluster), "order m:1", code=1)
    one_sentence(cli.run("trace", "m", *options, environment=cluster), "as in shop:1001")


def test_workers_without_topics_are_told_how_to_make_them(
    cli: Cli, kafka: str, topic_prefix: str
) -> None:
    """`run` on a cluster that was never provisioned, or otherwise, consumes nothing."""
    cluster = {
        "PAYSTREAM_BOOTSTRAP_SERVERS": kafka,
        "PAYSTREAM_TOPIC_PREFIX": topic_prefix,
        "PAYSTREAM_METRICS_PORT": "0",
    }
    one_sentence(cli.run("run", "payments", environment=cluster), "paystream topics apply")
    assert (
        cli.run("topics", "apply", environment={**cluster, "PAYSTREAM_PARTITIONS": "2"}).code == 0
    )
    one_sentence(cli.run("run", "payments", environment=cluster), "PAYSTREAM_PARTITIONS")


def test_a_second_set_of_workers_over_one_directory_is_refused(
    cli: Cli, kafka: str, topic_prefix: str
) -> None:
    """Two under one name would fence each other for ever; the first goes on."""
    cluster = {
        "PAYSTREAM_BOOTSTRAP_SERVERS": kafka,
        "PAYSTREAM_TOPIC_PREFIX": topic_prefix,
        "PAYSTREAM_METRICS_PORT": "0",
        "PAYSTREAM_PARTITIONS": "2",
    }
    assert cli.run("topics", "apply", environment=cluster).code == 0
    with cli.start("run", "ledger", environment=cluster) as first:
        first.wait_for("1 ledger workers as node local")
        one_sentence(cli.run("run", "ledger", environment=cluster), "PAYSTREAM_STATE_DIR")
        first.interrupt()
        assert first.ended() == 0
    cli.wait_until_nothing_runs(5.0)
    assert cli.temporary_files() == []


def test_the_simulator_tells_the_port_it_took(cli: Cli) -> None:
    """Port 0 is answered with an address that can be called."""
    with cli.start("simulator", "--port", "0") as simulator:
        simulator.wait_for("simulator on http://127.0.0.1:")
        port = int(simulator.said.split("127.0.0.1:")[1].split(",")[0])
        assert port > 0
        simulator.interrupt()
        assert simulator.ended() == 0


def test_the_simulator_tells_of_a_taken_port_alone(cli: Cli, taken_port: int) -> None:
    """No address is promised before it can be called."""
    done = cli.run("simulator", "--port", str(taken_port))
    one_sentence(done, f"port {taken_port}")
    assert done.out == ""


def test_topics_plan_tells_a_script_what_is_to_do(cli: Cli, kafka: str, topic_prefix: str) -> None:
    """3 before, 0 after, and 2 for what is refused; applying again changes nothing."""
    cluster = {"PAYSTREAM_BOOTSTRAP_SERVERS": kafka, "PAYSTREAM_TOPIC_PREFIX": topic_prefix}
    plan = ("topics", "plan", "--partitions", "2")
    before = cli.run(*plan, environment=cluster)
    assert before.code == 3, before
    assert f"{topic_prefix}orders" in before.out
    assert cli.run("topics", "apply", "--partitions", "2", environment=cluster).code == 0
    assert cli.run(*plan, environment=cluster).code == 0
    assert cli.run("topics", "apply", "--partitions", "2", environment=cluster).code == 0
    refused = cli.run("topics", "apply", "--partitions", "3", environment=cluster)
    assert refused.code == 2
    assert "Traceback" not in refused.err
    assert "partitions" in refused.err + refused.out


def test_topics_are_checked_although_a_crash_left_a_transaction_open(
    cli: Cli, kafka: str, topic_prefix: str
) -> None:
    """Offsets of an open transaction hide those of before it from nobody: `up` starts at once."""
    catalogue = build_catalogue(TopicSettings(prefix=topic_prefix, partitions=2))
    provision(kafka, catalogue)
    crashed = {"transactional.id": f"{topic_prefix}crashed", "log_level": 0}
    producer = Producer({"bootstrap.servers": kafka, **crashed})
    worker = Consumer({"bootstrap.servers": kafka, "group.id": catalogue.group("payments")})
    try:
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.send_offsets_to_transaction(
            [TopicPartition(catalogue.name("orders"), 0, 0)], worker.consumer_group_metadata(), 30
        )
        cluster = {"PAYSTREAM_BOOTSTRAP_SERVERS": kafka, "PAYSTREAM_TOPIC_PREFIX": topic_prefix}
        done = cli.run("topics", "apply", "--partitions", "2", environment=cluster)
        producer.abort_transaction(30)
    finally:
        worker.close()
    assert done.code == 0, done


def test_the_committed_schemas_are_in_order(cli: Cli) -> None:
    """What CI asks of every change."""
    done = cli.run("schemas", "check")
    assert done.code == 0
    assert "compatible" in done.out
