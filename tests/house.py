"""Where the parts of the house are, for the tests that look after it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "topics", "schemas", "consumers", "producers")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())
