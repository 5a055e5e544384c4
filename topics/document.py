"""docs/topics.md from the catalogue: generated, committed, and held equal by a test.

Regenerate with ``python -m topics.document``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from topics.catalogue import DAY_MS, HOUR_MS, MIB, Catalogue, TopicSpec, build_catalogue

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "topics.md"


def render(catalogue: Catalogue | None = None) -> str:
    """The document's text for a catalogue, by default one with every setting at its default."""
    catalogue = catalogue or build_catalogue()
    s = catalogue.settings
    rows = [_row(spec) for spec in catalogue.topics.values()]
    settings = [_settings_row(spec) for spec in catalogue.topics.values()]
    groups = [
        f"| `{catalogue.group(stage)}` | {', '.join(f'`{t.name}`' for t in inputs)} |"
        for stage in ("payments", "gateway", "risk")
        if (inputs := catalogue.inputs(stage))
    ]
    return "\n".join(
        [
            "# Topics",
            "",
            "Generated from `topics/catalogue.py` by `python -m topics.document`; do not edit.",
            "",
            "Every topic has the same number of partitions "
            f"({s.partitions}) and the same key, `merchant_id:order_id` in UTF-8, "
            "partitioned by murmur2: all records of one order meet in one lane (risk checks and "
            "their table: all of one identity, key `kind:merchant:identity`; what operators write "
            "is keyed by what it is about, see its meaning). Values are Avro "
            "in the Confluent wire format (`0x00`, four bytes of schema id, body), except dead "
            "letters, whose value is the input they hold. Timestamps are the broker's "
            "(`LogAppendTime`). Partition counts never change once anything was written "
            "([more partitions](operations.md#more-partitions)).",
            "",
            "Inputs are admitted in the order of this table, so that results come before new "
            "orders.",
            "",
            "| topic | value | written by | read by | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## Settings",
            "",
            "A prefix, the partition count, the replication factor and the retention "
            "are settings of the installation.",
            "",
            "| topic | cleanup | kept for | largest batch | delay | other settings |",
            "|---|---|---|---|---|---|",
            *settings,
            "",
            "## Consumer groups",
            "",
            "Their first offsets are committed by `paystream topics apply`; a group that finds "
            "none stops and says so, instead of skipping records or hiding a loss. Where no group "
            "has one in the last partitions of a used flow, they were added from outside: "
            "provisioning and workers refuse.",
            "",
            "| group | reads |",
            "|---|---|",
            *groups,
            "",
            "The ledger keeps its offsets in its own database, in the transaction of its entries; "
            "so do the notifications, with their callbacks.",
            "",
        ]
    )


def _row(spec: TopicSpec) -> str:
    value = f"[`{spec.schema}`](../schemas/{spec.schema}.avsc)" if spec.schema else "as it came"
    return (
        f"| `{spec.name}` | {value} | {', '.join(spec.written_by)} "
        f"| {', '.join(spec.read_by) or 'views'} | {spec.meaning} |"
    )


# Shown in columns of their own.
_IN_COLUMNS: Final = ("cleanup.policy", "retention.ms", "max.message.bytes")


def _settings_row(spec: TopicSpec) -> str:
    others = ", ".join(
        f"`{key}={value}`" for key, value in spec.config.items() if key not in _IN_COLUMNS
    )
    delay = _duration(spec.delay_ms) if spec.delay_ms is not None else ""
    size = int(spec.config["max.message.bytes"]) // MIB
    return (
        f"| `{spec.name}` | {spec.config['cleanup.policy']} | {_kept_for(spec)} | {size} MiB "
        f"| {delay} | {others} |"
    )


def _kept_for(spec: TopicSpec) -> str:
    retention = spec.config.get("retention.ms")
    if retention is None:
        return "the latest of each key"
    return "ever" if retention == "-1" else _duration(int(retention))


def _duration(duration_ms: int) -> str:
    for size_ms, unit in ((DAY_MS, "days"), (HOUR_MS, "hours"), (1000, "seconds")):
        if duration_ms % size_ms == 0 and duration_ms >= size_ms:
            return f"{duration_ms // size_ms} {unit}"
    return f"{duration_ms} ms"


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(render(), encoding="utf-8")
