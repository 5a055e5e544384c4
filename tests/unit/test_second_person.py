"""Who is a second person: not whoever writes the same name otherwise. What decides says so, and the
audit, by code of its own: each has to tell apart just what the other does."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import product
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.names import one_person
from pipeline.domain.payouts import same_person

Same = Callable[[str, str], bool]
EACH = pytest.mark.parametrize("same", [same_person, one_person])

# One of each sort that no font shows: a joiner, a selector, a filler, a blank, a mark of direction,
# a soft hyphen, a tag.
UNSEEN = (
    "\u034f", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u115f", "\u1160",
    "\u3164", "\uffa0", "\u17b4", "\u180b", "\u180e", "\u2800", "\ufe0f", "\U000e0061",
    "\U000e0100", "\u202e", "\u2028", " ", "\u00a0", "\t", "\x00",
)  # fmt: skip
# Letters that are made of a base and a mark, or of parts.
NAMES = ("René", "Åsa", "Zoë", "\u1eaen", "\u1fb7", "각", "が", "\u0958")


@EACH
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["NFD", "NFKD", "NFC"])
def test_what_nobody_sees_parts_no_letter_from_its_mark(
    name: str, form: Literal["NFC", "NFD", "NFKD"], same: Same
) -> None:
    """Wherever it stands and however often, in any case of the letters."""
    parts = unicodedata.normalize(form, name)
    for unseen, times in product(UNSEEN, (1, 2)):
        for at in range(len(parts) + 1):
            other = parts[:at] + unseen * times + parts[at:]
            assert same(name, other), ascii(other)
            assert same(other.upper(), name), ascii(other)
        assert same(name, unseen.join(parts)), ascii(unseen)


@EACH
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("anna", "\uff41\uff2e\uff4e\uff21"),
        ("anna", "\U0001d41anna"),
        ("ß", "SS"),
        ("\ufb00", "FF"),
        ("Anna\u00b4", "anna\u0301"),
    ],
)
def test_forms_of_a_letter_are_the_letter(one: str, other: str, same: Same) -> None:
    assert same(one, other)
    assert same(other, one)


@EACH
def test_who_has_no_name_is_nobodys_second(same: Same) -> None:
    """What has nothing to see is no name, so it is not told apart from anybody."""
    for unseen in UNSEEN:
        assert same("anna", unseen)


@EACH
@pytest.mark.parametrize("other", ["bert", "rene", "Renè", "Renée", "Ren"])
def test_another_name_is_another_person(other: str, same: Same) -> None:
    assert not same("René", other)


# Letters that fold, come apart or are seen by nobody, beside all others.
_LETTERS = st.sampled_from(
    "aeiAEI\u00e9\u0301\u0323\u0345\u034f\u200d\u1160\u1fb3\u0130\u00b4\ufb00\uff21"
)


@given(st.text(_LETTERS | st.characters(exclude_categories=["Cs"]), max_size=6), st.data())
def test_the_audit_tells_the_same_names_apart(name: str, data: st.DataObject) -> None:
    """Of any name and what may be made of it."""
    made = data.draw(
        st.sampled_from(
            [str.upper, str.casefold, "\u034f".join, lambda x: unicodedata.normalize("NFKD", x),
             lambda x: unicodedata.normalize("NFC", x), lambda x: x[::-1]]
        )
    )(name)  # fmt: skip
    assert one_person(name, made) == same_person(name, made)
