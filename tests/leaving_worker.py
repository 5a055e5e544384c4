"""A worker that stays for as long as its file is there, then says that something is wrong outside:
``python -m tests.leaving_worker``. It imports nothing of ours: it starts at once."""

import os
import sys
import time

STAYS_WHILE = "LEAVING_WORKER_STAYS_WHILE"

if __name__ == "__main__":
    while os.path.exists(os.environ[STAYS_WHILE]):
        time.sleep(0.01)
    sys.exit(2)
