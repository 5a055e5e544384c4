from __future__ import annotations

import random
from time import perf_counter

import pytest

from pipeline.domain.card_numbers import is_card_number, mask_card_number_text, mask_card_numbers


@pytest.mark.parametrize(
    ("data", "masked"),
    [
        (b"pan=4111111111111111;", b"pan=411111******1111;"),
        (b"4111 1111 1111 1111", b"4111 11** **** 1111"),
        (b"4111-1111-1111-1111", b"4111-11**-****-1111"),
        (b"378282246310005", b"378282*****0005"),
        (b"4222222222222", b"422222***2222"),
        (b"6304000000000000000", b"630400*********0000"),
        (b"12 4111 1111 1111 1111 12/29", b"12 4111 11** **** 1111 12/29"),
        (b"5555555555554444,4111111111111111", b"555555******4444,411111******1111"),
        (b"4111111111111111 5555555555554444", b"411111******1111 555555******4444"),
    ],
)
def test_card_numbers_are_masked(data: bytes, masked: bytes) -> None:
    """First six and last four digits stay, and so does every other byte."""
    assert mask_card_numbers(data) == masked
    assert mask_card_numbers(masked) == masked


def test_a_length_byte_that_looks_like_a_digit_does_not_hide_a_card_number() -> None:
    """In a binary record the next field's length may be the byte of a digit."""
    assert mask_card_numbers(b"\x204111111111111111\x30abc") == b"\x20411111******1111\x30abc"
    assert mask_card_numbers(b"94111111111111111x") == b"9411111******1111x"


@pytest.mark.parametrize(
    "data",
    [
        b"4111111111111112",
        b"411111111111",
        b"1790000000007",
        b"20261123055005",
        b"4111  1111  1111  1111",
        b"4111111111111111" * 3,
        b"",
        "héllo".encode(),
    ],
)
def test_other_digits_stay(data: bytes) -> None:
    """Wrong check digits, times, wide gaps and long numbers are left as they are."""
    assert mask_card_numbers(data) is data


def test_text_that_is_not_ascii_stays() -> None:
    """Only the card number in a text changes."""
    assert mask_card_number_text("é 4111111111111111 ✓") == "é 411111******1111 ✓"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("4111111111111111", True), (" 4111 1111 1111 1111 ", True), ("tok_4111111111111111", False),
     ("4111111111111112", False), ("٤١١١١١١١١١١١١١١١", False), ("", False), ("pm_1", False)],
)  # fmt: skip
def test_a_token_that_is_a_card_number(text: str, is_one: bool) -> None:
    """Only a text that is a card number as a whole counts as one."""
    assert is_card_number(text) is is_one


@pytest.mark.parametrize("pattern", [b"4", b"4 ", b"41-", b"4111111111111111 ", b"\x00\xff7"])
def test_time_is_linear(pattern: bytes) -> None:
    """The worst patterns cost microseconds a byte at any size: twice the bytes, twice the time."""

    def seconds(size: int) -> float:
        data = (pattern * (1 + size // len(pattern)))[:size]
        started = perf_counter()
        assert len(mask_card_numbers(data)) == size
        return perf_counter() - started

    short = min(seconds(50_000) for _ in range(3))
    assert min(seconds(200_000) for _ in range(2)) < 4 * 4 * short + 0.05


def test_random_bytes_keep_their_length() -> None:
    """Whatever the bytes, only digits ever change, and only to stars."""
    chance = random.Random(7)
    for _ in range(200):
        data = bytes(chance.choice(b"0123456789 -4\x00") for _ in range(400))
        masked = mask_card_numbers(data)
        assert len(masked) == len(data)
        changed = [(a, b) for a, b in zip(data, masked, strict=True) if a != b]
        assert all(chr(a).isdigit() and b == ord("*") for a, b in changed)


def luhn(digits: str) -> bool:
    doubled = [int(d) * 2 if place % 2 else int(d) for place, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def test_every_valid_number_between_other_text_is_found() -> None:
    """Numbers of every length, with any grouping, are masked exactly when Luhn says so."""
    chance = random.Random(11)
    for _ in range(2000):
        digits = "".join(chance.choice("0123456789") for _ in range(chance.randint(13, 19)))
        digits = chance.choice(leads(len(digits))) + digits[1:]
        grouped = "".join(d + chance.choice(["", "", " ", "-"]) for d in digits[:-1]) + digits[-1]
        masked = mask_card_numbers(f"<{grouped}>".encode())
        if luhn(digits):
            kept = "".join(c for c in masked.decode() if c.isdigit())
            assert kept == digits[:6] + digits[-4:], grouped
        assert is_card_number(grouped) is luhn(digits)


def leads(length: int) -> str:
    return "56" if length == 14 else "456"
