"""Every scenario that was asked for, one after the other, each over a flow of its own."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.chaos.overload import (
    clock,
    hot_order,
    large_records,
    letters,
    paused,
    restored,
    throttled,
)
from pipeline.chaos.overload.scenario import Options, Outcome, Say
from pipeline.errors import UserError

FOLDER_PREFIX = "paystream-overload-"

SCENARIOS: Mapping[str, Callable[[Options, Say], Outcome]] = {
    throttled.NAME: throttled.run,
    paused.NAME: paused.run,
    large_records.NAME: large_records.run,
    letters.NAME: letters.run,
    hot_order.NAME: hot_order.run,
    restored.NAME: restored.run,
    clock.NAME: clock.run,
}


def run_scenarios(
    names: Sequence[str], options: Options, say: Say
) -> tuple[list[Outcome], Path | None]:
    """What each came to; and the folder with all logs where one did not hold, or broke off.

    UserError when they cannot run here, or what they start does not start.
    """
    if sys.platform != "linux":
        raise UserError("the scenarios measure and stop processes by means that only Linux has.")
    options.place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=options.place))
    outcomes = []
    kept = False
    try:
        for name in names:
            say(name)
            begun_s = time.monotonic()
            outcome = SCENARIOS[name](replace(options, place=folder), say)
            outcome.took_s = time.monotonic() - begun_s
            outcomes.append(outcome)
            for claim in outcome.claims:
                say(f"  {'holds' if claim.held else 'BROKEN'}: {claim.must}: {claim.seen}")
            if outcome.held:
                # Gigabytes of it, and the next one needs the room.
                shutil.rmtree(folder / name, ignore_errors=True)
            else:
                kept = True
    except Exception:
        kept = True
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes, folder if kept else None
