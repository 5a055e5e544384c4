"""A version that reads more topics takes the place of one that does not know them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chaos.flow.node import OLDER_MODULE
from pipeline.config import load_settings
from pipeline.errors import UserError
from pipeline.local import worker_specs
from pipeline.runtime.supervisor import Supervisor
from pipeline.runtime.worker_spec import EXIT_USER_ERROR, WORKER_MODULE
from tests.support.waiting import wait_until
from topics import catalogue as topics_catalogue
from topics.provisioning import apply, connect, plan, provision

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

WAIT_S = 120.0


class Upgrade:
    """One payments worker of a flow of its own, as either version."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.settings = load_settings(
            bootstrap_servers=kafka,
            topic_prefix=prefix,
            partitions=2,
            state_dir=folder / "state",
            metrics_port=0,
        )
        self.log = folder / "workers.log"

    def worker(self, module: str) -> Supervisor:
        specs = worker_specs(self.settings, {"payments": 1}, node_id="n1", log_file=self.log)
        metrics = self.folder / module
        metrics.mkdir()
        return Supervisor(specs, metrics_dir=metrics, module=module)

    def is_applied(self) -> bool:
        admin = connect(self.kafka)
        planned = plan(admin, self.settings.catalogue())
        if planned.refusals:
            return False
        apply(admin, planned)
        return True

    def until_it_reads(self, supervisor: Supervisor) -> None:
        """It has its partitions and has restored them."""
        before = self.said()

        def reads() -> bool:
            supervisor.tick()
            return self.said() > before

        wait_until(reads, WAIT_S, "the worker reads")

    def said(self) -> int:
        return self.log.read_text().count(" restored ") if self.log.is_file() else 0


def test_the_topics_of_a_new_version_are_applied_between_the_last_old_and_the_first_new_worker(
    kafka: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/operations.md says: earlier it is refused, since the group's offsets cannot be set;
    until the last session has ended as well."""
    upgrade = Upgrade(kafka, topic_prefix, tmp_path)
    with monkeypatch.context() as older:
        older.setattr(topics_catalogue, "RETRY_MULTIPLES", (1,))
        older.setattr(topics_catalogue, "INQUIRY_MULTIPLES", (1,))
        provision(kafka, upgrade.settings.catalogue())
    with upgrade.worker(OLDER_MODULE) as old:
        upgrade.until_it_reads(old)
        with pytest.raises(UserError, match="live members"):
            provision(kafka, upgrade.settings.catalogue())
    wait_until(upgrade.is_applied, WAIT_S, "the last session has ended")
    with upgrade.worker(WORKER_MODULE) as new:
        upgrade.until_it_reads(new)
        assert new.exits["payments-0"] == []


@pytest.mark.parametrize("modules", [(OLDER_MODULE, WORKER_MODULE), (WORKER_MODULE, OLDER_MODULE)])
def test_a_version_that_comes_within_the_session_of_another_begins_by_itself(
    kafka: str, topic_prefix: str, tmp_path: Path, modules: tuple[str, str]
) -> None:
    """A static member is given what its version before had, without the new topics or with those
    that it does not know. It refused twice within its session, and its supervisor gave up."""
    upgrade = Upgrade(kafka, topic_prefix, tmp_path)
    provision(kafka, upgrade.settings.catalogue())
    before, after = modules
    with upgrade.worker(before) as first:
        upgrade.until_it_reads(first)
    with upgrade.worker(after) as second:
        upgrade.until_it_reads(second)
        assert second.exits["payments-0"] in ([], [EXIT_USER_ERROR])
