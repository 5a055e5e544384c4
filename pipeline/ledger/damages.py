"""What may be wrong with the books, by name."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

# What may be found, and what it means.
DAMAGES: Final = {
    "entry_changed": "An entry or a line of it is not what was sealed.",
    "entry_missing": "A sealed entry is not there.",
    "entry_unsealed": "An entry lies before the newest seal and was never sealed.",
    "seal_changed": "A seal is not the one that its entry has.",
    "seal_missing": "A seal of a chain is not there.",
    "seals_without_chain": "Seals belong to no chain.",
    "entry_unbalanced": "Debits and credits of an entry differ, or lines of it are missing.",
    "entry_doubled": "Two entries have one id, or come of one part of one record.",
    "postings_without_entry": "Lines belong to no entry.",
    "balance_differs": "A balance is not the sum of its postings.",
    "account_of_another_currency": "What belongs to one currency has a balance in another.",
    "entry_beyond_offset": "An entry comes from where nothing is booked yet.",
    "offset_source_differs": "Offsets of one topic name different clusters or topic ids.",
    "entry_in_closed_period": "An entry came after its period was closed and counts in it.",
    "day_unreadable": "A day of an entry is no date: whether its period is closed is not known.",
    "offset_changed": "A stored offset is not as the ledger wrote it.",
    "index_differs": "An index is not that of its table: what is looked up by it is not found.",
    "file_damaged": "The file, or a row of it, is not as SQLite would have written it.",
    "row_unreadable": "A row holds bytes that are no text, or a value of another type.",
    "not_judged": "What damaged rows or pages are in the way of is not judged further.",
    "guard_missing": "A guard is gone, off or another one, or a trigger is in the way of guards.",
    "schema_differs": "The migration that the database names is not the one of its version.",
    "decision_changed": "A decision is not the one that was made.",
    "decision_missing": "A decision that was made is not there.",
    "decision_posted_otherwise": "A booked decision has other entries than the one, or none, that "
    "it posts, or of several one that it does not post.",
}


class Damage(Struct, frozen=True):
    """One thing that is wrong; ``place`` is where: topic[partition]@offset, or a table's row."""

    name: str
    place: str
    detail: str
