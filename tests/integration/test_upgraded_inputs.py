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
    """Payments workers of a flow of its own, as either version."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.settings = load_settings(
            bootstrap_servers=kafka,
            topic_prefix=prefix,
            partitions=2,
            metrics_port=0,
        )
        self.log = folder / "workers.log"

    def worker(self, module: str, node_id: str = "n1") -> Supervisor:
        settings = self.settings.model_copy(update={"state_dir": self.folder / node_id})
        specs = worker_specs(settings, {"payments": 1}, node_id=node_id, log_file=self.log)
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

    def said_last(self, what: str) -> bool:
        told = [line for line in self.log.read_text().splitlines() if " restored " in line]
        return what in told[-1]

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


def test_a_newer_worker_in_the_group_of_an_older_one_reads_nothing_and_gives_up(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """It has the new topics' partitions to itself and shares the others: it would read a payment's
    timer without the payment. The older one goes on alone once that session has ended."""
    upgrade = Upgrade(kafka, topic_prefix, tmp_path)
    provision(kafka, upgrade.settings.catalogue())
    with upgrade.worker(OLDER_MODULE) as old:
        upgrade.until_it_reads(old)
        with upgrade.worker(WORKER_MODULE, node_id="n2") as new:

            def gives_up() -> bool:
                old.tick()
                try:
                    new.tick()
                except UserError as error:
                    said.append(str(error))
                return bool(said)

            said: list[str] = []
            wait_until(gives_up, WAIT_S, "the newer worker gives up")
            assert "unequal partitions of co-owned topics" in said[0]
            assert new.exits["payments-0"] == [EXIT_USER_ERROR] * 2
        wait_until(lambda: upgrade.said_last("restored 2 partitions"), WAIT_S, "the older reads")
        assert old.exits["payments-0"] == []
