"""How far a flow on this machine has come, out of its workers' counters: for a display, and to know
when there is nothing left to wait for. Whether it is right is the audit's to say."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

from pipeline.observability.exposition import totals

# After these a payment moves no further by itself; the last one waits for a person.
LAST_EVENTS: Final = ("captured", "failed", "rejected", "no_payment_due", "inquiry_exhausted")
# After one of these a refund or credit has been answered.
ANSWERS: Final = (
    "refunded", "credit_held", "command_rejected", "operation_declined", "operation_failed",
)  # fmt: skip


class Progress(Struct, frozen=True):
    """Counts since the workers started. ``moved``: captures, refunds and credits, each of which is
    an entry to be ``posted``."""

    taken: int
    dead: int
    calls: int
    ended: int
    answered: int
    captured: int
    moved: int
    posted: int


def progress(metrics_dir: Path) -> Progress:
    """The counters of all workers as they stand."""
    count = totals(metrics_dir)

    def events(*names: str) -> int:
        return sum(int(count.get(("paystream_payment_events_total", (n,)), 0)) for n in names)

    def total(name: str) -> int:
        return int(sum(value for (each, _), value in count.items() if each == name))

    return Progress(
        taken=events("payment_started", "rejected", "no_payment_due"),
        dead=total("paystream_dead_letters_total"),
        calls=total("paystream_gateway_calls_total"),
        ended=events(*LAST_EVENTS),
        answered=events(*ANSWERS),
        captured=events("captured"),
        moved=events("captured", "refunded", "credit_held"),
        posted=int(count.get(("paystream_ledger_entries_total", ("posted",)), 0)),
    )
