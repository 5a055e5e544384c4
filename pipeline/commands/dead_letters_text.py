"""Dead letters as people and programs read them: tables, one letter in full, JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.runtime.redrive.letter import Letter, Whole, printable
from pipeline.runtime.redrive.plan import REFUSALS, Filter, Markers, Plan, histogram
from pipeline.runtime.redrive.redriver import Done
from schemas.codec import Codec
from schemas.errors import DecodeError

# What a person reads of bytes that nothing decodes; --raw writes all of them.
HEX_BYTES_MAX = 512
NAMES_SHOWN_MAX = 5
# A key or a cause of somebody else's record may have any length, and a table has one width for all
# its lines. Most keys are shorter; `show` and --json have them whole.
CELL_LENGTH_MAX = 64

Counts = Sequence[tuple[str, str, str, int]]
# The fields of a decoded value, or why there are none.
Decoded = Mapping[str, Any] | str


def letter_lines(letters: Sequence[Letter], markers: Markers) -> Iterator[str]:
    """A table: one letter a line."""
    heads = ("letter", "buried (UTC)", "cause", "stage", "topic", "key", "bytes", "redriven", "")
    rows = [
        (
            letter.name,
            time_text(letter.at_ms),
            _cell(letter.cause),
            _cell(letter.stage),
            _cell(letter.topic),
            _cell(letter.key_text),
            f"{letter.size:,}",
            f"{markers.history(letter)[1]}x",
            _remark(letter, markers),
        )
        for letter in letters
    ]
    yield from _table(heads, rows, right=(6, 7))


def _remark(letter: Letter, markers: Markers) -> str:
    said = [] if markers.of(letter) is None else [markers.state(letter)]
    if letter.masked:
        said.append("masked")
    if letter.problem is not None:
        said.append(letter.problem)
    return ", ".join(said)


def _cell(text: str) -> str:
    """Printable and no longer than a table bears: what is left out is the middle, since keys of one
    merchant begin alike."""
    text = printable(text)
    if len(text) <= CELL_LENGTH_MAX:
        return text
    last = CELL_LENGTH_MAX // 3
    return f"{text[: CELL_LENGTH_MAX - last - 1]}…{text[-last:]}"


def histogram_lines(counts: Counts) -> Iterator[str]:
    rows = [
        (_cell(cause), _cell(stage), _cell(topic), f"{count:,}")
        for cause, stage, topic, count in counts
    ]
    yield from _table(("cause", "stage", "topic", "letters"), rows, right=(3,))


def nothing_found(letters: Sequence[Letter], markers: Markers, state: str) -> str:
    """With what there is, so that a misspelt filter is seen."""
    there = [letter for letter in letters if state == "all" or markers.state(letter) == state]
    kind = "" if state == "all" else f"{state} "
    if not there:
        return f"there are no {kind}dead letters"
    causes = ", ".join(dict.fromkeys(_cell(cause) for cause, *_ in histogram(there)))
    return f"none of {len(there):,} {kind}dead letters matches; their causes: {causes}"


def plan_lines(plan: Plan, verb: str, rate: float | None) -> Iterator[str]:
    """What would happen, and for each refusal why."""
    total = len(plan.todo) + len(plan.closed) + plan.refused_count
    parts = [f"{len(plan.todo):,} to be {verb}"]
    if rate is not None and len(plan.todo) > rate:
        parts[0] += f" in about {len(plan.todo) / rate:,.0f} s"
    if plan.closed:
        parts.append(f"{len(plan.closed):,} done before")
    if plan.refused:
        parts.append(f"{plan.refused_count:,} refused")
    yield f"{total:,} selected: " + ", ".join(parts)
    yield from _refusal_lines(plan.refused)


def _refusal_lines(refused: Mapping[str, Sequence[Letter]]) -> Iterator[str]:
    for rule, letters in refused.items():
        yield f"refused {len(letters):,}, {rule}: {REFUSALS[rule]}"
        for letter in letters[:NAMES_SHOWN_MAX]:
            yield f"  {letter.name}" + (f": {letter.problem}" if letter.problem else "")
        if len(letters) > NAMES_SHOWN_MAX:
            yield f"  and {len(letters) - NAMES_SHOWN_MAX:,} more"


def done_lines(done: Done, plan: Plan, verb: str) -> Iterator[str]:
    yield f"{verb} {done.letters:,} of {len(plan.todo):,}"
    if done.already:
        yield f"{done.already:,} were done by somebody else meanwhile"
    yield from _refusal_lines(done.refused)
    left = len(plan.todo) - done.letters - done.already
    if done.stopped and left > 0:
        yield f"stopped; {left:,} are left, run the same command again for them"


def decoded(whole: Whole, schema: str | None, codec: Codec) -> Decoded:
    """The value by its topic's schema."""
    if whole.letter.problem is not None:
        return whole.letter.problem
    if whole.letter.batch is not None:
        return "a batch that no client can decompress" if whole.value else "left out for its size"
    if whole.value is None:
        return "a record without a value"
    if schema is None:
        return "its topic has no schema"
    try:
        return codec.decoder(schema)(whole.value)
    except DecodeError as error:
        return str(error)


def whole_lines(whole: Whole, markers: Markers, value: Decoded) -> Iterator[str]:
    """One letter in full."""
    letter = whole.letter
    marker = markers.of(letter)
    first, redrives = markers.history(letter)
    yield _row("letter", f"{letter.name}, buried {time_text(letter.at_ms)} UTC")
    yield _row("cause", printable(letter.cause))
    if letter.detail:
        yield _row("", printable(letter.detail))
    yield _row("stage", printable(letter.stage))
    yield _row(
        "input",
        f"{printable(letter.topic)}[{letter.source_partition}]@{letter.source_offset}, "
        f"appended {time_text(letter.source_at_ms)} UTC",
    )
    if letter.batch is not None:
        yield _row(
            "batch", f"{letter.batch.records:,} records, to offset {letter.batch.last_offset}"
        )
        yield _row("", f"{letter.batch.size:,} bytes, SHA-256 {printable(letter.batch.sha256)}")
    yield _row("key", letter.key_text or "none")
    since = f", first seen {time_text(letter.first_ms)} UTC"
    yield _row(
        "redriven",
        f"{redrives}x{since}" + (f", first letter {first[0]}:{first[1]}" if redrives else ""),
    )
    if marker is not None:
        yield _row("state", f"{marker.state} {time_text(marker.occurred_at_ms)} UTC")
        yield _row("", f"audit entry {marker.audit_entry_id}")
    else:
        yield _row("state", "open")
    if letter.masked:
        yield _row("masked", f"card numbers in the {letter.masked.replace(',', ' and ')}")
    if letter.pieces_all > 1:
        yield _row("pieces", f"{len(letter.pieces)} of {letter.pieces_all}")
    if letter.headers_unreadable:
        yield _row("headers", f"not in the letter: {printable(letter.headers_unreadable)}")
    for name, text in whole.shown_headers:
        yield _row("header", f"{printable(name)}: {printable(text)}")
    if isinstance(value, str):
        yield _row("value", f"{letter.size:,} bytes, not decoded: {value}")
        yield from hex_lines(whole.shown_value)
    else:
        yield _row("value", f"{letter.size:,} bytes")
        for line in json.dumps(value, indent=2).splitlines():
            yield f"  {line}"


def hex_lines(value: bytes) -> Iterator[str]:
    """As ``hexdump -C`` shows them, the first of them."""
    for start in range(0, min(len(value), HEX_BYTES_MAX), 16):
        line = value[start : start + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in line)
        yield f"  {start:08x}  {line.hex(' '):<47}  |{text}|"
    if len(value) > HEX_BYTES_MAX:
        yield f"  and {len(value) - HEX_BYTES_MAX:,} bytes more; --raw writes them all"


def letter_json(letter: Letter, markers: Markers) -> dict[str, Any]:
    marker = markers.of(letter)
    first, redrives = markers.history(letter)
    return {
        "letter": letter.name,
        "buried_at_ms": letter.at_ms,
        "state": markers.state(letter),
        "cause": letter.cause,
        "detail": letter.detail,
        "stage": letter.stage,
        "topic": letter.topic,
        "partition": letter.source_partition,
        "offset": letter.source_offset,
        "appended_at_ms": letter.source_at_ms,
        "key": letter.key_text,
        "bytes": letter.size,
        "redrives": redrives,
        "first_letter": f"{first[0]}:{first[1]}",
        "first_seen_at_ms": letter.first_ms,
        "masked": letter.masked.split(",") if letter.masked else [],
        "pieces": letter.pieces_all,
        "batch": None
        if letter.batch is None
        else {
            "last_offset": letter.batch.last_offset,
            "records": letter.batch.records,
            "bytes": letter.batch.size,
            "sha256": letter.batch.sha256,
        },
        "headers_unreadable": letter.headers_unreadable or None,
        "problem": letter.problem,
        "closed_at_ms": None if marker is None else marker.occurred_at_ms,
        "audit_entry_id": None if marker is None else marker.audit_entry_id,
    }


def whole_json(whole: Whole, markers: Markers, value: Decoded) -> dict[str, Any]:
    is_text = isinstance(value, str)
    return {
        **letter_json(whole.letter, markers),
        "headers": [[name, text] for name, text in whole.shown_headers],
        "value": None if is_text else value,
        "not_decoded": value if is_text else None,
        "value_base64": None
        if whole.value is None
        else base64.b64encode(whole.shown_value).decode("ascii"),
    }


def histogram_json(counts: Counts) -> list[dict[str, Any]]:
    return [
        {"cause": cause, "stage": stage, "topic": topic, "letters": count}
        for cause, stage, topic, count in counts
    ]


def chosen_json(chosen: Filter) -> dict[str, Any]:
    """How the letters were selected, for the audit."""
    said: dict[str, Any] = {
        "cause": sorted(chosen.causes),
        "stage": sorted(chosen.stages),
        "topic": sorted(chosen.topics),
        "since_ms": chosen.since_ms,
        "until_ms": chosen.until_ms,
        "key": None if chosen.key is None else chosen.key.decode("utf-8", "replace"),
        "by_name": len(chosen.places),
    }
    return {name: value for name, value in said.items() if value} or {"all": True}


def time_text(at_ms: int) -> str:
    """A time; what a record says may be none, and is shown all the same."""
    try:
        return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"


def _row(name: str, text: str) -> str:
    return f"{name:<9} {text}"


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()
) -> Iterator[str]:
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
