"""No further part of a record that a settlement was booked by; the tables stay as they are."""

from __future__ import annotations

from alembic import op

from pipeline.ledger.guards import v6

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    v6.bring_forward(op.get_bind())
    op.execute("UPDATE ledger_schema SET version = 7")
