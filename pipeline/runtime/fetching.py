"""How much a worker's consumer asks its brokers for at a time."""

from __future__ import annotations

from typing import Final

# For a consumer of many partitions. The client asks for all of them with each question, and the
# broker looks at all of them for each answer; one that answers for each record that arrives spends
# more on that than on the record. A kilobyte is a handful of records; a lone one waits this long.
GATHERING: Final = {"fetch.min.bytes": 1_000, "fetch.wait.max.ms": 20}

# What a worker fetches of a partition at a time, unless its first batch is larger. Of larger ones a
# broker gives those of one partition in an answer, and the others wait for all of them.
FETCH_BYTES: Final = 128 * 1024
# So those that are ours stay below it.
BATCH_BYTES: Final = 120_000
