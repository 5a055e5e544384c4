"""Open breaks for the metrics: the ledger's worker looks at them now and then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from sqlalchemy import Engine

from pipeline.ledger.database import reading
from pipeline.ledger.reconciliation.breaks import BreakSum, open_sums
from pipeline.ledger.reconciliation.tables import is_prepared

_log = logging.getLogger(__name__)

# Breaks are found by a run, once a day or an hour; an alert may be this much later.
LOOK_S = 15.0


class BreakWatch:
    """A thread of its own, which writes nothing; ``tell`` gets all sums each time."""

    def __init__(
        self, engine: Engine, tell: Callable[[Sequence[BreakSum]], None], look_s: float = LOOK_S
    ) -> None:
        self._engine = engine
        self._tell = tell
        self._look_s = look_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="breaks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def look(self) -> None:
        """Once, now."""
        with reading(self._engine) as connection:
            self._tell(open_sums(connection) if is_prepared(connection) else ())

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:
                # Whatever it is: the figures stand still until it passes, so that has to be seen.
                _log.warning("breaks are counted later: %s", str(error).partition("\n")[0])
            if self._stopping.wait(self._look_s):
                return
