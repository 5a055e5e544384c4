"""A stage that cannot go on is moved by one command, over what is lost and nothing else."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import pytest
import typer.testing
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.audit.unavailable import AuditUnavailable
from pipeline.audit.verify import Sources, verify
from pipeline.cli import app
from pipeline.domain.model import AuditEntry
from pipeline.errors import UserError
from pipeline.runtime.positions import mover
from tests.support.cli_runner import CliRunner
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of
from tests.support.servers import ADDRESS, FOLDER

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def flow(kafka: str, topic_prefix: str, tmp_path: Path) -> EngineFlow:
    return EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()


def command(flow: EngineFlow, *words: str) -> typer.testing.Result:
    where = ["--bootstrap-servers", flow.bootstrap, "--prefix", flow.prefix]
    return CliRunner().invoke(app, ["positions", *words, *where])


def refusal(flow: EngineFlow, *words: str) -> str:
    found = command(flow, *words).exception
    assert isinstance(found, UserError), found
    return str(found)


def handled(flow: EngineFlow, *names: str) -> tuple[int, int]:
    """Send these orders and have them handled; where the last of them lies."""
    sent = [flow.send_order(flow.order(name)) for name in names]
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*sent), running=running)
    return sent[-1]


def why_it_ends(flow: EngineFlow) -> str:
    error = RunningWorker(*flow.payments_worker()).ended(60)
    assert isinstance(error, UserError), error
    return str(error)


def asked_for(flow: EngineFlow) -> list[str]:
    return [each.order_id for each in flow.nouns("payment-requests")]


def entry_of(flow: EngineFlow) -> tuple[AuditEntry, list[dict[str, object]]]:
    (entry,) = flow.nouns("audit")
    about = json.loads(entry.detail)
    assert about["group"] == flow.catalogue.group("payments")
    return entry, about["skipped"]


def test_a_stage_whose_next_records_were_deleted_goes_on_behind_them(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = flow.topic("orders")
    handled(flow, "before")
    (at,) = flow.committed("payments", "orders").values()
    for name in ("gone1", "gone2"):
        flow.send_order(flow.order(name))
    last = flow.send_order(flow.order("after"))
    assert command(flow, "show").exit_code == 0
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})
    for future in admin.delete_records([TopicPartition(orders, 0, last[1])]).values():
        future.result(30)
    assert "is not in the log any more" in why_it_ends(flow)

    shown = command(flow, "show")
    assert shown.exit_code == 1
    assert re.search(
        rf"{re.escape(orders)}\[0\] +{at} +{last[1]} +{last[1] + 1} +2\n", shown.output
    )
    assert json.loads(command(flow, "show", "--stage", "gateway", "--json").output)["gone"] == 0

    move = ("move", "--stage", "payments", "--reason", "INC-42", "--by", "anna")
    dry = command(flow, *move, "--dry-run")
    assert f"{orders}[0]: {at} to {last[1] - 1} are gone; going on at {last[1]}" in dry.output
    # The place of the worker that has ended is kept for ten seconds.
    with monkeypatch.context() as at_once:
        at_once.setattr(mover, "AWAY_S", 0.0)
        assert "stop the stage on every machine first" in refusal(flow, *move, "--yes")
    assert "add --yes" in refusal(flow, *move)
    assert flow.committed("payments", "orders") == {0: at}
    done = command(flow, *move, "--yes")
    assert done.exit_code == 0, done.output
    assert "over 2 offsets in 1 partition; audit entry" in done.output
    assert flow.committed("payments", "orders") == {0: last[1]}
    entry, skipped = entry_of(flow)
    assert (entry.actor, entry.reason, entry.action) == ("anna", "INC-42", mover.MOVE_ACTION)
    assert skipped == [{"topic": orders, "partition": 0, "from": at, "to": last[1] - 1}]
    assert command(flow, "show").exit_code == 0
    assert "nothing to do" in command(flow, *move, "--yes").output

    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    assert asked_for(flow) == ["before", "after"]
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    assert judged.broken == []


def damage(flow: EngineFlow, role: str, offset: int) -> None:
    """Another byte at the end of the batch that begins there, as of a disk that has lost it."""
    places = f"kafka/broker-*/log/{flow.topic(role)}-0/*.log"
    (segment,) = Path(os.environ[FOLDER]).glob(places)
    with segment.open("r+b") as log:
        while head := log.read(12):
            first, length = struct.unpack(">qi", head)
            if first == offset:
                log.seek(length - 1, os.SEEK_CUR)
                (last,) = log.read(1)
                log.seek(-1, os.SEEK_CUR)
                log.write(bytes((last ^ 1,)))
                return
            log.seek(length, os.SEEK_CUR)
    raise AssertionError(f"no batch begins at {offset}")


def test_a_stage_goes_on_behind_a_damaged_batch_and_loses_nothing_before_it(
    flow: EngineFlow,
) -> None:
    if ADDRESS in os.environ:
        pytest.skip("the broker's files are not here")
    for name in ("before1", "before2"):
        flow.send_order(flow.order(name))
    spoilt = flow.send_order(flow.order("spoilt"))
    last = flow.send_order(flow.order("after"))
    damage(flow, "orders", spoilt[1])
    step = ("step-over", f"{flow.topic('orders')}[0]@{spoilt[1]}", "--reason", "INC-43")
    assert "the stage has not come to" in refusal(flow, *step, "--dry-run")
    said = re.search(r"the batch at (\S+) is damaged", why_it_ends(flow))
    assert said is not None
    assert said[1] == step[1]
    assert flow.committed("payments", "orders") == {0: spoilt[1]}
    assert asked_for(flow) == ["before1", "before2"]

    done = command(flow, *step, "--yes")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "over 1 offset in 1 partition" in done.output
    entry, skipped = entry_of(flow)
    assert (entry.reason, entry.action) == ("INC-43", mover.STEP_OVER_ACTION)
    assert skipped == [
        {"topic": flow.topic("orders"), "partition": 0, "from": spoilt[1], "to": spoilt[1]}
    ]
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    assert asked_for(flow) == ["before1", "before2", "after"]
    assert "nothing to step over" in refusal(flow, *step, "--dry-run")
    # As long as it is in the log, nobody can say what was in it.
    with pytest.raises(AuditUnavailable, match="is damaged"):
        verify(Sources(flow.bootstrap, flow.prefix))
