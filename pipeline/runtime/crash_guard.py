"""Finds the record that kills the process, so that it cannot stop its lane for ever.

A file beside the table cache counts the starts that were not followed by a commit or a clean stop.
After three of them the worker becomes careful: it takes one record a transaction and writes its
coordinates down before it is handled. A record found written down after three deaths is
quarantined. In normal running the file is touched at start and at the first commit only.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct, json

DEATHS_MAX = 3
# A careful worker that got this far without dying is past the record that killed it.
CAREFUL_COMMITS = 200


class _State(Struct):
    deaths: int = 0
    suspect: tuple[str, int, int] | None = None
    suspect_deaths: int = 0


class CrashGuard:
    """One for each worker slot. ``careful`` asks the worker for one record a transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _State()
        self._commits = 0

    def start(self) -> None:
        """Count this start as a death until a commit or a clean stop says otherwise."""
        try:
            self._state = json.decode(self._path.read_bytes(), type=_State)
        except Exception:  # no file yet, or one cut off by the crash: nothing is suspected
            self._state = _State()
        self._state.deaths += 1
        if self._state.suspect is not None:
            self._state.suspect_deaths += 1
        self._save()

    @property
    def careful(self) -> bool:
        return self._state.deaths > DEATHS_MAX

    def handling(self, topic: str, partition: int, offset: int) -> bool:
        """Called in careful mode before a record is handled; False means: quarantine it."""
        here = (topic, partition, offset)
        state = self._state
        if state.suspect == here:
            return state.suspect_deaths < DEATHS_MAX
        state.suspect, state.suspect_deaths = here, 0
        self._save()
        return True

    def committed(self) -> None:
        """A transaction went through: deaths so far were not without progress."""
        if self._state.suspect is not None:
            self._state.suspect, self._state.suspect_deaths = None, 0
            self._save()
        self._commits += 1
        if self._commits == (CAREFUL_COMMITS if self.careful else 1):
            self._reset()

    def stopped(self) -> None:
        """A clean stop."""
        self._reset()

    def _reset(self) -> None:
        self._state = _State()
        self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(json.encode(self._state))
        temporary.replace(self._path)
