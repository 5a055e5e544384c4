"""Seals what is booked, behind the booking, for as long as a ledger's writer runs."""

from __future__ import annotations

import logging
import threading

from sqlalchemy import Engine

from pipeline.ledger.seals import seal

_log = logging.getLogger(__name__)

# How far the seals may lie behind an idle ledger; a busy one is sealed on without a pause.
PAUSE_S = 1.0
# After trouble with the database, which the writer tells about as well.
TROUBLE_S = 5.0


class Sealer:
    """A thread of its own; ended at any moment it leaves nothing half done."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the batch in hand; what is left is sealed by whoever comes next."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = PAUSE_S
        while not self._stopping.wait(pause_s):
            try:
                pause_s = 0.0 if seal(self._engine) else PAUSE_S
            except Exception as error:
                # Whatever it is: entries are booked without it, and sealed later.
                _log.warning("sealing is put off: %s", str(error).partition("\n")[0])
                pause_s = TROUBLE_S
