"""The database's own word on what is booked once, whatever the writer has looked up before."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.exc import IntegrityError

from pipeline.ledger.tables import journal_entries, metadata


def test_the_database_refuses_a_second_entry_of_one_settlement() -> None:
    """Two writers that both found it missing: the key is unique, so one of them is refused."""
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    row = {
        "entry_number": 1, "entry_id": "settlement:s1", "settlement_id": "s1", "kind": "capture",
        "merchant_id": "shop", "order_id": "o1", "payment_id": "p1", "operation_id": "o1",
        "gateway": "alpha", "gateway_reference": "r1", "business_date": "2027-01-15",
        "source_topic": "settlements", "source_partition": 0, "source_offset": 0,
        "settled_at_ms": 1, "posted_at_ms": 1, "posting_count": 2,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(journal_entries).values(row))
    again = {**row, "entry_number": 2, "source_partition": 1}
    with pytest.raises(IntegrityError, match="entry_id"), engine.begin() as connection:
        connection.execute(insert(journal_entries).values(again))
