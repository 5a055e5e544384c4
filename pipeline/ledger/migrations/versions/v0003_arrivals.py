"""The way from a time to the entries since that move what is available.

Those are the ones of no settlement, and refunds made outside a gateway. So payouts are created
without a look at every posting there ever was. All other settlements, which are most entries and
come in no order of time, are not in the index and cost nothing more. It is built under a lock that
writers wait for, in one pass over the entries.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX entry_arrival ON journal_entries (settled_at_ms) "
        "WHERE (settlement_id = '' OR kind = 'external_refund')"
    )
    op.execute("UPDATE ledger_schema SET version = 3")
