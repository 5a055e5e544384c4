"""What the clients of a worker write while no broker answers: nothing, for hours."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from consumers import ledger_sink
from consumers.notifier import event_reader
from pipeline.errors import UserError
from pipeline.runtime import cluster, control, restore
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
