"""What the database itself refuses, whoever is connected. One module for each form it has had.

Migrations need the earlier forms as they were, so a module of an earlier version never changes.
``missing`` compares a database with the form of now.
"""

from __future__ import annotations

from pipeline.ledger.guards.missing import missing_guards
from pipeline.ledger.guards.v6 import install

__all__ = ["install", "missing_guards"]
