"""A worker process that one order kills: ``python -m tests.support.poisoned_worker``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from pipeline import worker
from pipeline.processors.order import process_order
from pipeline.runtime import payments_stage

POISON = "poison"


def main() -> int:
    """The production entry point, over an order processor that dies of the poison."""

    def deadly(payment: Any, order: Any, now_ms: int, policy: Any) -> Any:
        if order.order_id == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return process_order(payment, order, now_ms, policy)

    vars(payments_stage)["process_order"] = deadly
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
