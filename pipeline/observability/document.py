"""docs/metrics.md from the metrics themselves: generated, committed, and held equal by a test.

Regenerate with ``python -m pipeline.observability.document``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from pipeline.observability.exposition import LagCollector, RestartCollector
from pipeline.observability.metrics import Metrics

DOCUMENT: Final = Path(__file__).parent.parent.parent / "docs" / "metrics.md"

_BEFORE: Final = """\
# Metrics

Generated from `pipeline/observability/metrics.py` and `pipeline/observability/exposition.py` by
`python -m pipeline.observability.document`; do not edit.

Each `paystream run` and `paystream up` serves one page for all its workers, summed, at
`http://<metrics_host>:<metrics_port>/metrics` (see [configuration](configuration.md#watching)).
Counters of a dead worker stay in the sum until the supervisor itself ends.

- A counter with labels appears with its first event, and `increase()` does not see a birth. The
  alerts in `deploy/prometheus/alerts.yml` show how not to miss a single one.
- A histogram `x` is read as `x_bucket`, `x_sum` and `x_count`.
- `paystream_consumer_lag` counts the markers of transactions as well: a group that has read
  everything often shows 1 for each partition. Never alert on a lag that is not 0, but on
  `paystream_consumer_stalled_seconds`.
- What an alert means and what to do: [operations](operations.md#alerts).

| metric | type | labels | meaning |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Described:
    """A metric under the name it is scraped by. ``series`` are the names that queries may use."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def series(self) -> tuple[str, ...]:
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}{suffix}" for suffix in ("", "_bucket", "_sum", "_count"))


def described() -> list[Described]:
    """Every metric, in the order of the code."""
    found = []
    for metric in vars(Metrics()).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        name, kind = metric._name, str(metric._type)
        if isinstance(metric, Counter):
            name = f"{name}_total"
        elif isinstance(metric, Histogram):
            kind = "histogram"
        found.append(Described(name, kind, tuple(metric._labelnames), metric._documentation))
    lag, restarts = LagCollector({}), RestartCollector(dict)
    try:
        for collector in (lag, restarts):
            for family in collector.collect():
                labels = tuple(family._labelnames)
                found.append(Described(family.name, str(family.type), labels, family.documentation))
    finally:
        lag.close()
    return found


def render() -> str:
    """The document's text."""
    return _BEFORE + "".join(_rows())


def _rows() -> Iterator[str]:
    for metric in described():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |\n"


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
