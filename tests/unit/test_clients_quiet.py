"""What the clients of a worker write while no broker answers: nothing, for hours."""

from __future__ import annotations

import re
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from consumers import ledger_sink
from consumers.notifier import event_reader
from pipeline.errors import UserError
from pipeline.runtime import cluster, control, restore
from pipeline.runtime.end_txn_watch import EndTxnWatch
from producers import webhook_desk
from schemas.codec import default_codec
from tests.support.waiting import wait_until
from topics.catalogue import build_catalogue

NOWHERE = "127.0.0.1:1"
CONFIGS: dict[str, dict[str, Any]] = {
    "inputs": cluster.consumer_config(NOWHERE, group_id="g", instance_id="i"),
    "restoration": restore.reader_config(NOWHERE),
    "references": webhook_desk.follower_config(NOWHERE, "p."),
    "notices": webhook_desk.notice_producer_config(NOWHERE, 8.0),
    "the ledger's letters": ledger_sink._dead_letter_producer_config(NOWHERE),
    "the notifications' letters": event_reader._letter_producer_config(NOWHERE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_client_whose_broker_is_away_writes_no_line_for_each_connection(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Sixteen a second came of one client, a quarter of a gigabyte a day."""
    failed: list[KafkaError] = []
    config = {**CONFIGS[name], "error_cb": failed.append}

    def refused(client: Any) -> bool:
        client.poll(0.05)
        return len(failed) > 1

    if "group.id" in config:
        consumer = Consumer(config)
        consumer.assign([TopicPartition("t", 0, 0)])
        wait_until(lambda: refused(consumer), 30, "the client says that its broker is away")
        consumer.close()
    else:
        producer = Producer(config)
        wait_until(lambda: refused(producer), 30, "the client says that its broker is away")
    assert capfd.readouterr().err == ""
    assert caplog.text == ""


@pytest.mark.slow
def test_the_control_topics_reader_of_a_worker_writes_none_either(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is made with the worker and goes on for as long as that does."""
    monkeypatch.setattr(control, "READ_TIMEOUT_S", 0.3)
    reader = control.ControlReader(
        NOWHERE, build_catalogue(), default_codec(), lambda key, entry: None
    )
    with pytest.raises(UserError, match=NOWHERE.replace(".", r"\.")):
        reader.read()
    reader.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_lanes_producer_says_once_in_a_while_that_a_broker_is_away(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its log is listened to, and said a line a second for as long as nobody answered."""
    failed: list[KafkaError] = []
    config = {
        "bootstrap.servers": f"{NOWHERE},127.0.0.1:2", "transactional.id": "t",
        "debug": "eos", "reconnect.backoff.max.ms": 200, "error_cb": failed.append,
    }  # fmt: skip
    producer = Producer(config, logger=EndTxnWatch())

    def refused_often() -> bool:
        producer.poll(0.05)
        return len(failed) > 8

    wait_until(refused_often, 60, "the client says again and again that its brokers are away")
    said = [re.findall(r"FAIL .* Connect to (\S+) failed", each.getMessage())
            for each in caplog.records]  # fmt: skip
    assert sorted(said) == [["ipv4#127.0.0.1:1"], ["ipv4#127.0.0.1:2"]]
    assert capfd.readouterr().err == ""
