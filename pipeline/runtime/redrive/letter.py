"""What one dead letter is, and how its pieces become one again. Bytes in, letters out; no client.

A letter is named by the partition and offset of its first piece. An input that was too large for
one record lies in several pieces, which other stages' letters may stand between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from sys import intern
from typing import Final

from msgspec import Struct

from pipeline.domain.card_numbers import is_masked, mask_card_number_text, mask_card_numbers

Place = tuple[int, int]
Headers = list[tuple[str, bytes]]

ORIGINAL: Final = "dlq.header."
# The cause of a letter that names none: nobody of this flow has written it.
NO_LINEAGE: Final = "no_lineage"
_CHUNK: Final = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")
_NEEDED: Final = ("dlq.topic", "dlq.partition", "dlq.offset", "dlq.stage", "dlq.cause")


class Piece(Struct, frozen=True, gc=False):
    """One record of the dead-letter topic."""

    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class BatchSaid(Struct, frozen=True, gc=False):
    """What the letter of a batch that no client can decompress says of it."""

    last_offset: int
    records: int
    size: int
    sha256: str


class Letter(Struct, gc=False):
    """One dead letter without its bytes.

    ``source_*`` is where the input was, ``at_ms`` when the letter was written. ``attempts``: how
    often the record had been redriven and buried before; ``first`` its first letter, as this one's
    headers say. ``masked`` names what holds masked card numbers, else it is empty. ``pieces`` are
    offsets, as far as they are there; ``problem`` says why the input cannot be had from it.
    ``headers_unreadable`` says why the input's headers are not in it, else it is empty.
    """

    partition: int
    offset: int
    at_ms: int
    key: bytes | None
    topic: str
    source_partition: int
    source_offset: int
    source_at_ms: int
    stage: str
    cause: str
    detail: str
    attempts: int
    first: Place
    first_ms: int
    masked: str
    size: int
    pieces: list[int]
    pieces_all: int
    problem: str | None = None
    batch: BatchSaid | None = None
    headers_unreadable: str = ""

    @property
    def place(self) -> Place:
        return self.partition, self.offset

    @property
    def name(self) -> str:
        return place_text(self.place)

    @property
    def source(self) -> tuple[str, int, int]:
        return self.topic, self.source_partition, self.source_offset

    @property
    def key_text(self) -> str:
        return printable((self.key or b"").decode("utf-8", "replace"))


class Whole(Struct):
    """A letter with the input that it holds: the bytes, and the headers that the input had."""

    letter: Letter
    value: bytes | None
    headers: Headers

    @property
    def shown_value(self) -> bytes:
        """The bytes as people may see them: nobody masked those of a record that this flow did not
        write."""
        value = self.value or b""
        return value if self.letter.problem is None else mask_card_numbers(value)

    @property
    def shown_headers(self) -> list[tuple[str, str]]:
        """The same of the headers, as text."""
        texts = [(name, text.decode("utf-8", "replace")) for name, text in self.headers]
        if self.letter.problem is None:
            return texts
        return [(name, mask_card_number_text(text)) for name, text in texts]


class Joiner:
    """Makes letters of pieces, fed in the order of each partition.

    A piece continues the newest letter of the same input that waits for just this piece; any other
    piece begins a letter, which then lacks those before it. One that names no input is a letter by
    itself.
    """

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self._open: dict[tuple[str, int, int, str, int], Letter] = {}

    def take(self, piece: Piece) -> Letter:
        """The letter that this piece belongs to."""
        headers = _texts(piece)
        number, count = _chunk(headers)
        said = _letter(piece, headers, number, count)
        if said.problem is not None:
            # It names no input, so no other piece is of the same one.
            self.letters.append(said)
            return said
        if number > 1:
            key = (said.topic, said.source_partition, said.source_offset, said.stage, count)
            letter = self._open.get(key)
            if letter is not None and len(letter.pieces) == number - 1:
                letter.pieces.append(piece.offset)
                letter.size += said.size
                letter.masked = letter.masked or said.masked
                letter.problem = _missing(len(letter.pieces), count)
                if number == count:
                    del self._open[key]
                return letter
            said.problem = f"piece 1 of {count} is missing"
        elif count > 1:
            key = (said.topic, said.source_partition, said.source_offset, said.stage, count)
            self._open[key] = said
            said.problem = _missing(1, count)
        self.letters.append(said)
        return said


def join(pieces: Iterator[Piece], wanted: dict[Place, Letter]) -> Iterator[Whole]:
    """The wanted letters with their bytes, each as soon as its last piece has come.

    ``wanted`` by the place of each piece. Only letters that are under way are held in memory.
    """
    parts: dict[Place, list[bytes]] = {}
    for piece in pieces:
        letter = wanted.get((piece.partition, piece.offset))
        if letter is None:
            continue
        if piece.offset == letter.pieces[-1] and len(letter.pieces) == 1:
            yield Whole(letter, piece.value, original_headers(piece))
            continue
        held = parts.setdefault(letter.place, [])
        held.append(piece.value or b"")
        if len(held) == len(letter.pieces):
            del parts[letter.place]
            yield Whole(letter, b"".join(held), original_headers(piece))


def original_headers(piece: Piece) -> Headers:
    """The headers that the input had, in their order."""
    return [
        (name.removeprefix(ORIGINAL), value or b"")
        for name, value in piece.headers
        if name.startswith(ORIGINAL)
    ]


def looks_masked(value: bytes | None) -> bool:
    """Whether these bytes hold what a masked card number looks like."""
    return value is not None and is_masked(value)


def place_text(place: Place) -> str:
    return f"{place[0]}:{place[1]}"


def parse_place(text: str) -> Place | None:
    """A letter's name, ``PARTITION:OFFSET``; None for anything else."""
    partition, colon, offset = text.partition(":")
    numbers = partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()
    if not (colon and numbers and len(partition) < 10 and len(offset) < 20):
        return None
    return int(partition), int(offset)


def printable(text: str) -> str:
    """Without control characters: a record must not be able to steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _texts(piece: Piece) -> dict[str, str]:
    return {
        name: (value or b"").decode("utf-8", "replace")
        for name, value in piece.headers
        if name.startswith("dlq.") and not name.startswith(ORIGINAL)
    }


def _chunk(headers: dict[str, str]) -> tuple[int, int]:
    found = _CHUNK.fullmatch(headers.get("dlq.chunk", ""))
    if found is None or int(found[1]) > int(found[2]):
        return 1, 1
    return int(found[1]), int(found[2])


def _letter(piece: Piece, headers: dict[str, str], number: int, count: int) -> Letter:
    missing = next((name for name in _NEEDED if not headers.get(name)), None)
    source_partition = _number(headers.get("dlq.partition"))
    source_offset = _number(headers.get("dlq.offset"))
    problem = None
    if missing is not None:
        problem = f"it has no header {missing}"
    elif source_partition is None or source_offset is None:
        problem = "its headers do not say where the input was"
    key = piece.key
    if problem is not None:
        # A stranger's: whoever wrote it masked nothing.
        headers = {name: mask_card_number_text(text) for name, text in headers.items()}
        key = None if key is None else mask_card_numbers(key)
    place = (piece.partition, piece.offset)
    source_at_ms = _number(headers.get("dlq.timestamp_ms")) or 0
    masked = headers.get("dlq.masked", "")
    if "dlq.attempts" not in headers and looks_masked(piece.value):
        masked = "value"
    return Letter(
        partition=piece.partition,
        offset=piece.offset,
        at_ms=piece.at_ms,
        key=key,
        topic=intern(headers.get("dlq.topic", "")),
        source_partition=-1 if source_partition is None else source_partition,
        source_offset=-1 if source_offset is None else source_offset,
        source_at_ms=source_at_ms,
        stage=intern(headers.get("dlq.stage", "")),
        cause=intern(headers.get("dlq.cause") or NO_LINEAGE),
        detail=intern(headers.get("dlq.detail", "")),
        attempts=_number(headers.get("dlq.attempts")) or 0,
        first=parse_place(headers.get("dlq.first", "")) or place,
        first_ms=_number(headers.get("dlq.first_ms")) or source_at_ms,
        masked=intern(masked),
        size=len(piece.value or b""),
        pieces=[piece.offset],
        pieces_all=count,
        problem=problem,
        batch=_batch(headers),
        headers_unreadable=intern(headers.get("dlq.headers_unreadable", "")),
    )


def _batch(headers: dict[str, str]) -> BatchSaid | None:
    last_offset = _number(headers.get("dlq.last_offset"))
    if last_offset is None:
        return None
    return BatchSaid(
        last_offset,
        _number(headers.get("dlq.batch_records")) or 0,
        _number(headers.get("dlq.batch_bytes")) or 0,
        headers.get("dlq.batch_sha256", ""),
    )


def _missing(there: int, count: int) -> str | None:
    return None if there == count else f"piece {there + 1} of {count} is missing"


def _number(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 20):
        return None
    return int(text)
