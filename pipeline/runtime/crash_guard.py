"""Finds the request that kills a gateway worker, so that it cannot stop its lane for ever.

Calls overlap by design, so whose fault a death is can be said only while one call is open. Workers
with a table narrow it down without that (``suspects``).

A file beside the table cache counts the starts that were not followed by steady running or an
orderly end. After three of them the worker becomes careful: it takes one record a transaction and
writes its coordinates down before it is handled. A record that was written down at three deaths is
quarantined.

Other partitions go on between two deaths, so neither a commit nor a record that comes first after
a restart says that the culprit is behind: suspects are remembered until their own partition is
committed past them. In normal running the file is touched at start and once after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from msgspec import Struct, field, json

from pipeline.runtime.state_file import InPlaceFile, StateFile

DEATHS_MAX = 3
# A worker that got this far without dying is past the record that killed it: a poisoned record is
# the next of its partition, so it is fetched within seconds of a start.
STEADY_COMMITS = 200
STEADY_S = 30.0

TopicPartitionKey = tuple[str, int]


class _Suspect(Struct):
    topic: str
    partition: int
    offset: int
    deaths: int = 0

    def is_at(self, topic: str, partition: int, offset: int) -> bool:
        return (self.topic, self.partition, self.offset) == (topic, partition, offset)


class _State(Struct):
    deaths: int = 0
    # The record being handled, and those that were being handled at a death. A lane stops at its
    # suspect, so there is at most one for each input partition.
    current: _Suspect | None = None
    suspects: list[_Suspect] = field(default_factory=list)


class CrashGuard:
    """One for each worker slot. ``careful`` asks the worker for one record a transaction."""

    def __init__(
        self,
        path: Path,
        *,
        now_s: Callable[[], float] = time.monotonic,
        state_file: Callable[[Path], StateFile] = InPlaceFile,
    ) -> None:
        self._path = path
        self._open = state_file
        self._file: StateFile | None = None
        self._now_s = now_s
        self._started_s = now_s()
        self._state = _State()
        self._owned: frozenset[TopicPartitionKey] = frozenset()
        self._commits = 0
        self._steady = False

    def start(self) -> None:
        """Count this start as a death until steady running or an orderly end says otherwise."""
        self._file = self._open(self._path)
        try:
            self._state = json.decode(self._file.read(), type=_State)
        except Exception:  # no file yet, or one cut off by the crash: nothing is suspected
            self._state = _State()
        self._started_s = self._now_s()
        state = self._state
        state.deaths += 1
        if state.current is not None:
            known = self._suspect(
                state.current.topic, state.current.partition, state.current.offset
            )
            if known is None:
                known = state.current
                state.suspects.append(known)
            known.deaths += 1
            state.current = None
        self._save()

    @property
    def deaths(self) -> int:
        """How many lives before this one ended without a word, one after the other."""
        return max(0, self._state.deaths - 1)

    @property
    def careful(self) -> bool:
        return self._state.deaths > DEATHS_MAX

    def handling(self, topic: str, partition: int, offset: int) -> bool:
        """Called in careful mode before a record is handled; False means: quarantine it."""
        suspect = self._suspect(topic, partition, offset)
        if suspect is not None and suspect.deaths >= DEATHS_MAX:
            # Not looked at, so a death from here on is not its doing.
            self._state.current = None
            return False
        self._state.current = _Suspect(topic, partition, offset)
        self._save()
        return True

    def suspected(self) -> list[tuple[str, int, int]]:
        """Topic, partition and offset of each record that was in hand at a death."""
        return [(s.topic, s.partition, s.offset) for s in self._state.suspects]

    def assigned(self, partitions: Iterable[TopicPartitionKey]) -> None:
        """The input partitions owned now; a suspect of another's does not hold this worker up."""
        self._owned = frozenset(partitions)

    def committed(self, offsets: Mapping[TopicPartitionKey, int]) -> None:
        """A transaction went through up to these next offsets of its input partitions."""
        if self._steady:
            return
        state = self._state
        if state.current is not None or state.suspects:
            # The next record may be in hand already, while the one before it was committed.
            if state.current is not None and _is_behind(state.current, offsets):
                state.current = None
            state.suspects = [s for s in state.suspects if not _is_behind(s, offsets)]
            self._save()
        self._commits += 1
        if (
            self._commits >= STEADY_COMMITS
            and self._now_s() - self._started_s >= STEADY_S
            and not any((s.topic, s.partition) in self._owned for s in state.suspects)
        ):
            self._steady = True
            self._state = _State()
            self._save()

    def excused(self) -> None:
        """The process ends because something outside is away or wrong: no record's doing."""
        self._state.deaths = max(0, self._state.deaths - 1)
        self._state.current = None
        self._save()

    def stopped(self) -> None:
        """A clean stop: this start was no death. What was suspected before still is."""
        self.excused()

    def _suspect(self, topic: str, partition: int, offset: int) -> _Suspect | None:
        return next((s for s in self._state.suspects if s.is_at(topic, partition, offset)), None)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _save(self) -> None:
        if self._file is not None:
            self._file.write(json.encode(self._state))


def _is_behind(record: _Suspect, offsets: Mapping[TopicPartitionKey, int]) -> bool:
    return record.offset < offsets.get((record.topic, record.partition), 0)
