"""What an embedded broker is told, and which folder it accepts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.embedded import kafka, processes
from pipeline.embedded.cache import cache_dir
from pipeline.embedded.kafka_config import BrokerPorts, server_properties
from pipeline.embedded.ports import free_ports, is_free
from pipeline.errors import UserError

THREE = [BrokerPorts(1, 20001, 20002), BrokerPorts(2, 20003, 20004), BrokerPorts(3, 20005, 20006)]


def settings_of(nodes: list[BrokerPorts], **extra: str) -> dict[str, str]:
    text = server_properties(nodes[0], nodes, Path("/data/log"), extra)
    return dict(line.split("=", 1) for line in text.splitlines())


def test_every_listener_is_on_the_loopback_interface() -> None:
    """Nobody else on the network reaches an embedded broker."""
    settings = settings_of(THREE)
    addresses = settings["listeners"] + "," + settings["advertised.listeners"]
    assert all("://127.0.0.1:" in address for address in addresses.split(","))


def test_three_brokers_keep_what_was_acknowledged_when_one_dies() -> None:
    """Three copies, two of which must agree; a single broker has one copy of everything."""
    for prefix in ("", "transaction.state.log."):
        replicas = "default.replication.factor" if not prefix else f"{prefix}replication.factor"
        in_sync = "min.insync.replicas" if not prefix else f"{prefix}min.isr"
        three, one = settings_of(THREE), settings_of(THREE[:1])
        assert (three[replicas], three[in_sync]) == ("3", "2")
        assert (one[replicas], one[in_sync]) == ("1", "1")


def test_a_given_setting_wins() -> None:
    """Tests can change any setting of a broker."""
    assert settings_of(THREE, **{"message.max.bytes": "5"})["message.max.bytes"] == "5"


def test_a_state_file_with_a_recycled_pid_names_no_broker(tmp_path: Path) -> None:
    """After a crash of the machine, whoever has the broker's old pid is left alone."""
    nodes = [asdict(THREE[0])]
    (tmp_path / kafka.CLUSTER_FILE).write_text(json.dumps({"cluster_id": "x", "nodes": nodes}))
    recycled = {"1": {"pid": os.getpid(), "started": "another boot:1"}}
    (tmp_path / kafka.STATE_FILE).write_text(json.dumps(recycled))
    assert kafka.running_kafka(tmp_path) is None
    kafka.stop_kafka(tmp_path)
    assert not (tmp_path / kafka.STATE_FILE).exists()


def test_a_running_broker_is_found_by_its_state_file(tmp_path: Path) -> None:
    """The pid with its true start time names the broker's address."""
    nodes = [asdict(THREE[0])]
    (tmp_path / kafka.CLUSTER_FILE).write_text(json.dumps({"cluster_id": "x", "nodes": nodes}))
    sleeping = processes.start_detached(["sleep", "60"], output=tmp_path / "log")
    try:
        (tmp_path / kafka.STATE_FILE).write_text(json.dumps({"1": asdict(sleeping)}))
        assert kafka.running_kafka(tmp_path) == "127.0.0.1:20001"
    finally:
        processes.stop([sleeping], 5.0)


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"cluster_id": "x"}'])
def test_a_spoilt_cluster_file_is_named(tmp_path: Path, content: str, full_cache: None) -> None:
    """A folder that is no cluster's is refused with its path, and not started from."""
    (tmp_path / kafka.CLUSTER_FILE).write_text(content)
    with pytest.raises(UserError, match=kafka.CLUSTER_FILE):
        kafka.start_kafka(tmp_path)


def test_a_folder_of_one_broker_is_not_started_as_three(tmp_path: Path, full_cache: None) -> None:
    """The number of brokers belongs to the data."""
    nodes = [asdict(THREE[0])]
    (tmp_path / kafka.CLUSTER_FILE).write_text(json.dumps({"cluster_id": "x", "nodes": nodes}))
    with pytest.raises(UserError, match="1 broker"):
        kafka.start_kafka(tmp_path, brokers=3)


@pytest.fixture
def full_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download: these starts end before any jar is run."""
    monkeypatch.setattr(kafka, "ensure_artifacts", lambda *_args, **_options: ())


def test_free_ports_are_distinct_and_free() -> None:
    """Each port can be listened on, none twice."""
    found = free_ports(6)
    assert len(set(found)) == 6
    assert all(is_free(port) for port in found)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own variable first, then the desktop's convention, then the home folder."""
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("PAYSTREAM_CACHE_DIR", raising=False)
    assert cache_dir() == Path("/somebody/.cache/paystream")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/paystream")
    monkeypatch.setenv("PAYSTREAM_CACHE_DIR", "/own")
    assert cache_dir() == Path("/own")
