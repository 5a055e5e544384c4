"""Which letters are meant, and what may be done with each: pure, over letters and markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pipeline.domain.model import DeadLetterMarker
from pipeline.runtime.redrive.letter import Letter, Place, place_text
from pipeline.runtime.unreadable_batch import CAUSE as UNREADABLE_BATCH

OPEN: Final = "open"
REDRIVEN: Final = "redriven"
DISCARDED: Final = "discarded"
STATES: Final = (OPEN, REDRIVEN, DISCARDED)

# A record that came back three times will not be mended by a fourth: a person has to look.
REDRIVES_MAX: Final = 3
# Causes of requests that may have reached their gateway: the process died over them, or what the
# gateway answered could not be written.
_MAYBE_CALLED: Final = frozenset({"killed_the_process", "effect_too_large"})

# Why a letter is not redriven: the rule, and the sentence a person reads.
REFUSALS: Final[Mapping[str, str]] = {
    "letter_must_be_whole": "a piece or a header of it is missing, so the input cannot be had",
    "batch_must_be_readable": (
        "no client can decompress it, so it would only be buried again; whoever wrote its records "
        "sends them again"
    ),
    "source_must_be_an_input": "its topic is no input of this flow",
    "bytes_must_be_the_original": (
        "card numbers in it were masked and cannot be had back, so it is not what was refused; "
        "--masked-too sends it all the same"
    ),
    "instrument_token_must_not_be_masked": (
        "its instrument_token was masked, and nothing can be charged with what is left of it: the "
        "writer has to send it again with the gateway's token"
    ),
    "redrives_must_not_exceed_limit": (
        "it was redriven as often as is allowed and came back each time; --redrives-max allows more"
    ),
    "letter_must_be_the_first_of_its_input": "another letter holds the same input",
    "request_must_not_have_been_called": (
        "the request may have reached the gateway; its payment was told so and asks by itself"
    ),
    "letter_must_not_be_discarded": (
        "it was set aside before, so nothing of it goes back; its writer may send it again"
    ),
    "letter_must_not_be_redriven": "it went back before, so there is nothing to set aside",
    "record_must_fit_its_topic": "it is too large for its topic, however it is compressed",
}


@dataclass(frozen=True)
class Filter:
    """Which letters are meant; what is empty or None does not narrow. Times are epoch ms of when
    the letter was written: from ``since_ms`` on, before ``until_ms``."""

    causes: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    key: bytes | None = None
    places: frozenset[Place] = frozenset()

    @property
    def narrows(self) -> bool:
        return self != Filter()

    def takes(self, letter: Letter) -> bool:
        return (
            (not self.causes or letter.cause in self.causes)
            and (not self.stages or letter.stage in self.stages)
            and (not self.topics or letter.topic in self.topics)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and (self.key is None or letter.key == self.key)
            and (not self.places or letter.place in self.places)
        )

    def select(self, letters: Iterable[Letter]) -> list[Letter]:
        """In the order in which they were written, as near as partitions allow."""
        return sorted(
            (letter for letter in letters if self.takes(letter)),
            key=lambda letter: (letter.at_ms, letter.partition, letter.offset),
        )


class Markers:
    """What was done so far, by letter; fed every marker of the topic in order."""

    def __init__(self) -> None:
        self._by_letter: dict[Place, DeadLetterMarker] = {}
        self._redrives: Counter[Place] = Counter()

    def take(self, marker: DeadLetterMarker) -> None:
        place = marker.letter_partition, marker.letter_offset
        if place not in self._by_letter and marker.state == REDRIVEN:
            self._redrives[marker.first_partition, marker.first_offset] += 1
        self._by_letter[place] = marker

    def of(self, letter: Letter) -> DeadLetterMarker | None:
        return self._by_letter.get(letter.place)

    def state(self, letter: Letter) -> str:
        marker = self.of(letter)
        return OPEN if marker is None else marker.state

    def history(self, letter: Letter) -> tuple[Place, int]:
        """The record's first letter, and how often the record has been redriven.

        Counted from the markers, not from what a letter says: headers come from whoever wrote the
        input. A first letter that was never redriven cannot have come back.
        """
        first = self._by_letter.get(letter.first)
        if first is None or first.state != REDRIVEN:
            return letter.place, int(self.state(letter) == REDRIVEN)
        return letter.first, self._redrives[letter.first]


@dataclass(frozen=True)
class Limits:
    """``inputs`` are the topics that may be written to, with their partition counts; ``requests``
    is the one among them whose records ask a gateway to move money."""

    inputs: Mapping[str, int]
    requests: str
    redrives_max: int = REDRIVES_MAX
    masked_too: bool = False


@dataclass
class Plan:
    """``closed``: the same was done about them before. ``refused``: by rule."""

    todo: list[Letter] = field(default_factory=list)
    closed: list[Letter] = field(default_factory=list)
    refused: dict[str, list[Letter]] = field(default_factory=dict)

    def refuse(self, rule: str, letter: Letter) -> None:
        self.refused.setdefault(rule, []).append(letter)

    def close(self, letter: Letter, markers: Markers, wanted: str) -> None:
        """Sort in a letter that has a marker: what was done is what is wanted, or the other."""
        rule = closed_otherwise(letter, markers, wanted)
        if rule is None:
            self.closed.append(letter)
        else:
            self.refuse(rule, letter)

    @property
    def refused_count(self) -> int:
        return sum(map(len, self.refused.values()))


def closed_otherwise(letter: Letter, markers: Markers, wanted: str) -> str | None:
    """The rule that refuses to make a closed letter the other of ``redriven`` and ``discarded``."""
    state = markers.state(letter)
    return None if state == wanted else f"letter_must_not_be_{state}"


def plan_redrive(
    selected: Iterable[Letter], letters: Iterable[Letter], markers: Markers, limits: Limits
) -> Plan:
    """What a redrive of the selected letters would do. ``letters`` are all there are: the same
    input may lie in several (the ledger buries at least once), and only its first is redriven."""
    plan = Plan()
    selected = list(selected)
    firsts = _first_of_each_input(letters)
    for letter in selected:
        if markers.of(letter) is not None:
            plan.close(letter, markers, REDRIVEN)
            continue
        rule = refusal(letter, firsts, markers, limits)
        if rule is None:
            plan.todo.append(letter)
        else:
            plan.refuse(rule, letter)
    return plan


def plan_discard(selected: Iterable[Letter], markers: Markers) -> Plan:
    """Any open letter may be discarded, a broken one too."""
    plan = Plan()
    for letter in selected:
        if markers.of(letter) is not None:
            plan.close(letter, markers, DISCARDED)
        else:
            plan.todo.append(letter)
    return plan


def refusal(
    letter: Letter,
    firsts: Mapping[tuple[str, int, int], Place],
    markers: Markers,
    limits: Limits,
) -> str | None:
    """The rule that keeps a letter from being redriven, a key of REFUSALS."""
    if letter.problem is not None:
        return "letter_must_be_whole"
    if letter.cause == UNREADABLE_BATCH:
        return "batch_must_be_readable"
    if not 0 <= letter.source_partition < limits.inputs.get(letter.topic, 0):
        return "source_must_be_an_input"
    if firsts.get(letter.source, letter.place) != letter.place:
        return "letter_must_be_the_first_of_its_input"
    if letter.topic == limits.requests and letter.cause in _MAYBE_CALLED:
        return "request_must_not_have_been_called"
    if letter.masked and not limits.masked_too:
        return "bytes_must_be_the_original"
    if markers.history(letter)[1] >= limits.redrives_max:
        return "redrives_must_not_exceed_limit"
    return None


def _first_of_each_input(letters: Iterable[Letter]) -> dict[tuple[str, int, int], Place]:
    firsts: dict[tuple[str, int, int], Place] = {}
    for letter in sorted(letters, key=lambda each: each.place):
        # A letter that was torn off (its producer died half way) is no letter of its input.
        if letter.problem is None:
            firsts.setdefault(letter.source, letter.place)
    return firsts


def histogram(letters: Iterable[Letter]) -> list[tuple[str, str, str, int]]:
    """(cause, stage, topic, count), the most frequent first."""
    counts = Counter((letter.cause, letter.stage, letter.topic) for letter in letters)
    return [(*what, count) for what, count in sorted(counts.items(), key=lambda i: (-i[1], i[0]))]


def unknown_places(wanted: Collection[Place], letters: Iterable[Letter]) -> list[str]:
    """The names that no letter has. A piece that is not the first has its letter's name."""
    known = {letter.place for letter in letters}
    return [place_text(place) for place in sorted(wanted) if place not in known]
