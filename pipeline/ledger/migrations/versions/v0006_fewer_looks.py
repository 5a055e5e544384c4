"""An entry's postings are read once for its check, and the index of payments holds settlements.

What reconciliation clears is booked of the same payments again, at random places of their index,
and nobody looks it up by that. It is built anew under a lock that writers wait for, in one pass
over the entries. Writers of an earlier version go on afterwards; once there are fees, they look for
a payment's entries without the index: replace them soon.
"""

from __future__ import annotations

from alembic import op

from pipeline.ledger.guards import v5

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    v5.bring_forward(op.get_bind())
    op.execute("DROP INDEX entry_payment")
    op.execute(
        "CREATE INDEX entry_settled_payment ON journal_entries (payment_id) "
        "WHERE settlement_id <> ''"
    )
    op.execute("UPDATE ledger_schema SET version = 6")
