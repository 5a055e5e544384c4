"""Finds the record that kills a worker with a table, and holds up nothing else meanwhile.

What a worker has under way (the batch in preparation and the one that commits) is written to a file
beside the table's cache before it is handled: for each input partition the first and the last
offset. After a death these are the suspects, and only they are handled carefully: those of one
partition alone in a transaction, with half of the time. Another death narrows them to what was then
alone, and then to parts of it, down to single records; one that was alone at three deaths is
quarantined. A death from outside costs everything else the other half of the time, for as long as
the suspects take.

The file is written once for each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from msgspec import Struct, field, json

from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.state_file import InPlaceFile, StateFile
from pipeline.runtime.work import TopicPartitionKey

DEATHS_MAX = 3
# Of a suspected batch one partition's records are handled alone at a time, at most so many: nearly
# always nobody's record was to blame, and each piece is a transaction, seconds of slow brokers.
PIECE_MAX = 1_024
# What another death then leaves is handled so many at a time, and what that leaves one by one.
PIECE = 64


class _Range(Struct, array_like=True):
    """Offsets of one partition that were under way; ``end`` is the last one's successor."""

    topic: str
    partition: int
    first: int
    end: int

    @property
    def tp(self) -> TopicPartitionKey:
        return self.topic, self.partition


class _Suspect(Struct):
    """Whatever of a partition lies before ``until``. ``at`` was alone at ``deaths`` deaths, as a
    suspect: a record that happened to be the only one at a death is not counted for that."""

    topic: str
    partition: int
    until: int
    piece: int
    at: int = -1
    deaths: int = 0


class _State(Struct):
    """``older``: what was under way at deaths of before, in partitions not owned since."""

    under_way: list[_Range] = field(default_factory=list)
    suspects: list[_Suspect] = field(default_factory=list)
    starts: int = 0
    older: list[_Range] = field(default_factory=list)


class Suspects:
    """One for each worker slot. ``path`` is its file."""

    def __init__(self, path: Path, state_file: Callable[[Path], StateFile] = InPlaceFile) -> None:
        self._path = path
        self._open = state_file
        self._file: StateFile | None = None
        self._under_way: dict[TopicPartitionKey, _Range] = {}
        self._suspects: dict[TopicPartitionKey, _Suspect] = {}
        # What was under way at the last death, and at those before it, until it is known how far it
        # had been committed. Who was alone is asked of the last one.
        self._left: list[_Range] = []
        self._older: dict[TopicPartitionKey, _Range] = {}
        self._assigned = False
        # Starts that were followed neither by steady running nor by an orderly end, this one too.
        self._starts = 0

    def start(self) -> None:
        """Read what the process before this one left."""
        self._file = self._open(self._path)
        try:
            state = json.decode(self._file.read(), type=_State)
        except Exception:  # a new file, or one cut off with its disk: nobody is suspected
            state = _State()
        self._starts = state.starts + 1
        self._left = state.under_way
        self._older = {each.tp: each for each in state.older}
        self._suspects = {(each.topic, each.partition): each for each in state.suspects}
        self._save()

    @property
    def deaths(self) -> int:
        """How many lives before this one ended without a word, one after the other."""
        return max(0, self._starts - 1)

    def steady(self) -> None:
        """This life has gone on for so long that what ended the one before is behind."""
        if self._starts:
            self._starts = 0
            self._save()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __bool__(self) -> bool:
        """Whether anybody is suspected."""
        return bool(self._suspects)

    def among(self, partitions: Iterable[TopicPartitionKey]) -> int:
        """Of how many of these partitions records are suspected."""
        return sum(tp in self._suspects for tp in partitions)

    def until(self, tp: TopicPartitionKey) -> int:
        """Records of a partition before this offset are suspects; 0 when none are."""
        suspect = self._suspects.get(tp)
        return 0 if suspect is None else suspect.until

    def piece(self, tp: TopicPartitionKey) -> int:
        """How many suspects of a partition may be alone in a transaction together."""
        suspect = self._suspects.get(tp)
        return 1 if suspect is None else suspect.piece

    def is_condemned(self, record: InputRecord) -> bool:
        """Whether this record is not to be looked at any more: quarantine it."""
        suspect = self._suspects.get((record.topic, record.partition))
        return suspect is not None and suspect.at == record.offset and suspect.deaths >= DEATHS_MAX

    def assigned(self, positions: Mapping[TopicPartitionKey, int]) -> None:
        """The input partitions owned now, and where each begins: what lies before is no suspect."""
        for tp, position in positions.items():
            if self.until(tp) <= position:
                self._suspects.pop(tp, None)
        # What was committed after all was not under way at the death.
        left = [each for each in self._left if each.end > positions.get(each.tp, 0)]
        alone = len(left) == 1
        older = [each for tp, each in self._older.items() if each.end > positions.get(tp, 0)]
        for each in (*older, *left):
            if each.tp in positions:
                first = max(each.first, positions[each.tp])
                self._suspect(each, first, alone and each in left)
        self._left = [each for each in left if each.tp not in positions]
        self._older = {each.tp: each for each in older if each.tp not in positions}
        self._assigned = self._assigned or bool(positions)
        self._under_way = {}
        self._save()

    def took(self, records: Iterable[InputRecord]) -> None:
        """These are handled now, besides what is under way already."""
        ends = {(record.topic, record.partition): record.offset + 1 for record in records}
        firsts: dict[TopicPartitionKey, int] = {}
        for record in records:
            if len(firsts) == len(ends):
                break
            firsts.setdefault((record.topic, record.partition), record.offset)
        for tp, end in ends.items():
            known = self._under_way.get(tp)
            first = firsts[tp] if known is None else known.first
            self._under_way[tp] = _Range(*tp, first, end)
        self._save()

    def committed(self, offsets: Mapping[TopicPartitionKey, int]) -> None:
        """A transaction went through up to these next offsets."""
        for tp, offset in offsets.items():
            known = self._under_way.get(tp)
            if known is not None:
                # Written down with the next batch: an assignment knows by the offsets.
                if known.end <= offset:
                    del self._under_way[tp]
                else:
                    self._under_way[tp] = _Range(*tp, offset, known.end)
            suspect = self._suspects.get(tp)
            if suspect is not None:
                if suspect.until <= offset:
                    del self._suspects[tp]
                elif suspect.at < offset:
                    suspect.at, suspect.deaths = -1, 0

    def acquit(self, tp: TopicPartitionKey) -> None:
        """No suspect of this partition is left."""
        self._suspects.pop(tp, None)

    def forgot(self) -> None:
        """Everything under way was dropped, and will be read again."""
        if self._under_way:
            self._under_way = {}
            self._save()

    def excused(self) -> None:
        """The process ends by itself, or because something outside is wrong: no record's doing."""
        self._under_way = {}
        self._left, self._older = [], {}
        self._starts = max(0, self._starts - 1)
        self._save()

    def _suspect(self, left: _Range, first: int, alone: bool) -> None:
        """Suspect what was under way of a partition; ``alone``: nothing else was."""
        size = left.end - first
        known = self._suspects.get(left.tp)
        if alone:
            piece = PIECE if size > PIECE else 1
        else:
            piece = min(size, PIECE_MAX if known is None else known.piece)
        suspect = _Suspect(*left.tp, left.end, piece)
        if known is not None:
            suspect.at, suspect.deaths = known.at, known.deaths
            if not alone:
                suspect.until = max(known.until, left.end)
            if alone and size == 1:
                suspect.deaths = known.deaths + 1 if known.at == first else 1
                suspect.at = first
        self._suspects[left.tp] = suspect

    def _save(self) -> None:
        if self._file is None:
            return
        older, under_way = dict(self._older), list(self._under_way.values())
        if self._assigned:
            # The next death is another one.
            older |= {each.tp: each for each in self._left}
        else:
            under_way += self._left
        state = _State(under_way, list(self._suspects.values()), self._starts, list(older.values()))
        self._file.write(json.encode(state))
