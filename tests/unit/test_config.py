"""Where settings come from, and what is said of one that is wrong."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.audit.ledger_copy import LedgerReader
from pipeline.config import RUNNING_FILE, load_settings
from pipeline.domain.policy import Policy
from pipeline.embedded.processes import this_process
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger
from pipeline.runtime.policy_options import policy_of


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home, a working directory and an environment in which nothing is set."""
    for name in list(os.environ):
        if name.startswith("PAYSTREAM_") or name == "XDG_STATE_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def running(state_dir: Path, **said: object) -> None:
    """What `paystream up` leaves in its state directory while it runs."""
    state_dir.mkdir(parents=True, exist_ok=True)
    known = {
        **asdict(this_process()),
        "bootstrap_servers": "127.0.0.1:5555",
        "gateway_url": "http://127.0.0.1:6666",
        "ledger_url": "sqlite:////books",
        "topic_prefix": "up-",
        "partitions": 3,
    }
    (state_dir / RUNNING_FILE).write_text(json.dumps({**known, **said}))


def test_options_go_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each source is heard only where none before it has spoken."""
    Path("paystream.toml").write_text("partitions = 5\nretry_max = 6\ninquiry_max = 7\n")
    monkeypatch.setenv("PAYSTREAM_PARTITIONS", "8")
    monkeypatch.setenv("PAYSTREAM_RETRY_MAX", "9")
    settings = load_settings(partitions=10, retry_max=None)
    assert settings.partitions == 10
    assert settings.retry_max == 9
    assert settings.inquiry_max == 7
    assert settings.send_within_ms == 60_000


def test_a_named_file_replaces_the_one_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAYSTREAM_CONFIG says which file is read, and no other is."""
    Path("paystream.toml").write_text("partitions = 5\nretry_max = 6\n")
    (tmp_path / "other.toml").write_text("partitions = 4\n")
    monkeypatch.setenv("PAYSTREAM_CONFIG", str(tmp_path / "other.toml"))
    assert load_settings().partitions == 4
    assert load_settings().retry_max == 5


def test_commands_find_the_flow_that_runs_here() -> None:
    """Beside a running `up` no option is needed: not the broker, not the books, not the gateway."""
    running(Path.home() / ".local" / "state" / "paystream")
    settings = load_settings()
    assert settings.bootstrap_servers == "127.0.0.1:5555"
    assert settings.gateway_url == "http://127.0.0.1:6666"
    assert settings.books_url() == "sqlite:////books"
    assert (settings.topic_prefix, settings.partitions) == ("up-", 3)


@pytest.mark.parametrize("source", ["environment", "file", "option"])
def test_a_flow_is_found_in_the_state_directory_that_was_named(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the state directory was given, the flow that runs over it is found."""
    there = tmp_path / "there"
    running(there)
    if source == "environment":
        monkeypatch.setenv("PAYSTREAM_STATE_DIR", str(there))
    elif source == "file":
        Path("paystream.toml").write_text(f"state_dir = {str(there)!r}\n")
    given = {"state_dir": there} if source == "option" else {}
    assert load_settings(**given).bootstrap_servers == "127.0.0.1:5555"


def test_a_flow_that_was_killed_is_not_found_though_its_pid_is_in_use() -> None:
    """A stale note names a process of another start: its addresses are nobody's any more."""
    running(Path.home() / ".local" / "state" / "paystream", started="another boot:1")
    assert load_settings().bootstrap_servers == "127.0.0.1:9092"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "started": "y"}'])
def test_a_damaged_note_of_a_running_flow_is_no_flow(text: str) -> None:
    """Half a file, or one of another version, stops no command."""
    state_dir = Path.home() / ".local" / "state" / "paystream"
    state_dir.mkdir(parents=True)
    (state_dir / RUNNING_FILE).write_text(text)
    assert load_settings().bootstrap_servers == "127.0.0.1:9092"


def test_another_cluster_is_not_judged_by_the_books_of_this_machine() -> None:
    """Naming another broker leaves out all that the running flow says of itself."""
    running(Path.home() / ".local" / "state" / "paystream")
    settings = load_settings(bootstrap_servers="kafka-1:9092")
    assert settings.gateway_url == "http://127.0.0.1:8400"
    assert settings.topic_prefix == ""
    assert settings.books_url() != "sqlite:////books"


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "a b"])
def test_the_books_are_in_the_state_directory_whatever_its_name(tmp_path: Path, name: str) -> None:
    """What has a meaning in a URL is quoted, and read back as it was, by flow and audit alike."""
    folder = tmp_path / name
    folder.mkdir()
    url = load_settings(state_dir=folder).books_url()
    open_ledger(url).dispose()
    assert (folder / "ledger.sqlite").is_file()
    reader = LedgerReader(url)
    try:
        assert reader.entries_of(["unknown"]) == []
    finally:
        reader.close()


def test_the_state_directory_is_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path and a tilde become one absolute path, and the books' address with it."""
    monkeypatch.setenv("PAYSTREAM_STATE_DIR", "here")
    assert load_settings().books_url() == f"sqlite:///{tmp_path}/here/ledger.sqlite"
    monkeypatch.setenv("PAYSTREAM_STATE_DIR", "~/there")
    assert load_settings().state_dir == tmp_path / "home" / "there"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PAYSTREAM_PARTITIONS", "many", "partitions"),
        ("PAYSTREAM_PARTITIONS", "0", "greater than or equal to 1, not '0'"),
        ("PAYSTREAM_LOG_LEVEL", "LOUD", "log_level"),
        ("PAYSTREAM_METRICS_PORT", "70000", "metrics_port"),
        ("PAYSTREAM_TOPIC_PREFIX", "eu/", "topic_prefix"),
        ("PAYSTREAM_NODE_ID", "app 7", "node_id"),
        ("PAYSTREAM_BOOTSTRAP_SERVER", "a:1", "did you mean PAYSTREAM_BOOTSTRAP_SERVERS?"),
        ("PAYSTREAM_RETRY_MAXX", "1", "did you mean PAYSTREAM_RETRY_MAX?"),
        ("PAYSTREAM_CONFIG", "/nowhere.toml", "/nowhere.toml, which is not a file"),
    ],
)
def test_a_wrong_setting_is_named(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says which setting, where it can be set, and what is wrong with it."""
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        load_settings()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"partitions = [", "paystream.toml cannot be read"),
        (b"\xff\xfe", "paystream.toml cannot be read"),
        (b"partition = 3", "'partition', which paystream.toml sets; did you mean partitions?"),
        (b"colour = 3", "'colour', which paystream.toml sets; remove it"),
        (b'partitions = "x"', "partitions in paystream.toml"),
    ],
)
def test_a_wrong_file_is_named(text: bytes, message: str) -> None:
    """The file is named, and the line of it that cannot be meant."""
    Path("paystream.toml").write_bytes(text)
    with pytest.raises(UserError) as caught:
        load_settings()
    assert message in str(caught.value)


def test_other_programs_may_use_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a near miss of a setting is refused; PAYSTREAM_OWNER=me harms nobody."""
    monkeypatch.setenv("PAYSTREAM_OWNER", "me")
    monkeypatch.setenv("PAYSTREAM_CACHE_DIR", "/somewhere")
    assert load_settings().partitions == 12


def test_how_long_a_review_may_take_reaches_the_workers() -> None:
    """The setting is what payments are decided by; without it the policy's own default."""
    given = load_settings(review_ms=3_600_000)
    assert policy_of(given.worker_options()).review_ms == 3_600_000
    assert policy_of(load_settings().worker_options()).review_ms == Policy().review_ms


def test_the_flow_that_runs_here_wants_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a production cluster is reached is no way to this machine's own broker."""
    running(Path.home() / ".local" / "state" / "paystream")
    monkeypatch.setenv("PAYSTREAM_KAFKA", '{"security.protocol": "SSL"}')
    assert load_settings().kafka == {}
    other = load_settings(bootstrap_servers="kafka-1:9093")
    assert other.kafka == {"security.protocol": "SSL"}
    monkeypatch.delenv("PAYSTREAM_KAFKA")
    load_settings()
