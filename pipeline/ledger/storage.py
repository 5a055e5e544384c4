"""Whether the database keeps its own rules: whole indexes, and each entry once.

A changed byte of an index leaves every row as it was sealed. But what is looked up by that index is
not found any more: the terms of a payment's first capture, or that its settlement is booked.
PostgreSQL checks its indexes by an extension (amcheck) that is not there everywhere, so here it is
asked for what came of them alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, text

from pipeline.ledger.damages import Damage

# Each tells where; a file that is spoilt altogether would be told of for ever.
_TOLD_MAX: Final = 100
_OF_INDEX: Final = re.compile(r"\bindex (\w+)")

# By what two entries may not share, in the rows themselves: neither is answered by an index.
DOUBLED: Final = (
    "SELECT min(entry_id), count(*), min(entry_number), max(entry_number) "
    "FROM journal_entries {unindexed} GROUP BY entry_id || '' HAVING count(*) > 1 ORDER BY 3",
    "SELECT min(source_topic) || '[' || source_partition || ']@' || source_offset, count(*), "
    "min(entry_number), max(entry_number) FROM journal_entries {unindexed} "
    "GROUP BY source_topic || '', source_partition, source_offset, source_part "
    "HAVING count(*) > 1 ORDER BY 3",
)


def storage_damages(connection: Connection) -> Iterator[Damage]:
    """What SQLite says of its file, and entries that are there twice on any database."""
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        yield from _of_file(connection)
    for asked in DOUBLED:
        rows = connection.execute(text(asked.format(unindexed="NOT INDEXED" if sqlite else "")))
        for what, count, first, last in rows:
            yield Damage("entry_doubled", f"journal_entries {first}, {last}",
                         f"{what} is booked {count} times")  # fmt: skip


def _of_file(connection: Connection) -> Iterator[Damage]:
    for (said,) in connection.exec_driver_sql(f"PRAGMA integrity_check({_TOLD_MAX})").all():
        for line in said.splitlines():
            if line == "ok" or line.startswith("***"):
                continue
            index = _OF_INDEX.search(line)
            if index is None:
                yield Damage("file_damaged", "file", line)
            else:
                yield Damage("index_differs", f"index {index[1]}", line)
