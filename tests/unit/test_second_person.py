"""Who is a second person: not whoever writes the same name otherwise."""

from __future__ import annotations

import unicodedata
from itertools import product
from typing import Literal

import pytest

from pipeline.domain.payouts import same_person

# One of each sort that no font shows: a joiner, a selector, a filler, a blank, a mark of direction,
# a soft hyphen, a tag.
UNSEEN = (
    "\u034f", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u115f", "\u1160",
    "\u3164", "\uffa0", "\u17b4", "\u180b", "\u180e", "\u2800", "\ufe0f", "\U000e0061",
    "\U000e0100", "\u202e", "\u2028", " ", "\u00a0", "\t", "\x00",
)  # fmt: skip
# Letters that are made of a base and a mark, or of parts.
NAMES = ("René", "Åsa", "Zoë", "\u1eaen", "\u1fb7", "각", "が", "\u0958")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["NFD", "NFKD", "NFC"])
def test_what_nobody_sees_parts_no_letter_from_its_mark(
    name: str, form: Literal["NFC", "NFD", "NFKD"]
) -> None:
    """Wherever it stands and however often, in any case of the letters."""
    parts = unicodedata.normalize(form, name)
    for unseen, times in product(UNSEEN, (1, 2)):
        for at in range(len(parts) + 1):
            other = parts[:at] + unseen * times + parts[at:]
            assert same_person(name, other), ascii(other)
            assert same_person(other.upper(), name), ascii(other)
        assert same_person(name, unseen.join(parts)), ascii(unseen)


@pytest.mark.parametrize(
    ("one", "other"),
    [("anna", "\U0001d41anna"), ("ß", "SS"), ("\ufb00", "FF"), ("Anna\u00b4", "anna\u0301")],
)
def test_forms_of_a_letter_are_the_letter(one: str, other: str) -> None:
    assert same_person(one, other)
    assert same_person(other, one)


def test_who_has_no_name_is_nobodys_second() -> None:
    """What has nothing to see is no name, so it is not told apart from anybody."""
    for unseen in UNSEEN:
        assert same_person("anna", unseen)


@pytest.mark.parametrize("other", ["bert", "rene", "Renè", "Renée", "Ren"])
def test_another_name_is_another_person(other: str) -> None:
    assert not same_person("René", other)
