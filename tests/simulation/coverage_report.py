"""Branch coverage of the engine and the processors by simulated runs, measured in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.simulation.seeds import Drawn

MEASURED = (
    "pipeline/processors",
    "pipeline/domain/card_attempts.py",
    "pipeline/domain/charges.py",
    "pipeline/domain/commands.py",
    "pipeline/domain/disputes.py",
    "pipeline/domain/reversals.py",
    "pipeline/domain/risk_velocity.py",
    "pipeline/runtime/admission.py",
    "pipeline/runtime/batch.py",
    "pipeline/runtime/calls.py",
    "pipeline/runtime/commit_policy.py",
    "pipeline/runtime/commit_thread.py",
    "pipeline/runtime/crash_guard.py",
    "pipeline/runtime/end_txn_watch.py",
    "pipeline/runtime/gateway_stage.py",
    "pipeline/runtime/gateway_worker.py",
    "pipeline/runtime/heard.py",
    "pipeline/runtime/held_inputs.py",
    "pipeline/runtime/kafka_errors.py",
    "pipeline/runtime/lane.py",
    "pipeline/runtime/late_words.py",
    "pipeline/runtime/payments_stage.py",
    "pipeline/runtime/prefix.py",
    "pipeline/runtime/protection.py",
    "pipeline/runtime/restore.py",
    "pipeline/runtime/risk_stage.py",
    "pipeline/runtime/suspects.py",
    "pipeline/runtime/table.py",
    "pipeline/runtime/table_worker.py",
    "pipeline/ledger/journal.py",
    "consumers/ledger_sink.py",
)


def print_coverage(seeds: Iterable[Drawn]) -> int:
    """Run the seeds under coverage and print a line for each module. How many seeds failed."""
    import coverage

    top = Path(__file__).parents[2]
    measure = coverage.Coverage(
        branch=True,
        data_file=None,
        config_file=False,
        concurrency=["greenlet", "thread"],
        include=[str(top / (each if each.endswith(".py") else f"{each}/*")) for each in MEASURED],
    )
    loaded = [name for name in sys.modules if name.startswith(("pipeline.", "consumers."))]
    for name in loaded:
        del sys.modules[name]
    measure.start()
    for name in [name for name in sys.modules if name.startswith("tests.simulation.")]:
        if name != __name__:
            del sys.modules[name]
    from tests.simulation.plan import draw
    from tests.simulation.run import run_plan

    failed = 0
    for seed, mix in seeds:
        violation = run_plan(draw(seed, mix)).violation
        if violation is not None:
            failed += 1
            print(f"seed {seed} ({mix}): {violation}")
    measure.stop()
    measure.report(file=sys.stdout, show_missing=False)
    return failed
