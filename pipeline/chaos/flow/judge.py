"""The verdict on a flow at rest: the audit's findings and checks of our own, as anomalies."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from pipeline.audit.report import Report as AuditReport
from pipeline.audit.report import Severity
from pipeline.chaos.counted import counted
from pipeline.chaos.flow import seen
from pipeline.chaos.flow.anomalies import ANOMALY_OF, Anomalies
from pipeline.chaos.flow.cluster import Cluster
from pipeline.chaos.flow.coordinator_log import broken_ends
from pipeline.chaos.flow.load import Load
from pipeline.chaos.flow.log_bytes import ABORTED, COMMITTED, OPEN, PartitionTruth
from pipeline.chaos.flow.logs_at_rest import Logs, read_at_rest
from pipeline.chaos.flow.seen import Place
from topics.catalogue import Catalogue

# A session, a transaction and the broker's look for timed-out ones, twice.
STUCK_S_MAX = 60.0
# Ends of a worker that belong to faults: drained, asked to go, fenced or outlived by its
# transaction, killed.
_EXPECTED_EXITS = {0, 2, 3, -9, -15}
# Inputs that may lie unread at rest: their time has not come.
_WAITS = "payment-timer-"


def judge(
    cluster: Cluster, load: Load, audited: AuditReport, say: Callable[[str], None]
) -> Anomalies:
    """Reads everything once more by its own means. The workers have been stopped."""
    anomalies = Anomalies()
    from_audit(audited, anomalies)
    catalogue = cluster.settings.catalogue()
    servers = cluster.settings.bootstrap_servers
    places = [(spec.name, p) for spec in catalogue.topics.values() for p in range(spec.partitions)]
    say("Reading the logs by their bytes")
    log_dirs = {broker.node_id: broker.folder / "log" for broker in cluster.kafka.brokers}
    logs = read_at_rest(servers, log_dirs, places)
    decided, truths = logs.decided, logs.truths
    from_logs(logs, anomalies)
    # Not before the logs are at rest: a marker is a record as well.
    ends = seen.ends(servers, places)
    anomalies.looked_at = {
        "transactions committed": sum(decision.commits for decision in decided),
        "transactions aborted": sum(not decision.commits for decision in decided),
        "decisions taken back": sum(decision.taken_back for decision in decided),
        "records committed": sum(truth.fate.count(COMMITTED) for truth in truths.values()),
        "records aborted": sum(truth.fate.count(ABORTED) for truth in truths.values()),
    }
    say("Reading the topics as a reader of committed records")
    told = {catalogue.name(role) for role in ("payments", "dead-letters")}
    lost = sorted(load.acknowledged - _compare_with_readers(servers, ends, truths, told, anomalies))
    anomalies.add_all("lost", (f"order {key.decode()} was acknowledged" for key in lost))
    _compare_offsets(servers, catalogue, truths, anomalies)
    balances = seen.gateway_balances(cluster.settings.gateway_urls())
    from_balances(balances, load.amount_of, anomalies)
    _compare_sums(audited.summary, balances, anomalies)
    watch = cluster.watch
    if watch.stuck_s_max > STUCK_S_MAX:
        anomalies.add("LSO stuck", f"{watch.stuck_where} for {watch.stuck_s_max:.0f} s")
    from_exits(cluster.exits - cluster.excused, cluster.gave_up, anomalies)
    return anomalies


def from_audit(audited: AuditReport, anomalies: Anomalies) -> None:
    """Whatever is broken; and whatever is still on its way, since the flow is at rest.

    A wait for a person that the audit names has its owner and is an outcome that is promised: an
    inquiry that was answered by nobody for minutes.
    """
    for finding in audited.findings:
        named_wait = finding.name == "waits_for_a_person"
        if finding.severity is Severity.NOTE or (
            named_wait and finding.severity is Severity.PENDING
        ):
            continue
        anomalies.add(ANOMALY_OF[finding.name], f"{finding.name}: {finding.example}", finding.count)


def from_logs(logs: Logs, anomalies: Anomalies) -> None:
    """Ends against the coordinators' word, and what has none: the groups' own topic included,
    where an open transaction hides offsets."""
    truths = logs.truths | logs.offsets
    anomalies.add_all("torn transaction", broken_ends(logs.decided, truths))
    anomalies.add_all("LSO stuck", (f"{name} has not ended" for name in logs.under_way))
    for (topic, partition), truth in truths.items():
        for offset, fate in enumerate(truth.fate):
            if fate == OPEN:
                where = f"{topic}[{partition}]@{offset}"
                anomalies.add("LSO stuck", f"{where} belongs to a transaction that has no end")


def from_balances(
    balances: Mapping[str, Mapping[str, int]],
    amount_of: Callable[[str], int],
    anomalies: Anomalies,
) -> None:
    """What stays at the gateways of an order is between nothing and its amount, once. What was
    charged too late was given back."""
    for key, sums in sorted(balances.items()):
        left = _taken(sums) - _given_back(sums)
        if left > amount_of(key):
            anomalies.add("charged more than once", f"{key}: {left} taken of {amount_of(key)}")
        elif left < 0:
            anomalies.add("money created or destroyed", f"{key}: {-left} too much given back")


def _taken(sums: Mapping[str, int]) -> int:
    back = sums.get("charge_failed", 0) + sums.get("capture_failed", 0)
    return sums.get("charge", 0) + sums.get("capture", 0) - back


def _given_back(sums: Mapping[str, int]) -> int:
    return sums.get("refund", 0) - sums.get("refund_failed", 0)


def from_exits(exits: Mapping[str, int], gave_up: Iterable[str], anomalies: Anomalies) -> None:
    """Workers that ended in a way that no fault explains."""
    for where, times in sorted(exits.items()):
        if int(where.rpartition(":")[2]) not in _EXPECTED_EXITS:
            anomalies.add("crashed", f"{where}, {counted(times, 'times')}", times)
    anomalies.add_all("crashed", (f"gave up: {why}" for why in gave_up))


def _compare_with_readers(
    servers: str,
    ends: Mapping[Place, int],
    truths: Mapping[Place, PartitionTruth],
    topics: Container[str],
    anomalies: Anomalies,
) -> set[bytes]:
    """What a reader sees against what the markers say; the keys that he sees in these topics."""
    visible = {place: bytearray(len(truth.fate)) for place, truth in truths.items()}
    keys: set[bytes] = set()
    for message in seen.committed_records(servers, ends):
        place, offset, key = (message.topic(), message.partition()), message.offset(), message.key()
        marks = visible[place]
        if offset < len(marks):
            marks[offset] = 1
        if key is not None and place[0] in topics:
            keys.add(key)
    for (topic, partition), truth in truths.items():
        marks = visible[topic, partition]
        for offset, fate in enumerate(truth.fate):
            where = f"{topic}[{partition}]@{offset}"
            if fate == ABORTED and marks[offset]:
                anomalies.add("aborted visible (G1a)", where)
            elif fate == COMMITTED and not marks[offset]:
                anomalies.add("lost", f"{where} is committed and no reader sees it")
    return keys


def _compare_offsets(
    servers: str,
    catalogue: Catalogue,
    truths: Mapping[Place, PartitionTruth],
    anomalies: Anomalies,
) -> None:
    """Each group has read all whose time has come, and is nowhere beyond the end."""
    for stage in ("payments", "gateway", "ledger"):
        waits: dict[Place, bool] = {
            (spec.name, p): spec.role.startswith(_WAITS)
            for spec in catalogue.inputs(stage)
            for p in range(spec.partitions)
        }
        committed = seen.group_offsets(servers, catalogue.group(stage), waits)
        from_offsets(stage, committed, waits, truths, anomalies)


def from_offsets(
    stage: str,
    committed: Mapping[Place, int],
    waits: Mapping[Place, bool],
    truths: Mapping[Place, PartitionTruth],
    anomalies: Anomalies,
) -> None:
    """``waits``: whether records of that input may lie unread, their time not having come."""
    for place, offset in committed.items():
        fate = truths[place].fate
        last = fate.rfind(bytes((COMMITTED,)))
        where = f"group {stage} at {offset} of {place[0]}[{place[1]}]"
        if last >= max(offset, 0) and not waits[place]:
            anomalies.add("inconsistent offsets", f"{where}, whose last record is {last}")
        elif offset > len(fate):
            anomalies.add("inconsistent offsets", f"{where}, whose end is {len(fate)}")


def _compare_sums(
    summary: Mapping[str, Any], balances: Mapping[str, Mapping[str, int]], anomalies: Anomalies
) -> None:
    """Ledger, topic and gateways by their totals; the audit compares them one by one."""
    kinds = summary["settlements"]

    def settled(*names: str) -> int:
        none: dict[str, Any] = {"amount_minor": {}}
        return sum(sum(kinds.get(name, none)["amount_minor"].values()) for name in names)

    taken = sum(_taken(sums) for sums in balances.values())
    back = sum(_given_back(sums) for sums in balances.values())
    entries, settlements = summary["ledger"]["entries"], sum(k["count"] for k in kinds.values())
    name = "ledger, topic, gateway differ"
    if taken - back != settled("capture", "refund", "refund_failed"):
        anomalies.add(
            name,
            f"gateways {taken} taken, {back} given back; settled "
            f"{ {kind: settled(kind) for kind in kinds} }",
        )
    if entries != settlements:
        anomalies.add(name, f"{settlements} settlements, {entries} entries")
