"""One audit from end to end: copies in the order that ``cut`` asks for, then the judgement."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.audit.checks import check
from pipeline.audit.evidence import Evidence
from pipeline.audit.gateway_copy import GatewayReader
from pipeline.audit.ledger_copy import LedgerReader
from pipeline.audit.log_copy import OPEN_TRANSACTION_WAIT_S, LogCopy, partition_counts
from pipeline.audit.report import Report
from pipeline.audit.summary import summarize
from schemas.codec import Codec, default_codec
from topics.catalogue import TopicSettings, build_catalogue

# What somebody has to end, whom nobody can hurry.
_NAMED_WAITS = frozenset({"waits_for_a_person", "waits_for_the_customer"})
# Between two looks at a flow that is still busy, if they take less.
POLL_S = 0.25


@dataclass(frozen=True)
class Sources:
    """What to audit. Without ``ledger_url`` or ``gateway_urls`` those books are not judged."""

    bootstrap_servers: str
    prefix: str = ""
    ledger_url: str | None = None
    gateway_urls: Sequence[str] = ()
    open_transaction_wait_s: float = OPEN_TRANSACTION_WAIT_S


def verify(
    sources: Sources,
    *,
    wait_s: float = 0.0,
    codec: Codec | None = None,
    on_round: Callable[[Report], None] | None = None,
) -> Report:
    """Audit the flow; while something is on its way look again, for ``wait_s`` at most.

    A further look reads only what is new. Waiting ends early when something is broken, or when
    all that is pending waits for a person or a customer. Raises AuditUnavailable when a server is
    away.
    """
    deadline = time.monotonic() + wait_s
    gateway = GatewayReader(sources.gateway_urls) if sources.gateway_urls else None
    ledger = LedgerReader(sources.ledger_url) if sources.ledger_url else None
    try:
        with open_log(sources) as log, _without_collections():
            evidence = Evidence(log.catalogue, codec or default_codec())
            while True:
                began = time.monotonic()
                report = _look(log, evidence, ledger, gateway)
                look_s = time.monotonic() - began
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not worth_waiting(report):
                    return report
                if on_round is not None:
                    on_round(report)
                # Looking takes half of the time at most: the flow needs the machine as well.
                time.sleep(min(max(POLL_S, look_s), left_s))
    finally:
        if ledger is not None:
            ledger.close()


def open_log(sources: Sources) -> LogCopy:
    """The topics of this prefix, with as many partitions as the cluster has."""
    catalogue = build_catalogue(TopicSettings(prefix=sources.prefix))
    counts = partition_counts(sources.bootstrap_servers, catalogue)
    return LogCopy(
        sources.bootstrap_servers,
        build_catalogue(TopicSettings(prefix=sources.prefix, partitions=counts["orders"])),
        open_transaction_wait_s=sources.open_transaction_wait_s,
    )


def worth_waiting(report: Report) -> bool:
    """Whether time alone may turn the verdict into whole."""
    return not report.broken and any(f.name not in _NAMED_WAITS for f in report.pending)


def _look(
    log: LogCopy,
    evidence: Evidence,
    ledger: LedgerReader | None,
    gateway: GatewayReader | None,
) -> Report:
    started = time.monotonic()
    if gateway is not None:
        gateway.read_before_log()
    booked = None if ledger is None else ledger.read()
    cut = log.advance(evidence.take)
    if gateway is not None:
        gateway.read_after_log()
    read_s = time.monotonic() - started
    charged = None if gateway is None else gateway.copy
    findings = check(evidence, cut, booked, charged)
    summary: dict[str, Any] = summarize(evidence, booked, charged)
    summary["not_judged"] = [
        name for name, copy in (("ledger", booked), ("gateway", charged)) if copy is None
    ]
    summary["audit"] = {
        "read_s": round(read_s, 2),
        "judged_s": round(time.monotonic() - started - read_s, 2),
        "peak_memory_mib": peak_memory_mib(),
    }
    return Report(findings, summary)


def peak_memory_mib() -> int:
    """The most memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Nothing here makes cycles, and walking millions of live objects costs more than reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
