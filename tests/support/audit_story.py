"""Judging what a driven flow wrote, as ``paystream verify`` would judge the same on a cluster."""

from __future__ import annotations

from pipeline.audit.checks import check
from pipeline.audit.cut import Cut
from pipeline.audit.evidence import Evidence
from pipeline.audit.gateway_copy import GatewayCopy
from pipeline.audit.log_copy import LogRecord
from pipeline.audit.report import Finding
from pipeline.domain.keys import partition_of
from pipeline.processors.driver import FlowDriver
from schemas.codec import default_codec
from topics.catalogue import TopicSettings, build_catalogue

CATALOGUE = build_catalogue(TopicSettings(partitions=1))
CODEC = default_codec()


def judged_flow(flow: FlowDriver, books: GatewayCopy | None) -> list[Finding]:
    """What the audit says of a flow at rest: all of its inputs but timers are processed."""
    evidence = Evidence(CATALOGUE, CODEC)
    ends = {}
    for role in CATALOGUE.topics:
        records = flow.topics.get(role, [])
        ends[role, 0] = len(records)
        for offset, record in enumerate(records):
            partition = partition_of(record.key, 1)
            evidence.take(
                role,
                LogRecord(
                    partition,
                    offset,
                    record.timestamp_ms,
                    record.key,
                    record.value,
                ),
            )
    committed = dict(ends)
    for due in flow.waits():
        role = f"payment-{due.purpose}-{due.tier}"
        assert due.purpose == "timer"
        committed[role, 0] = 0
    cut = Cut(
        partitions=dict.fromkeys(CATALOGUE.topics, 1),
        ends=ends,
        committed={"payments": committed, "gateway": committed},
        untouched=committed,
    )
    return check(evidence, cut, None, books)
