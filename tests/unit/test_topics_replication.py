"""What a plan says of topics that have other copies than the catalogue wants."""

from __future__ import annotations

from topics.catalogue import TopicSettings, build_catalogue
from topics.provisioning import replication_notices

SPECS = list(build_catalogue(TopicSettings(partitions=3, replication_factor=3)).topics.values())


def test_topics_with_other_copies_are_named_and_left() -> None:
    """One line for all that differ in the same way, with what a person can do about it."""
    copies = {spec.name: {3} for spec in SPECS} | {"orders": {1}, "payments": {1, 2}}
    one, two = sorted(replication_notices(SPECS, copies))
    assert one.startswith("orders: replication 1, where the catalogue wants 3: left")
    assert "--replication-factor" in one
    assert two.startswith("payments: replication 1 and 2, where the catalogue wants 3: left")


def test_topics_as_wanted_are_not_mentioned() -> None:
    """Neither is a topic that the cluster says nothing of."""
    copies = {spec.name: {3} for spec in SPECS if spec.name != "orders"}
    assert replication_notices(SPECS, copies) == []
