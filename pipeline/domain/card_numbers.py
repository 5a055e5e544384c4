"""Finding and masking card numbers (PANs), which must never be kept outside a vault.

A card number here is 13 to 19 digits, single spaces or dashes allowed between them, with a first
digit that a card scheme issues at that length and a valid check digit (Luhn). What is masked
keeps its first six and last four digits (as PCI DSS 3.4 allows to show) and its length.
"""

from __future__ import annotations

import re

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

_GROUP = re.compile(rb"[0-9]+")
_SEPARATORS = b" -"
# What a digit adds to the Luhn sum when it is doubled.
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def mask_card_numbers(data: bytes) -> bytes:
    """The same bytes with the middle digits of every card number replaced by ``*``.

    Length and all other bytes stay as they are. Time and memory are linear in the input. One
    digit before or after a number is allowed for, because in a binary record the neighbouring
    field's length byte may look like a digit.
    """
    masked: bytearray | None = None
    for positions, starts, ends in _runs(data):
        for first, last in _card_numbers(data, positions, starts, ends):
            if masked is None:
                masked = bytearray(data)
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
    return digits[0].encode() in _FIRST_DIGITS[len(digits)] and _luhn_valid(digits)


def _luhn_valid(digits: str) -> bool:
    total = 0
    for place, character in enumerate(reversed(digits)):
        digit = ord(character) - 48
        total += _DOUBLED[digit] if place & 1 else digit
    return total % 10 == 0


_Run = tuple[list[int], list[int], list[int]]


def _runs(data: bytes) -> list[_Run]:
    """Stretches of digits with single separators: digit positions, group starts, group ends.

    Starts and ends are indices into the positions; both lists allow for one foreign digit.
    """
    runs: list[_Run] = []
    groups: list[tuple[int, int]] = []
    count = 0
    for match in _GROUP.finditer(data):
        start, end = match.span()
        if groups:
            gap = start - groups[-1][1]
            if gap != 1 or data[start - 1] not in _SEPARATORS:
                if count >= DIGITS_MIN:
                    runs.append(_run(groups))
                groups = []
                count = 0
        groups.append((start, end))
        count += end - start
    if count >= DIGITS_MIN:
        runs.append(_run(groups))
    return runs


def _run(groups: list[tuple[int, int]]) -> _Run:
    positions: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end in groups:
        first = len(positions)
        if end - start > DIGITS_MAX + 2:
            # Too long to hold a card number with its neighbours: only its edges can join others.
            edge = DIGITS_MAX + 1
            kept = [*range(start, start + edge), *range(end - edge, end)]
        else:
            kept = list(range(start, end))
        positions.extend(kept)
        starts.append(first)
        ends.append(len(positions) - 1)
    return positions, starts, ends


def _card_numbers(
    data: bytes, positions: list[int], starts: list[int], ends: list[int]
) -> list[tuple[int, int]]:
    """(first, last) digit indices of the card numbers in a run, left to right, not overlapping."""
    count = len(positions)
    digits = bytes([data[position] for position in positions])
    # Luhn sums of every prefix, doubling the digits at even and at odd indices respectively.
    even = [0] * (count + 1)
    odd = [0] * (count + 1)
    even_sum = odd_sum = 0
    for index, byte in enumerate(digits):
        digit = byte - 48
        if index & 1:
            even_sum += digit
            odd_sum += _DOUBLED[digit]
        else:
            even_sum += _DOUBLED[digit]
            odd_sum += digit
        even[index + 1] = even_sum
        odd[index + 1] = odd_sum

    may_end = bytearray(count + 1)
    for end in ends:
        may_end[end] = 1
        if end:
            may_end[end - 1] = may_end[end - 1] or 2

    found: list[tuple[int, int]] = []
    free_from = 0
    for start in starts:
        for first in (start, start + 1):
            if first < free_from:
                continue
            # A number that leaves out a digit on both sides is a part of a longer number.
            allowed = 2 if first == start else 1
            for length in range(min(DIGITS_MAX, count - first), DIGITS_MIN - 1, -1):
                last = first + length - 1
                mark = may_end[last]
                if not mark or mark > allowed or digits[first] not in _FIRST_DIGITS[length]:
                    continue
                # The check digit is not doubled: double the indices of the other parity.
                sums = odd if not last & 1 else even
                if (sums[last + 1] - sums[first]) % 10 == 0:
                    found.append((first, last))
                    free_from = last + 1
                    break
            else:
                continue
            break
    return found
