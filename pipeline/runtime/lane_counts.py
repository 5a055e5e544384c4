"""Whether the topics of the flow have as many partitions as its records were placed by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from pipeline.errors import UserError
from pipeline.runtime.cluster import (
    METADATA_TIMEOUT_S,
    NoCommittedOffset,
    bystander,
    committed_or_none,
    committed_positions,
)
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.partition_offsets import list_offsets
from pipeline.runtime.surroundings import REAL, Surroundings
from topics.catalogue import GROUP_STAGES, Catalogue
from topics.growth import grown, lanes_read

# For each question that decides what a refusal says: a leader that is being chosen is waited for.
PATIENCE_S = 15.0


def require_co_partitioned(
    admin: AdminClient,
    catalogue: Catalogue,
    bootstrap_servers: str,
    *,
    stage: str | None = None,
    surroundings: Surroundings = REAL,
) -> None:
    """Refuse to consume when a topic of the flow is missing or has another partition count; and,
    where the ``stage`` that is to run is given, when partitions were added to the used flow.

    An offset that is missing for another reason is named when its partition is assigned.
    """
    counts = _counts(admin, catalogue)
    expected = catalogue["orders"].partitions
    found = set(counts.values())
    if found == {expected}:
        if stage is None or not surroundings.has_brokers:
            return
        if lanes_read(_committed(stage, catalogue, counts, bootstrap_servers)) < expected:
            require_not_grown(admin, catalogue, bootstrap_servers)
        return
    if len(found) == 1:
        require_not_grown(admin, catalogue, bootstrap_servers)
        have, cure = f"they have {found.pop()}", "Set PAYSTREAM_PARTITIONS to that."
    else:
        have = ", ".join(f"{n} has {count}" for n, count in counts.items() if count != expected)
        cure = (
            'Move to a new set of topics under another prefix (docs/operations.md, "More '
            'partitions").'
            if _has_records(admin, counts)
            else "Nothing was ever written to them: `paystream topics apply --grow-partitions` "
            "makes them equal."
        )
    raise UserError(
        f"every topic of the flow must have {expected} partitions, but {have}; "
        f"nothing is consumed, since records of one order would meet in different lanes. {cure}"
    )


def positions_of_lanes(
    consumer: Consumer,
    partitions: Iterable[tuple[str, int]],
    *,
    admin: AdminClient,
    catalogue: Catalogue,
    bootstrap_servers: str,
    stopped: Callable[[], bool],
) -> Mapping[tuple[str, int], int]:
    """``committed_positions`` of what a worker is given. Where one is missing since partitions were
    added to the used flow, UserError says that, and not how to give it an offset."""
    try:
        return committed_positions(consumer, partitions, stopped=stopped)
    except NoCommittedOffset:
        require_not_grown(admin, catalogue, bootstrap_servers)
        raise


def require_not_grown(admin: AdminClient, catalogue: Catalogue, bootstrap_servers: str) -> None:
    """Refuse where partitions were added to the used flow; asked where an offset is missing."""
    counts = _counts(admin, catalogue)
    committed = [
        tp
        for stage in GROUP_STAGES
        for tp in _committed(stage, catalogue, counts, bootstrap_servers)
    ]
    if found := grown(committed, counts, used=lambda: _has_records(admin, counts)):
        raise UserError(f"nothing is consumed: {found}.")


def _counts(admin: AdminClient, catalogue: Catalogue) -> dict[str, int]:
    try:
        metadata = admin.list_topics(timeout=METADATA_TIMEOUT_S)
    except KafkaException as error:
        raise UserError(
            f"no Kafka broker answers within {METADATA_TIMEOUT_S:.0f} s. Start one with "
            "`paystream up`, or set --bootstrap-servers."
        ) from error
    missing = [s.name for s in catalogue.topics.values() if s.name not in metadata.topics]
    if missing:
        raise UserError(
            f"topics are missing on the cluster: {', '.join(missing)}. Create them with "
            "`paystream topics apply`."
        )
    return {s.name: len(metadata.topics[s.name].partitions) for s in catalogue.topics.values()}


def _committed(
    stage: str, catalogue: Catalogue, counts: Mapping[str, int], bootstrap_servers: str
) -> list[tuple[str, int]]:
    """The input partitions that the group of a stage has an offset in."""
    partitions = [
        (spec.name, partition)
        for spec in catalogue.inputs(stage)
        for partition in range(counts[spec.name])
    ]
    # Offsets of before an open transaction answer at once, and tell as well.
    with bystander(bootstrap_servers, catalogue.group(stage), "read_uncommitted") as consumer:
        offsets = committed_or_none(consumer, partitions)
    return [tp for tp, offset in offsets.items() if offset >= 0]


def _has_records(admin: AdminClient, counts: Mapping[str, int]) -> bool:
    """Whether anything was ever written to any of the topics."""
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # the client's gap
    asked = {TopicPartition(name, p): latest for name, n in counts.items() for p in range(n)}
    try:
        ends = list_offsets(admin, asked, timeout_s=METADATA_TIMEOUT_S, patience_s=PATIENCE_S)
    except KafkaException as error:
        raise LaneFatal(
            f"the ends of the flow's topics cannot be had ({error.args[0].str()})"
        ) from error
    return any(end > 0 for end in ends.values())
