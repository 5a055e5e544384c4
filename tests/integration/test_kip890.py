"""A late EndTxn ends the next transaction of the same epoch: the short form of what
``paystream chaos kip890`` does with a thousand faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.chaos.kip890.run import Seen, run_loop
from pipeline.chaos.kip890.script import many, pairs
from pipeline.runtime.end_txn_watch import EndTxnWatch
from pipeline.runtime.lane import Lane
from tests.support.proxied import ProxiedKafka, proxied_kafka

pytestmark = pytest.mark.integration

FAULTS = 20
ROUNDS = 2


@pytest.fixture(scope="module", params=[1, 2], ids=["transaction.version 1", "and 2"])
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ProxiedKafka, int]]:
    version: int = request.param
    folder = tmp_path_factory.mktemp(f"tv{version}")
    with proxied_kafka(folder, features={"transaction.version": version}) as started:
        yield started, version


def test_a_plain_loop_loses_tears_and_shows_what_it_aborted(
    broker: tuple[ProxiedKafka, int], topic_prefix: str
) -> None:
    """And is told nothing: each call before the damage returned without an error."""
    seen = run(broker, topic_prefix, "plain")
    assert (seen.findings.lost, seen.findings.torn) == (ROUNDS, ROUNDS)
    assert (seen.findings.aborted_visible, seen.findings.doubled) == (ROUNDS, ROUNDS)
    assert seen.late_obeyed == seen.faults == 3 * ROUNDS
    assert seen.noticed == 0


def test_the_engine_notices_every_injured_end_and_nothing_comes_of_it(
    broker: tuple[ProxiedKafka, int], topic_prefix: str
) -> None:
    """Its late copies are refused, each transaction is there once and whole, and an end that
    nothing happened to costs nothing."""
    seen = run(broker, topic_prefix, "engine")
    assert not seen.findings.broken, seen.findings
    assert seen.noticed == seen.faults == 3 * ROUNDS + FAULTS
    assert seen.copies_unanswered == 0
    assert seen.late_obeyed == 0
    assert len(seen.rebuild_s) == seen.faults + seen.false_alarms


@pytest.mark.long
def test_the_engine_is_as_exposed_as_the_plain_loop_without_its_sign(
    broker: tuple[ProxiedKafka, int], topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the line taken out that reads how an end was answered, readers see damage: the run above
    could have failed. What a late copy meets is a matter of milliseconds, so on a busy machine more
    than one run may be needed to show it."""
    monkeypatch.setattr(EndTxnWatch, "ended_plainly", property(lambda _: True))
    never = property(lambda _: False, lambda *_: None)
    monkeypatch.setattr(Lane, "_suspect", never, raising=False)
    tries = (run(broker, f"{topic_prefix}{number}.", "engine") for number in range(5))
    assert any(seen.exposed and seen.late_obeyed > 0 for seen in tries)


def run(broker: tuple[ProxiedKafka, int], prefix: str, kind: str) -> Seen:
    kafka, version = broker
    steps = list(pairs(ROUNDS))
    if kind == "engine":
        steps += many(FAULTS, seed=7)
    return run_loop(
        kind,
        steps,
        direct=kafka.direct,
        proxy=kafka.proxy,
        transaction_version=version,
        name=f"{prefix}{kind}",
    )
