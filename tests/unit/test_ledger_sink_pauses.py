"""What a ledger sink has paused it reads on, whatever became of the batch that it paused for."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.records import to_record
from tests.simulation.plan import draw
from tests.simulation.run import Simulation
from tests.simulation.shared import shared_codec
from tests.simulation.world import BEGIN_S
from tests.support.ledger import settlement

PARTITIONS = 2


@pytest.mark.slow
def test_other_partitions_are_read_on_where_the_one_of_a_lost_answer_is_let_go() -> None:
    """The commit was done and its answer lost. The next try finds the offset moved and lets the
    partition go; the others, paused meanwhile, were read again only once another settlement of that
    partition was booked."""
    plan = replace(draw(0), orders=(), faults=(), partitions=PARTITIONS, payouts=False)
    simulation = Simulation(plan)
    world, cluster, ledger = simulation.world, simulation.cluster, simulation.ledger
    cluster.on_visible = None
    encode = shared_codec(plan.avro).encoder("settlement")
    topic = simulation.catalogue.name("settlements")

    def publish(partition: int) -> None:
        made = (settlement(number) for number in count())
        keys = ((record_key(each.merchant_id, each.order_id), each) for each in made)
        key, told = next(pair for pair in keys if partition_of(pair[0], PARTITIONS) == partition)
        cluster.write(topic, partition, key, encode(to_record(told)))

    simulation.workers.add("ledger-0", 0)
    world.run(BEGIN_S + 30.0)
    ledger.fail("commit_unknown", 0.0)
    publish(0)
    world.run(BEGIN_S + 90.0)
    assert simulation.result.faults["database commit_unknown"] == 1
    assert ledger.count() == 1
    publish(1)
    world.run(BEGIN_S + 150.0)
    assert ledger.count() == 2
    simulation.close()
