"""The variants, one after the other, over three brokers that they share."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.chaos.copying.variant import Result, Variant, run_variant
from pipeline.embedded.kafka import start_kafka, stop_kafka

FOLDER_PREFIX = "paystream-copy-"
# As the other runs with three brokers on two cores have it.
HEAP_MB = 320


def run_variants(
    variants: Sequence[Variant], *, rate_per_s: float, place: Path, say: Callable[[str], None]
) -> tuple[list[Result], Path | None]:
    """What each came to; and the folder with all logs where one was not exact, or broke off."""
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=place))
    results: list[Result] = []
    kept = True
    try:
        kafka = start_kafka(
            folder / "kafka", brokers=3, heap_mb=HEAP_MB, on_progress=say, die_with_parent=True
        )
        try:
            for number, variant in enumerate(variants):
                begun_s = time.monotonic()
                result = run_variant(
                    variant, kafka, folder, name=f"copy-{number}", rate_per_s=rate_per_s
                )
                results.append(result)
                say(
                    f"{variant.name}: {'exact' if result.exact else 'BROKEN'}, "
                    f"{result.messages:,} messages in {time.monotonic() - begun_s:,.0f} s"
                )
        finally:
            stop_kafka(kafka, 5.0)
        kept = not all(result.exact for result in results)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return results, folder if kept else None
