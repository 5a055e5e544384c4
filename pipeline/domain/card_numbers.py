"""Finding and masking card numbers (PANs), which must never be kept outside a vault.

A card number here is 13 to 19 digits, single spaces or dashes allowed between them, with a first
digit that a card scheme issues at that length and a valid check digit (Luhn). What is masked
keeps its first six and last four digits (as PCI DSS 3.4 allows to show) and its length.
"""

from __future__ import annotations

import re
from itertools import accumulate

DIGITS_MIN = 13
DIGITS_MAX = 19

_KEPT_FIRST = 6
_KEPT_LAST = 4

# First digits in use, by length: 13 and 14 digits are also milliseconds since 1970 and dates
# with a time, which must stay readable (19 digits: nanoseconds).
_FIRST_DIGITS: dict[int, bytes] = {
    13: b"456",
    14: b"356",
    15: b"123456",
    16: b"23456789",
    17: b"23456789",
    18: b"23456789",
    19: b"23456789",
}

# Thirteen digits or more with single separators. Possessive: nothing is kept to go back to.
_RUN = re.compile(rb"[0-9](?:[ -]?[0-9]){12,}+")
_SEPARATOR = re.compile(rb"[ -]")
_VALUES = bytes.maketrans(b"0123456789", bytes(range(10)))
# What a digit adds to the Luhn sum when it is doubled.
_DOUBLED = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))
_NO_END = 255
_ODD = 16


def mask_card_numbers(data: bytes) -> bytes:
    """The same bytes with the middle digits of every card number replaced by ``*``.

    Length and all other bytes stay as they are. Time and memory are linear in the input. One
    digit before or after a number is allowed for, because in a binary record the neighbouring
    field's length byte may look like a digit.
    """
    masked: bytearray | None = None
    for match in _RUN.finditer(data):
        text = match.group()
        groups = [len(group) for group in _SEPARATOR.split(text)]
        if len(groups) == 1 and groups[0] > DIGITS_MAX + 1:
            continue  # longer than a card number with a neighbour
        found = _card_numbers(text.translate(None, b" -"), groups)
        if not found:
            continue
        if masked is None:
            masked = bytearray(data)
        positions = [at for at, byte in enumerate(text, match.start()) if byte >= 0x30]
        for first, last in found:
            for index in range(first + _KEPT_FIRST, last + 1 - _KEPT_LAST):
                masked[positions[index]] = 0x2A
    return data if masked is None else bytes(masked)


def mask_card_number_text(text: str) -> str:
    """The same for text; whatever is not ASCII stays as it is."""
    data = text.encode("utf-8", "surrogatepass")
    masked = mask_card_numbers(data)
    return text if masked is data else masked.decode("utf-8", "surrogatepass")


def is_card_number(text: str) -> bool:
    """Whether the whole text is a card number, separators and surrounding blanks allowed."""
    digits = text.strip().replace(" ", "").replace("-", "")
    if not (DIGITS_MIN <= len(digits) <= DIGITS_MAX and digits.isascii() and digits.isdigit()):
        return False
    return _card_numbers(digits.encode(), [len(digits)]) == [(0, len(digits) - 1)]


def _card_numbers(digits: bytes, groups: list[int]) -> list[tuple[int, int]]:
    """(first, last) digit indices of the card numbers in a run, left to right, not overlapping.

    A card number begins and ends with a group, or leaves out one digit of a group on one side; on
    both sides it would be a part of a longer number. A window is Luhn valid when the sums before
    its first and through its last digit are equal modulo ten, the sums being those that leave the
    last digit undoubled: so for each start the ends are found by searching bytes.
    """
    doubled = digits.translate(_DOUBLED)
    plain = digits.translate(_VALUES)
    # Sums of all digits before an index, with the digits at odd or at even indices doubled.
    mixed = bytearray(plain)
    mixed[1::2] = doubled[1::2]
    odd_doubled = [total % 10 for total in accumulate(mixed, initial=0)]
    mixed = bytearray(plain)
    mixed[0::2] = doubled[0::2]
    even_doubled = [total % 10 for total in accumulate(mixed, initial=0)]

    # By the index after the last digit: the sum to be matched, marked by the parity of the last.
    whole_ends = bytearray([_NO_END]) * (len(digits) + 1)
    all_ends = bytearray([_NO_END]) * (len(digits) + 1)
    ends = list(accumulate(groups))
    for end, length in zip(ends, groups, strict=True):
        # The last digit's index is end - 1: even when end is odd.
        sum_there = odd_doubled[end] if end & 1 else even_doubled[end] + _ODD
        whole_ends[end] = all_ends[end] = sum_there
        if length > 1:
            end -= 1
            all_ends[end] = odd_doubled[end] if end & 1 else even_doubled[end] + _ODD

    found: list[tuple[int, int]] = []
    free_from = 0
    for end, length in zip(ends, groups, strict=True):
        start = end - length
        if start < free_from:
            continue
        after = _end_of(digits, start, all_ends, odd_doubled[start], even_doubled[start])
        if not after and length > 1:
            start += 1
            after = _end_of(digits, start, whole_ends, odd_doubled[start], even_doubled[start])
        if after:
            found.append((start, after - 1))
            free_from = after
    return found


def _end_of(digits: bytes, first: int, ends: bytearray, even_end: int, odd_end: int) -> int:
    """The index after the longest card number that starts at ``first``, or 0."""
    longest = first + DIGITS_MAX + 1
    while True:
        low = first + DIGITS_MIN
        after = max(ends.rfind(even_end, low, longest), ends.rfind(odd_end + _ODD, low, longest))
        if after < 0:
            return 0
        if digits[first] in _FIRST_DIGITS[after - first]:
            return after
        longest = after
