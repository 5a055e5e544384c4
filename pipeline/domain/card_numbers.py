"""Finding and masking card numbers (PANs), which must never be kept outside a vault.

A card number here is 13 to 19 digits, single spaces or dashes allowed between them, with a valid
check digit (Luhn); grouped as cards are printed, up to three blanks, dots or dashes may part the
groups, the same each time. Masking goes by the first digits in use at a length, rather too much
than too little (slashes and underlines part groups as well), and keeps the first six and last four
digits (as PCI DSS 3.4 allows to show) and the length. Refusing an order or command goes by the
ranges that issuers have, since a refusal costs a sale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, get_args

from msgspec import Struct
from msgspec.structs import fields

DIGITS_MIN = 13
DIGITS_MAX = 19

# So far a card number reaches with its separators, and a digit more for its neighbour.
_REACH: Final = 2 * DIGITS_MAX

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

# The ranges that issuers have been given (ISO/IEC 7812, as the schemes publish them): first and
# last prefix, and the lengths in use. Every one of them is within _FIRST_DIGITS, so that what is
# refused is masked.
_ISSUED: Final[tuple[tuple[str, str, tuple[int, ...]], ...]] = (
    ("4", "4", (13, 16, 18, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),  # Mastercard
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),  # American Express
    ("300", "305", (14, 16, 17, 18, 19)),  # Diners Club
    ("3095", "3095", (14, 16, 17, 18, 19)),  # Diners Club
    ("36", "36", (14, 15, 16, 17, 18, 19)),  # Diners Club
    ("38", "39", (14, 16, 17, 18, 19)),  # Diners Club
    ("3528", "3589", (16, 17, 18, 19)),  # JCB
    ("2131", "2131", (15,)),  # JCB, early
    ("1800", "1800", (15,)),  # JCB, early
    ("1", "1", (15,)),  # UATP
    ("6011", "6011", (16, 17, 18, 19)),  # Discover
    ("644", "659", (16, 17, 18, 19)),  # Discover, RuPay, Troy
    ("60", "60", (16,)),  # RuPay
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("81", "82", (16, 17, 18, 19)),  # UnionPay, RuPay
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("2205", "2205", (16,)),  # Borica
    ("50", "50", (13, 14, 15, 16, 17, 18, 19)),  # Maestro, Dankort, Verve, RuPay
    ("56", "58", (13, 14, 15, 16, 17, 18, 19)),  # Maestro
    ("6304", "6304", (16, 17, 18, 19)),  # Maestro, Laser
    ("636", "639", (13, 14, 15, 16, 17, 18, 19)),  # InterPayment, InstaPayment, Maestro
    ("67", "67", (13, 14, 15, 16, 17, 18, 19)),  # Maestro
    ("8600", "8600", (16,)),  # Uzcard
    ("9792", "9792", (16,)),  # Troy
    ("9860", "9860", (16,)),  # Humo
)

# Fields of orders and commands that are declared to be ids: whatever they hold is no card number. A
# 16-digit order id passes Luhn once in ten, an article number (EAN) has a check digit of its own.
ID_FIELDS: Final = frozenset(
    {"merchant_id", "order_id", "command_id", "operation_id", "customer_id", "sku"}
)
# Opaque texts, for which people have no hand: a hash in hexadecimal or a UUID may hold a run of
# digits inside. Only a word of its own in a customary grouping counts there.
OPAQUE_FIELDS: Final = frozenset(
    {"instrument_token", "card_fingerprint", "gateway_reference", "dispute_id"}
)

# What only a gateway's report names, never typed by a person: its id is what it is, also one of
# digits alone.
_NAMING_BY_GATEWAY: Final = frozenset({"refund_unasked"})
_GATEWAYS_OWN: Final = frozenset({"gateway_reference"})

_TOKEN: Final = "instrument_token"

# Names under which a card's security code goes; it must not be kept even for a moment after the
# authorisation (PCI DSS 3.3.1). Compared without case, dashes and underscores.
_SECURITY_CODES: Final = frozenset(
    {
        "cvv", "cvv2", "cvc", "cvc2", "cvn", "cvn2", "cid", "csc", "cav", "cav2", "cve", "cvd",
        "code", "cvvcode", "cvccode", "securitycode", "securitynumber", "verificationcode",
        "verificationvalue", "verificationnumber",
    }
)  # fmt: skip

# Thirteen digits or more with single separators. Possessive: nothing is kept to go back to.
_RUN = re.compile(rb"[0-9](?:[ -]?[0-9]){12,}+")
_SEPARATOR = re.compile(rb"[ -]")
# Six digits, stars, four digits, with the separators that a card number may have.
_PART: Final = rb"(?:[ ./_-]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf])"
_MASKED = re.compile(
    rb"(?:[0-9]SEP{0,3}){6}(?:\*SEP{0,3}){3,9}(?:[0-9]SEP{0,3}){3}[0-9]".replace(b"SEP", _PART)
)
# The least that a card number in a text has; the end of a line ends it.
_THIRTEEN = re.compile(r"[0-9](?:[ -]?[0-9]){12}")
# And of one whose groups are parted otherwise. Both begin with a class, which is searched fast.
_TWO_GROUPS = re.compile(r"[0-9][0-9]{3}[ .\u00a0\u2000-\u2015\u202f-]{1,3}[0-9]{4}")
# As cards are printed: 4-4-4-4(-3), 4-6-5, 4-6-4, 6-13, or without a gap.
_PRINTED = re.compile(
    r"(?<![A-Za-z0-9])(?:[0-9]{13,19}"
    r"|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5}"
    r"|[0-9]{6}[ -][0-9]{13})(?![A-Za-z0-9])"
)
# Grouped so with whatever else people put between the groups, the same each time: a price list or
# an address of a network has no such shape. In text, and in its bytes (UTF-8). Slashes and
# underlines are masked only: goods are sold "for models 5440/5450/5470/6180". Looked for at every
# group, without consuming it: four digits before a number, as of a year, look like its first group.
_GROUPED: Final = (
    r"[0-9]{4}(?P<by>SEP{1,3})[0-9]{4}(?P=by)[0-9]{4}(?P=by)[0-9]{4}(?:(?P=by)[0-9]{3})?"
    r"|[0-9]{4}(?P<between>SEP{1,3})[0-9]{6}(?P=between)[0-9]{4,5}"
)
_PARTED = re.compile(
    r"(?<![A-Za-z0-9])(?=(?P<number>GROUPED)(?![A-Za-z0-9]))".replace("GROUPED", _GROUPED).replace(
        "SEP", r"[ .\u00a0\u2000-\u2015\u202f-]"
    )
)
_PARTED_BYTES = re.compile(b"(?=(?P<number>%s))" % _GROUPED.encode().replace(b"SEP", _PART))
_NO_DIGIT = re.compile(r"[^0-9]+")
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
    for match in _PARTED_BYTES.finditer(data if masked is None else bytes(masked)):
        number = enumerate(match["number"], match.start())
        positions = [at for at, byte in number if 0x30 <= byte <= 0x39]
        digits = bytes(data[at] for at in positions)
        length = _parted_length(digits, _in_use)
        if length:
            masked = bytearray(data) if masked is None else masked
            for at in positions[_KEPT_FIRST : length - _KEPT_LAST]:
                masked[at] = 0x2A
    return data if masked is None else bytes(masked)


def is_masked(data: bytes) -> bool:
    """Whether these bytes hold what ``mask_card_numbers`` leaves of a card number."""
    return b"***" in data and _MASKED.search(data) is not None


def mask_card_number_text(text: str) -> str:
    """The same for text; whatever is not ASCII stays as it is. A text that is nothing but a card
    number is masked whatever blanks and dashes it has, as ``is_card_number`` knows it."""
    if is_card_number(text):
        return _masked_whole(text)
    data = text.encode("utf-8", "surrogatepass")
    masked = mask_card_numbers(data)
    return text if masked is data else masked.decode("utf-8", "surrogatepass")


def mask_card_number_start(text: str, length_max: int) -> str:
    """The first characters of the same, masked before they are cut: of most of a card number the
    check digit tells the rest. Only what may belong to the first characters is looked at."""
    seen = text if is_card_number(text) else text[: length_max + _REACH]
    return mask_card_number_text(seen)[:length_max]


def is_card_number(text: str) -> bool:
    """Whether the whole text is a card number, separators and surrounding blanks allowed."""
    digits = text.strip().replace(" ", "").replace("-", "")
    if not (DIGITS_MIN <= len(digits) <= DIGITS_MAX and digits.isascii() and digits.isdigit()):
        return False
    return _card_numbers(digits.encode(), [len(digits)]) == [(0, len(digits) - 1)]


def _masked_whole(text: str) -> str:
    digits = [at for at, letter in enumerate(text) if letter.isdigit()]
    hidden = frozenset(digits[_KEPT_FIRST:-_KEPT_LAST])
    return "".join("*" if at in hidden else letter for at, letter in enumerate(text))


def holds_card_number(text: str, *, opaque: bool = False) -> bool:
    """Whether a number of an issuer's range, length and check digit stands somewhere in the text.

    Digits that are part of a longer number do not count. ``opaque``: only a whole word that is
    grouped as cards are. Time is linear in the text.
    """
    if len(text) < DIGITS_MIN:
        return False
    parted = (_NO_DIGIT.sub("", match["number"]).encode() for match in _PARTED.finditer(text))
    if any(_parted_length(digits, _issued) for digits in parted):
        return True
    if opaque:
        return any(_is_issued(match.group()) for match in _PRINTED.finditer(text))
    for match in _RUN.finditer(text.encode("utf-8", "surrogatepass")):
        run = match.group()
        groups = [len(group) for group in _SEPARATOR.split(run)]
        if len(groups) == 1 and groups[0] > DIGITS_MAX:
            continue
        if _card_numbers(run.translate(None, b" -"), groups, _issued, neighbours=False):
            return True
    return False


def fields_with_card_numbers(noun: Struct) -> tuple[str, ...]:
    """Names of a noun's texts that hold a card number, ids left out; empty for a clean one.

    Every field that is a text is looked at, those of the nouns in its lists as well. Asked for
    every order, so most are cleared by a look for thirteen digits in a row, or in groups.
    """
    texts = _texts_of(type(noun))
    given = [text for text in texts.of(noun) if text and len(text) >= DIGITS_MIN]
    for items, inner in texts.lists.values():
        for item in items(noun):
            given += filter(None, inner.of(item))
    if not given:
        return ()
    text = "\n".join(given)
    if _THIRTEEN.search(text) is None and _TWO_GROUPS.search(text) is None:
        return ()
    return _fields_with_card_numbers(noun, texts)


def fields_not_to_send(noun: Struct) -> tuple[str, ...]:
    """Names of a noun's texts for which the flow would refuse it: those that hold a card number,
    and the token where it is one in whatever grouping."""
    found = fields_with_card_numbers(noun)
    token = getattr(noun, "instrument_token", None)
    if token is None or _TOKEN in found or not is_card_number(token):
        return found
    return (_TOKEN, *found)


class _Texts(Struct, frozen=True):
    """The text fields of a noun, ids left out, and by name its lists of nouns that have some."""

    names: tuple[str, ...]
    of: Callable[[Any], tuple[str | None, ...]]
    lists: Mapping[str, tuple[Callable[[Any], Any], _Texts]]


@cache
def _texts_of(kind: type[Struct]) -> _Texts:
    names: list[str] = []
    lists: dict[str, tuple[Callable[[Any], Any], _Texts]] = {}
    for field in fields(kind):
        members = get_args(field.type)
        if str in (field.type, *members) and field.name not in ID_FIELDS:
            names.append(field.name)
        for member in members:
            if isinstance(member, type) and issubclass(member, Struct):
                lists[field.name] = (attrgetter(field.name), _texts_of(member))
    # A getter of a single name would give no tuple.
    of = attrgetter(*names) if len(names) > 1 else attrgetter(*names, *names)
    return _Texts(tuple(names), of, lists)


def _fields_with_card_numbers(noun: Struct, texts: _Texts) -> tuple[str, ...]:
    ids = _GATEWAYS_OWN if getattr(noun, "type", None) in _NAMING_BY_GATEWAY else frozenset()
    found = [
        name
        for name, text in zip(texts.names, texts.of(noun), strict=False)
        if text is not None
        and name not in ids
        and holds_card_number(text, opaque=name in OPAQUE_FIELDS)
    ]
    for field, (items, inner) in texts.lists.items():
        for number, item in enumerate(items(noun), start=1):
            found += [
                f"{field}[{number}].{name}" for name in _fields_with_card_numbers(item, inner)
            ]
    return tuple(found)


def names_a_security_code(field: str) -> bool:
    """Whether a field of this name holds a card's security code (CVV, CVC, CID ...)."""
    name = field.lower().replace("_", "").replace("-", "").replace(" ", "")
    return name != "code" and name.removeprefix("card") in _SECURITY_CODES


def _is_issued(text: str) -> bool:
    digits = text.replace(" ", "").replace("-", "").encode()
    return bool(_card_numbers(digits, [len(digits)], _issued, neighbours=False))


def _parted_length(digits: bytes, known: Callable[[bytes, int, int], bool]) -> int:
    """How many of the digits are a card number: all, or all but a last group of three, which may
    be something else; 0 if there is none."""
    for length in (len(digits), len(digits) - 3):
        if length >= 14 and known(digits, 0, length) and _has_check_digit(digits[:length]):
            return length
    return 0


def _has_check_digit(digits: bytes) -> bool:
    plain, doubled = digits.translate(_VALUES), digits.translate(_DOUBLED)
    return not (sum(plain[-1::-2]) + sum(doubled[-2::-2])) % 10


def _in_use(digits: bytes, first: int, length: int) -> bool:
    return digits[first] in _FIRST_DIGITS[length]


def _issued(digits: bytes, first: int, length: int) -> bool:
    number = digits[first : first + 4].decode()
    return any(
        length in lengths and low <= number[: len(low)] <= high for low, high, lengths in _ISSUED
    )


def _card_numbers(
    digits: bytes,
    groups: list[int],
    known: Callable[[bytes, int, int], bool] = _in_use,
    *,
    neighbours: bool = True,
) -> list[tuple[int, int]]:
    """(first, last) digit indices of the card numbers in a run, left to right, not overlapping.

    A card number begins and ends with a group, or leaves out one digit of a group on one side; on
    both sides it would be a part of a longer number; without ``neighbours`` it leaves out none. A
    window is Luhn valid when the sums before its first and through its last digit are equal modulo
    ten, the sums being those that leave the last digit undoubled: so for each start the ends are
    found by searching bytes. ``known``: whether a number may begin so at that length.
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
        if neighbours and length > 1:
            end -= 1
            all_ends[end] = odd_doubled[end] if end & 1 else even_doubled[end] + _ODD

    found: list[tuple[int, int]] = []
    free_from = 0
    for end, length in zip(ends, groups, strict=True):
        start = end - length
        if start < free_from:
            continue
        sums = odd_doubled[start], even_doubled[start]
        after = _end_of(digits, start, all_ends, *sums, known)
        if neighbours and not after and length > 1:
            start += 1
            sums = odd_doubled[start], even_doubled[start]
            after = _end_of(digits, start, whole_ends, *sums, known)
        if after:
            found.append((start, after - 1))
            free_from = after
    return found


def _end_of(
    digits: bytes,
    first: int,
    ends: bytearray,
    even_end: int,
    odd_end: int,
    known: Callable[[bytes, int, int], bool],
) -> int:
    """The index after the longest card number that starts at ``first``, or 0."""
    longest = first + DIGITS_MAX + 1
    while True:
        low = first + DIGITS_MIN
        after = max(ends.rfind(even_end, low, longest), ends.rfind(odd_end + _ODD, low, longest))
        if after < 0:
            return 0
        if known(digits, first, after - first):
            return after
        longest = after
