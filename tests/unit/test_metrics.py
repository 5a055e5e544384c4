"""What a process shows before anything has happened."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import pipeline.processors
from pipeline.observability.metrics import Metrics
from pipeline.runtime import gateway_stage, payments_stage
from tests.support.engine_flow import EngineFlow


def value(name: str, **labels: str) -> float | None:
    return Metrics().registry.get_sample_value(f"{name}_total", labels)


def reasons_in_the_code() -> set[str]:
    """Every name that a processor gives to an input without effect: ``Decision(note=NAME)``."""
    found: set[str] = set()
    for path in Path(pipeline.processors.__path__[0]).glob("*.py"):
        module = importlib.import_module(f"pipeline.processors.{path.stem}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "note":
                found.add(eval(ast.unparse(node.value), vars(module)))
    return found


@pytest.mark.slow
def test_rare_counts_stand_at_zero_from_the_start(tmp_path: Path) -> None:
    """rate() does not see the birth of a series: the first rebuild, wait or duplicate would count
    for nothing in an alert."""
    for stage in (payments_stage.STAGE, gateway_stage.STAGE):
        assert value("paystream_producer_rebuilds", stage=stage) == 0
    for tier, _ in EngineFlow("127.0.0.1:1", "t.", tmp_path).stage()._tiers:
        assert value("paystream_tier_records", tier=tier) == 0
    reasons = reasons_in_the_code()
    assert "duplicate_order" in reasons
    for reason in reasons:
        found = value("paystream_inputs_without_effect", stage=payments_stage.STAGE, reason=reason)
        assert found == 0, f"{reason}: name it in pipeline/observability/metrics.py"
