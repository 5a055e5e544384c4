"""How much a worker's consumer asks its brokers for at a time."""

from __future__ import annotations

from typing import Final

# For a consumer of many partitions. The client asks for all of them with each question, and the
# broker looks at all of them for each answer; one that answers for each record that arrives spends
# more on that than on the record. A kilobyte is a handful of records; a lone one waits this long.
GATHERING: Final = {"fetch.min.bytes": 1_000, "fetch.wait.max.ms": 20}

# What a worker fetches of a partition at a time, unless its first batch is larger.
FETCH_BYTES: Final = 64 * 1024
