"""A worker process that has so much memory and no more, as in a container: what asks for more ends
it."""

from __future__ import annotations

import os
import resource
import sys

from pipeline.worker import main

MEMORY_MIB = "TEST_MEMORY_MIB"

if __name__ == "__main__":
    memory = int(os.environ[MEMORY_MIB]) * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    # What the client leaves behind when it has none.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
