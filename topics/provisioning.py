"""Bring a cluster to what the catalogue says: first a plan to read, then apply.

Nothing is ever deleted or shrunk, and no offset that exists is touched, so a second run finds
nothing to do and a run beside a live flow is harmless. What cannot be done safely is a refusal, and
one refusal holds back the whole plan: half a set of topics with unequal partitions would put the
records of one payment in two lanes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, not in __all__
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
)

from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from topics.admin import (
    REQUEST_TIMEOUT_S,
    VISIBLE_TIMEOUT_S,
    Admin,
    asked,
    connect,
    earliest,
    future_results,
    gathered,
    latest,
    list_offsets,
    reason,
    until,
    user_error,
)
from topics.catalogue import GROUP_STAGES, Catalogue, TopicSpec
from topics.group_offsets import for_each_group, members, start_at_the_beginning, without_offset
from topics.growth import Grown, grown


@dataclass(frozen=True)
class ConfigChange:
    """A setting of an existing topic that is not what the catalogue wants."""

    topic: str
    key: str
    current: str | None
    wanted: str


@dataclass(frozen=True)
class Growth:
    """An existing topic that never held a record, and gets more partitions."""

    topic: str
    current: int
    wanted: int


@dataclass(frozen=True)
class InitialOffset:
    """Where a group starts on a partition it has no committed offset for: at its beginning."""

    group: str
    topic: str
    partition: int


@dataclass(frozen=True)
class Plan:
    """What apply would do. ``refusals`` hold it back; ``notices`` are only told."""

    catalogue: Catalogue
    create: tuple[TopicSpec, ...] = ()
    configure: tuple[ConfigChange, ...] = ()
    grow: tuple[Growth, ...] = ()
    offsets: tuple[InitialOffset, ...] = ()
    refusals: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def has_changes(self) -> bool:
        return bool(self.create or self.configure or self.grow or self.offsets)

    def lines(self) -> list[str]:
        """The plan for people, one thing a line."""
        lines = [
            f"create topic {s.name}: {s.partitions} partitions, replication {s.replication_factor}"
            for s in self.create
        ]
        lines += [f"set {c.key} of {c.topic}: {c.current} -> {c.wanted}" for c in self.configure]
        lines += [f"grow {g.topic}: {g.current} -> {g.wanted} partitions" for g in self.grow]
        counts: dict[tuple[str, str], int] = {}
        for offset in self.offsets:
            key = (offset.group, offset.topic)
            counts[key] = counts.get(key, 0) + 1
        lines += [
            f"start group {group} at the beginning of {count} partitions of {topic}"
            for (group, topic), count in counts.items()
        ]
        lines += [f"refused: {refusal}" for refusal in self.refusals]
        lines += [f"note: {notice}" for notice in self.notices]
        return lines or ["nothing to do"]


def plan(admin: Admin, catalogue: Catalogue, *, grow_partitions: bool = False) -> Plan:
    """Compare the cluster with the catalogue; changes nothing. UserError if it does not answer.

    A partition count that differs is refused. With ``grow_partitions`` a smaller count is raised,
    but only while no topic of the flow has ever held a record: more partitions send the later
    records of an order to another lane than the earlier ones. So no group begins in partitions that
    were added to a used flow from outside.
    """
    existing = _partition_counts(admin)
    specs = list(catalogue.topics.values())
    present = [spec for spec in specs if spec.name in existing]
    configure, notices = _config_changes(admin, present)
    grow, refusals = _partition_changes(admin, present, existing, grow_partitions)
    missing = _without_offsets(admin, catalogue, existing, grow)
    if outside := _grown_from_outside(admin, catalogue, existing, missing):
        # Whatever else there is to say, it would be advice for another flow.
        return Plan(catalogue=catalogue, refusals=(str(outside),))
    offsets, offset_refusals, offset_notices = _missing_offsets(admin, missing, existing)
    notices += replication_notices(present, _replica_counts(admin))
    notices += offset_notices + _extra_topics(catalogue, existing)
    return Plan(
        catalogue=catalogue,
        create=tuple(spec for spec in specs if spec.name not in existing),
        configure=tuple(configure),
        grow=tuple(grow),
        offsets=tuple(offsets),
        refusals=tuple(refusals + offset_refusals),
        notices=tuple(notices),
    )


def apply(admin: Admin, planned: Plan) -> None:
    """Do what the plan says, and return when every broker shows it.

    UserError before anything was changed if the plan holds a refusal; UserError afterwards if the
    cluster did not follow. Safe to repeat, whatever an earlier run got done.
    """
    if planned.refusals:
        raise UserError("Nothing was changed on the cluster:\n  " + "\n  ".join(planned.refusals))
    if not planned.has_changes:
        return
    _create(admin, planned.create)
    _grow(admin, planned.grow)
    _configure(admin, planned)
    _wait_until_visible(admin, planned.catalogue)
    _commit_initial_offsets(admin, planned.offsets)
    _wait_until_done(admin, planned.catalogue)


def provision(
    bootstrap_servers: str,
    catalogue: Catalogue,
    config: Mapping[str, Any] | None = None,
    *,
    grow_partitions: bool = False,
) -> Plan:
    """Connect, plan and apply in one; returns the plan that was applied."""
    admin = connect(bootstrap_servers, config)
    planned = plan(admin, catalogue, grow_partitions=grow_partitions)
    apply(admin, planned)
    return planned


def check_co_partitioning(admin: Admin, catalogue: Catalogue) -> int:
    """The one partition count of all topics of the flow; UserError if one is missing or differs.

    Workers ask before they consume: with unequal counts the same key is on another partition of
    each topic, and a result would not find its payment.
    """
    existing = _partition_counts(admin)
    names = [spec.name for spec in catalogue.topics.values()]
    missing = [name for name in names if name not in existing]
    if missing:
        raise UserError(
            f"The cluster has no topic {', '.join(missing)}: run `paystream topics apply` first"
        )
    counts = {existing[name] for name in names}
    if len(counts) > 1:
        listed = ", ".join(f"{name} has {existing[name]}" for name in names)
        raise UserError(
            f"The topics of the flow differ in their partition counts ({listed}), so records of "
            "one order would meet in different lanes: nothing is consumed. Provision a new set of "
            "topics under another prefix and move the flow there once it is drained"
        )
    return counts.pop()


# --- looking -------------------------------------------------------------------------------------


def _partition_counts(admin: Admin) -> dict[str, int]:
    metadata = asked(lambda: admin.list_topics(timeout=REQUEST_TIMEOUT_S))
    return {
        name: len(topic.partitions)
        for name, topic in metadata.topics.items()
        if topic.error is None
    }


def _replica_counts(admin: Admin) -> dict[str, set[int]]:
    """Of each topic, how many copies its partitions have."""
    metadata = asked(lambda: admin.list_topics(timeout=REQUEST_TIMEOUT_S))
    return {
        name: {len(partition.replicas) for partition in topic.partitions.values()}
        for name, topic in metadata.topics.items()
    }


def replication_notices(present: Sequence[TopicSpec], copies: Mapping[str, set[int]]) -> list[str]:
    """Topics with other copies than wanted: moving data between brokers is not done unasked."""
    different: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for spec in present:
        found = copies.get(spec.name, set())
        if found and found != {spec.replication_factor}:
            key = (tuple(sorted(found)), spec.replication_factor)
            different.setdefault(key, []).append(spec.name)
    return [
        f"{', '.join(names)}: replication {' and '.join(map(str, found))}, where the catalogue "
        f"wants {wanted}: left; change it with kafka-reassign-partitions, or set "
        f"--replication-factor (PAYSTREAM_REPLICATION_FACTOR) to {found[-1]}"
        for (found, wanted), names in different.items()
    ]


def _config_changes(
    admin: Admin, specs: Sequence[TopicSpec]
) -> tuple[list[ConfigChange], list[str]]:
    changes: list[ConfigChange] = []
    notices: list[str] = []
    if not specs:
        return changes, notices
    resources = {spec.name: ConfigResource(ConfigResource.Type.TOPIC, spec.name) for spec in specs}
    described = gathered(
        lambda: admin.describe_configs(list(resources.values()), request_timeout=REQUEST_TIMEOUT_S)
    )
    for spec in specs:
        entries = described[resources[spec.name]]
        for key, wanted in spec.config.items():
            current = entries[key].value if key in entries else None
            if current != wanted:
                changes.append(ConfigChange(spec.name, key, current, wanted))
        for key, entry in entries.items():
            own = entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value
            if own and key not in spec.config:
                notices.append(
                    f"{spec.name} sets {key}={entry.value}, which the catalogue does not know: left"
                )
    return changes, notices


def _partition_changes(
    admin: Admin,
    present: Sequence[TopicSpec],
    existing: Mapping[str, int],
    grow_partitions: bool,
) -> tuple[list[Growth], list[str]]:
    different = [spec for spec in present if existing[spec.name] != spec.partitions]
    if not different:
        return [], []
    used = _topics_with_records(admin, present, existing) if grow_partitions else []
    wanted = different[0].partitions  # the catalogue gives all topics the same
    equal = len({existing[spec.name] for spec in present}) == 1
    refusals = []
    growth = []
    for count in sorted({existing[spec.name] for spec in different}):
        names = [spec.name for spec in different if existing[spec.name] == count]
        differs = f"{', '.join(names)}: {count} partitions, where the catalogue wants {wanted}"
        keep = "use another prefix"
        if equal:
            keep = f"set --partitions (PAYSTREAM_PARTITIONS) to {count}, or {keep}"
        if count > wanted:
            refusals.append(f"{differs}; partitions cannot be taken away: {keep}")
        elif not grow_partitions:
            refusals.append(
                f"{differs}; counts never change on a live flow: {keep}, or give "
                "--grow-partitions if nothing has ever been written"
            )
        elif used:
            refusals.append(
                f"{differs}; they cannot grow, since orders with records in {', '.join(used)} "
                "would change lanes: use another prefix and move the drained flow there"
            )
        else:
            growth += [Growth(name, count, wanted) for name in names]
    return growth, refusals


def _topics_with_records(
    admin: Admin, specs: Sequence[TopicSpec], existing: Mapping[str, int]
) -> list[str]:
    partitions = [
        TopicPartition(spec.name, partition)
        for spec in specs
        for partition in range(existing[spec.name])
    ]
    ends = list_offsets(admin, partitions, latest())
    return sorted({topic for (topic, _), offset in ends.items() if offset > 0})


def _without_offsets(
    admin: Admin,
    catalogue: Catalogue,
    existing: Mapping[str, int],
    grow: Sequence[Growth],
) -> dict[str, list[TopicPartition]]:
    """Of each group, the partitions without a committed offset, those that apply will make
    included."""
    wider = {growth.topic: growth.wanted for growth in grow}
    wanted = {
        catalogue.group(stage): [
            TopicPartition(spec.name, partition)
            for spec in catalogue.inputs(stage)
            for partition in range(wider.get(spec.name, existing.get(spec.name, spec.partitions)))
        ]
        for stage in GROUP_STAGES
    }
    return for_each_group(partial(without_offset, admin), wanted)


def _grown_from_outside(
    admin: Admin,
    catalogue: Catalogue,
    existing: Mapping[str, int],
    missing: Mapping[str, Sequence[TopicPartition]],
) -> Grown | None:
    present = [spec for spec in catalogue.topics.values() if spec.name in existing]
    committed: set[tuple[str, int]] = set()
    for stage in GROUP_STAGES:
        without = {(tp.topic, tp.partition) for tp in missing[catalogue.group(stage)]}
        inputs = [spec.name for spec in catalogue.inputs(stage)]
        there = {(name, p) for name in inputs for p in range(existing.get(name, 0))}
        committed |= there - without
    return grown(
        committed,
        {spec.name: existing[spec.name] for spec in present},
        used=lambda: bool(_topics_with_records(admin, present, existing)),
    )


def _missing_offsets(
    admin: Admin,
    without: Mapping[str, Sequence[TopicPartition]],
    existing: Mapping[str, int],
) -> tuple[list[InitialOffset], list[str], list[str]]:
    offsets: list[InitialOffset] = []
    refusals: list[str] = []
    notices: list[str] = []
    for group, missing in without.items():
        if not missing:
            continue
        offsets += [InitialOffset(group, tp.topic, tp.partition) for tp in missing]
        if count := members(admin, group):
            topics = ", ".join(sorted({tp.topic for tp in missing}))
            refusals.append(
                f"group {group} has {count} live members and no committed offset on {topics}: "
                "offsets of a running group cannot be set; stop its workers, or wait for the "
                "session of one that has stopped to end, then apply again"
            )
        notices += _where_they_start(admin, group, missing, existing)
    return offsets, refusals, notices


def _where_they_start(
    admin: Admin, group: str, missing: Sequence[TopicPartition], existing: Mapping[str, int]
) -> list[str]:
    there = [tp for tp in missing if tp.partition < existing.get(tp.topic, 0)]
    if not there:
        return []
    lows = list_offsets(admin, there, earliest())
    gone = sorted({topic for (topic, _), low in lows.items() if low > 0})
    if not gone:
        return []
    return [
        f"group {group} will start after records of {', '.join(gone)} that retention has already "
        "deleted; if it had not read them, run `paystream verify` afterwards"
    ]


def _extra_topics(catalogue: Catalogue, existing: Mapping[str, int]) -> list[str]:
    prefix = catalogue.settings.prefix
    if not prefix:
        return []  # then every topic of the cluster would be ours
    known = {spec.name for spec in catalogue.topics.values()}
    return [
        f"topic {name} is under the prefix and not in the catalogue: left"
        for name in sorted(existing)
        if name.startswith(prefix) and name not in known
    ]


# --- doing ---------------------------------------------------------------------------------------


def _create(admin: Admin, specs: Sequence[TopicSpec]) -> None:
    if not specs:
        return
    new = [
        NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=spec.replication_factor,
            config=dict(spec.config),
        )
        for spec in specs
    ]
    futures = asked(lambda: admin.create_topics(new, request_timeout=REQUEST_TIMEOUT_S))
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as error:
            # Someone else made it since the plan; the last look at the end judges what it is like.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise user_error(error, f"The topic {name} could not be created") from error


def _grow(admin: Admin, growth: Sequence[Growth]) -> None:
    if growth:
        gathered(
            lambda: admin.create_partitions(
                [NewPartitions(g.topic, g.wanted) for g in growth],
                request_timeout=REQUEST_TIMEOUT_S,
            )
        )


def _configure(admin: Admin, planned: Plan) -> None:
    if not planned.configure:
        return
    entries: dict[str, list[ConfigEntry]] = {}
    for change in planned.configure:
        entries.setdefault(change.topic, []).append(
            ConfigEntry(
                change.key,
                change.wanted,
                incremental_operation=AlterConfigOpType.SET,
            )
        )
    resources = [
        ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=listed)
        for topic, listed in entries.items()
    ]
    gathered(lambda: admin.incremental_alter_configs(resources, request_timeout=REQUEST_TIMEOUT_S))


def _commit_initial_offsets(admin: Admin, offsets: Sequence[InitialOffset]) -> None:
    planned: dict[str, list[TopicPartition]] = {}
    for offset in offsets:
        planned.setdefault(offset.group, []).append(TopicPartition(offset.topic, offset.partition))
    for_each_group(partial(start_at_the_beginning, admin), planned)


def _wait_until_visible(admin: Admin, catalogue: Catalogue) -> None:
    """Every broker names every partition with a leader, and every leader answers for its own."""
    wanted = {spec.name: spec.partitions for spec in catalogue.topics.values()}
    partitions = [
        TopicPartition(name, partition)
        for name, count in wanted.items()
        for partition in range(count)
    ]

    def silent_leaders() -> list[str]:
        try:
            future_results(
                admin.list_offsets(
                    dict.fromkeys(partitions, earliest()),
                    request_timeout=REQUEST_TIMEOUT_S,
                )
            )
        except KafkaException as error:
            return [reason(error)]
        return []

    deadline_s = time.monotonic() + VISIBLE_TIMEOUT_S
    for client in _one_client_a_broker(admin):
        until(partial(_lacking, client, wanted), deadline_s)
    until(silent_leaders, deadline_s)


def _one_client_a_broker(admin: Admin) -> list[Admin]:
    """Metadata comes from whichever broker is connected, and each learns of a topic by itself."""
    brokers = asked(lambda: admin.list_topics(timeout=REQUEST_TIMEOUT_S)).brokers.values()
    if len(brokers) < 2:
        return [admin]
    return [
        Admin({**admin.client_config, **reaching(f"{broker.host}:{broker.port}")})
        for broker in brokers
    ]


def _lacking(admin: Admin, wanted: Mapping[str, int]) -> list[str]:
    metadata = asked(lambda: admin.list_topics(timeout=REQUEST_TIMEOUT_S))
    lacking = []
    for name, count in wanted.items():
        topic = metadata.topics.get(name)
        led = 0 if topic is None else sum(p.leader >= 0 for p in topic.partitions.values())
        if led < count:
            lacking.append(f"{name} has {led} of {count} partitions with a leader")
    return lacking


def _wait_until_done(admin: Admin, catalogue: Catalogue) -> None:
    """Settings and offsets travel to the brokers on their own; a plan must find nothing more."""

    def left() -> list[str]:
        again = plan(admin, catalogue)
        return again.lines() if again.has_changes or again.refusals else []

    until(left, time.monotonic() + VISIBLE_TIMEOUT_S)
