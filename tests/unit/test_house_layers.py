"""The rules about who may import what: they hold, and they can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import PACKAGES, TOP, pyproject

IMPURE = """\
import time
import uuid
from datetime import datetime

print(datetime.now(), uuid.uuid4(), time.time())
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", ["domain", "processors"])
def test_a_decision_that_reads_a_clock_or_makes_an_id_is_refused(part: str) -> None:
    """datetime.now, uuid4 and time in the pure part are findings of the linter."""
    found = ruff_findings(f"pipeline/{part}/order.py")
    assert "datetime.datetime.now" in found
    assert "uuid.uuid4" in found
    assert "`time` is banned" in found


@pytest.mark.slow
def test_the_rest_may_read_clocks() -> None:
    """The same lines are fine where time is measured."""
    assert "TID251" not in ruff_findings("pipeline/runtime/worker.py")


@pytest.mark.slow
def test_forbidden_imports_break_the_contracts(tmp_path: Path) -> None:
    """One wrong import for each rule is found by its rule."""
    for package in PACKAGES:
        shutil.copytree(
            TOP / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    wrong = {
        "pipeline/domain/wrong_layer.py": "import pipeline.runtime",
        "pipeline/domain/wrong_clock.py": "import time",
        "pipeline/processors/wrong_reach.py": "import schemas.wrong_reach",
        "schemas/wrong_reach.py": "import sqlalchemy",
        "pipeline/gateways/wrong_client.py": "import confluent_kafka",
        "pipeline/gateways/adapters/wrong_view.py": "import pipeline.gateways.simulator",
        "pipeline/audit/wrong_source.py": "import pipeline.processors",
        "pipeline/gateways/simulator/process.py": "import aiohttp",
        "pipeline/embedded/wrong_knowledge.py": "import topics.catalogue",
        "pipeline/chaos/wire.py": "import pipeline.runtime",
        "pipeline/observability/wrong_knowledge.py": "import pipeline.domain",
        "pipeline/ledger/wrong_watcher.py": "import pipeline.observability",
    }
    for path, line in wrong.items():
        (tmp_path / path).write_text(line + "\n")
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    assert f"Contracts: 0 kept, {len(contracts)} broken." in result.stdout, result.stdout


def ruff_findings(path: str) -> str:
    """What ruff says of the impure lines, were they in that file."""
    return subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", path, "-"],
        cwd=TOP,
        input=IMPURE,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout
