"""What the database itself refuses, whoever is connected. One module for each form it has had.

Migrations need the earlier forms as they were, so a module of an earlier version never changes.
"""

from __future__ import annotations

from pipeline.ledger.guards.v6 import install

__all__ = ["install"]
