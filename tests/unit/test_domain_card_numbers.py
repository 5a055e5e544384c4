from __future__ import annotations

import random
from collections.abc import Callable
from time import thread_time

import pytest
from msgspec.structs import replace

from pipeline.domain import card_numbers
from pipeline.domain.card_numbers import (
    ID_FIELDS,
    fields_with_card_numbers,
    holds_card_number,
    is_card_number,
    is_masked,
    mask_card_number_text,
    mask_card_numbers,
    names_a_security_code,
)
from pipeline.domain.model import Order, OrderLine, PaymentCommand
from pipeline.domain.records import order_to_record
from schemas.codec import default_codec
from schemas.files import read_schema
from tests.support.examples import share_of


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
        b"4111    1111    1111    1111",
        b"4111.1111-1111.1111",
        b"4111.1111.1111.1112",
        b"41.11.11.11.11.11.11.11",
        b"4111111111111111" * 3,
        b"",
        "héllo".encode(),
    ],
)
def test_other_digits_stay(data: bytes) -> None:
    """Wrong check digits, times, wide gaps and long numbers are left as they are."""
    assert mask_card_numbers(data) is data


GAPS = ("  ", ".", " . ", "--", "\u00a0", "\u2009", "\u202f", "\u2013", " \u2014 ")


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize(
    "groups", ["4111 1111 1111 1111", "3782 822463 10005", "4111 1111 1111 1111 123"]
)
def test_a_number_grouped_as_cards_are_is_known_whatever_parts_the_groups(
    gap: str, groups: str
) -> None:
    """In texts and tokens; what is refused is masked, once, and known for masked."""
    number = groups.replace(" ", gap)
    for text in (number, f"card {number}, exp 12/29", f"({number})é"):
        assert holds_card_number(text)
        assert holds_card_number(text, opaque=True)
        masked = mask_card_number_text(text)
        assert mask_card_number_text(masked) == masked
        assert len(masked) == len(text)
        assert not holds_card_number(masked)
        assert is_masked(masked.encode())
    wrong = number.replace("1111", "1112", 1).replace("3782", "3783")
    assert not holds_card_number(wrong)


@pytest.mark.parametrize("gap", [" ", "-", *GAPS])
@pytest.mark.parametrize("before", ["2027", "12 2027", "2027 0001 1234", "2027 4111 1111", "5440"])
def test_groups_before_a_card_number_do_not_hide_it(gap: str, before: str) -> None:
    """A year, an order's number or a wrong beginning has the shape of a first group."""
    number = "4111 1111 1111 1111".replace(" ", gap)
    text = f"{before} ".replace(" ", gap) + f"{number} 12/29"
    assert holds_card_number(text)
    assert holds_card_number(text, opaque=True)
    masked = mask_card_number_text(text)
    assert number not in masked
    assert not holds_card_number(masked)
    assert mask_card_number_text(masked) == masked


@pytest.mark.parametrize("gap", ["/", "_", " / "])
def test_groups_before_a_card_number_do_not_keep_it_from_being_masked(gap: str) -> None:
    """Also where groups are parted as lists of models are, which is no reason to refuse."""
    text = gap.join(("2027", "4111", "1111", "1111", "1111"))
    assert mask_card_number_text(text) == gap.join(("2027", "4111", "11**", "****", "1111"))


@pytest.mark.parametrize(
    "text",
    [
        "HL-5440/5450/5470/6180",
        "for 2240/5440/5450/5470/6180/6190",
        "WorkCentre 5325_5330_5335_5845",
    ],
)
def test_a_list_of_models_is_masked_but_not_refused(text: str) -> None:
    """Goods are named so, and a refusal costs a sale."""
    assert not holds_card_number(text)
    assert "***" in mask_card_number_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026.11.27 05:50:05.123",
        "10.0.0.1, 192.168.100.101",
        "4.50 5.25 11.99 12.00 13.75",
        "4111.11 1111.11 1111.11",
        "0123.4567.8901.2345.6780.0123",
    ],
)
def test_other_numbers_with_dots_are_no_cards(text: str) -> None:
    """Prices, times and addresses have other shapes, or other check digits."""
    assert not holds_card_number(text)
    assert mask_card_number_text(text) == text


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


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [b"4", b"4 ", b"41-", b"4111111111111111 ", b"\x00\xff7"])
def test_time_is_linear(pattern: bytes) -> None:
    """The worst patterns cost microseconds a byte at any size: twice the bytes, twice the time."""

    def mask(size: int) -> None:
        data = (pattern * (1 + size // len(pattern)))[:size]
        assert len(mask_card_numbers(data)) == size

    assert grows_no_faster_than_linearly(mask)


def grows_no_faster_than_linearly(work: Callable[[int], object]) -> bool:
    """Whether sixteen times the bytes take far less than the 256-fold CPU time of a square."""

    def seconds(size: int) -> float:
        started = thread_time()
        work(size)
        return thread_time() - started

    short = min(seconds(4_000) for _ in range(3))
    # A second chance, for what the machine did meanwhile.
    return any(seconds(64_000) < 4 * 16 * short + 0.01 for _ in range(2))


@pytest.mark.slow
def test_a_square_of_the_bytes_is_noticed() -> None:
    """The measure above can fail."""
    assert not grows_no_faster_than_linearly(lambda size: sum(range(size * size // 2_000)))


def test_random_bytes_keep_their_length() -> None:
    """Whatever the bytes, only digits ever change, and only to stars."""
    chance = random.Random(7)
    for _ in range(share_of(200)):
        data = bytes(chance.choice(b"0123456789 -4\x00") for _ in range(400))
        masked = mask_card_numbers(data)
        assert len(masked) == len(data)
        changed = [(a, b) for a, b in zip(data, masked, strict=True) if a != b]
        assert all(chr(a).isdigit() and b == ord("*") for a, b in changed)


def luhn(digits: str) -> bool:
    doubled = [int(d) * 2 if place % 2 else int(d) for place, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


@pytest.mark.slow
def test_every_valid_number_between_other_text_is_found() -> None:
    """Numbers of every length, with any grouping, are masked exactly when Luhn says so."""
    chance = random.Random(11)
    for _ in range(share_of(2_000)):
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


# As issuers and gateways publish them for tests.
TEST_CARDS = {
    "visa": "4111111111111111",
    "visa 13": "4222222222222",
    "visa 19": "4000056655665556001",
    "mastercard": "5555555555554444",
    "mastercard 2-series": "2223003122003222",
    "american express": "378282246310005",
    "american express 34": "343434343434343",
    "diners club": "30569309025904",
    "diners club 36": "36227206271667",
    "diners club 38": "38520000023237",
    "jcb": "3530111333300000",
    "discover": "6011111111111117",
    "discover 65": "6500000000000002",
    "unionpay": "6240008631401148",
    "unionpay 19": "6205500000000000004",
    "maestro": "6759649826438453",
    "maestro 50": "5018000000000009",
    "maestro 6304": "6304000000000000",
    "mir": "2200000000000004",
    "rupay": "8171999927660000",
    "troy": "9792000000000001",
    "uatp": "135410014004955",
}

ORDER = Order(
    merchant_id="shop",
    order_id="o-1",
    amount_minor=100,
    currency="GBP",
    instrument_token="tok_ok",
    business_date="2026-11-25",
    submitted_at_ms=1_790_000_000_000,
)


def with_check_digit(digits: str) -> str:
    return next(digits + last for last in "0123456789" if luhn(digits + last))


@pytest.mark.parametrize("name", TEST_CARDS)
def test_a_test_card_of_every_range_is_refused_and_masked(name: str) -> None:
    """However it is grouped, in a token or in a text, and what is refused is also masked."""
    digits = TEST_CARDS[name]
    if not luhn(digits):
        digits = with_check_digit(digits[:-1])
    grouped = [digits, " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))]
    grouped.append(grouped[1].replace(" ", "-"))
    for number in grouped:
        for text in (number, f"card {number}, exp 12/29", f"({number})", f"pan={number};é"):
            assert holds_card_number(text), text
            masked = mask_card_number_text(text).replace(" ", "").replace("-", "")
            assert f"{digits[:6]}{'*' * (len(digits) - 10)}{digits[-4:]}" in masked
    for token in (digits, f"tok_{digits}", f"card:{digits}"):
        assert holds_card_number(token, opaque=True), token
    wrong = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    assert not holds_card_number(f"card {wrong}")
    assert not holds_card_number(wrong, opaque=True)


COMMAND = PaymentCommand(
    merchant_id="shop", order_id="1", command_id="c1", type="refund", submitted_at_ms=1
)


def texts_of(schema: str) -> list[str]:
    """Every string field of a record's schema but its declared ids: those to come as well."""
    return [
        field["name"]
        for field in read_schema(schema)["fields"]
        if "string" in (field["type"], *list(field["type"])) and field["name"] not in ID_FIELDS
    ]


@pytest.mark.parametrize("field", texts_of("order"))
def test_every_text_of_an_order_is_looked_at(field: str) -> None:
    """A card number in any text but an id is named by its field, and never by itself."""
    order = replace(ORDER, **{field: "4111111111111111"})
    assert fields_with_card_numbers(order) == (field,)


@pytest.mark.parametrize("field", texts_of("payment-command"))
def test_every_text_of_a_command_is_looked_at(field: str) -> None:
    """The same for commands, whatever a field is for."""
    command = replace(COMMAND, **{field: "card 4111 1111 1111 1111"})
    assert fields_with_card_numbers(command) == (field,)


def test_ids_of_a_command_are_no_card_numbers() -> None:
    """A requester's ids may be any digits."""
    ids = {"merchant_id": "4111111111111111", "order_id": "5555555555554444"}
    assert fields_with_card_numbers(replace(COMMAND, **ids, command_id="4111111111111111")) == ()


def test_a_description_is_looked_at_and_an_id_is_not() -> None:
    """An article number with a check digit is no card; a card in the text beside it is one."""
    line = OrderLine(line_number=1, sku="4006381333931", quantity=1, unit_amount_minor=100)
    ids = {"customer_id": "4111111111111111", "order_id": "5555555555554444"}
    fine = replace(ORDER, **ids, lines=(line,))
    assert fields_with_card_numbers(fine) == ()
    told = replace(line, description="paid with 4111-1111-1111-1111")
    assert fields_with_card_numbers(replace(ORDER, lines=(line, told))) == ("lines[2].description",)


@pytest.mark.slow
def test_ids_are_never_taken_for_cards() -> None:
    """Thousands of ids as systems make them: as ids none, as tokens none but a bare card."""
    chance = random.Random(5)
    for number in range(share_of(5_000)):
        ids = [
            str(10**15 + chance.randrange(9 * 10**15)),  # sixteen digits, one in ten passes Luhn
            f"{1_790_000_000_000 + number * 7919}",  # milliseconds
            f"ORD-2026-{number:08d}-{chance.randrange(10**8):08d}",
            with_check_digit(str(4 * 10**14 + chance.randrange(10**14))),
            f"{chance.getrandbits(64)}",
        ]
        for given in ids:
            order = replace(ORDER, order_id=given, customer_id=given, merchant_id=given[:64])
            assert fields_with_card_numbers(order) == (), given
        opaque = [
            f"{chance.getrandbits(256):064x}",
            _uuid(chance),
            f"pm_{chance.getrandbits(96):024x}",
        ]
        for given in opaque:
            order = replace(ORDER, instrument_token=given, card_fingerprint=given)
            assert fields_with_card_numbers(order) == (), given


def _uuid(chance: random.Random) -> str:
    # Decimal digits only: the worst case of a UUID.
    digits = "".join(chance.choice("0123456789") for _ in range(32))
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


@pytest.mark.slow
def test_what_is_refused_is_masked_in_its_record() -> None:
    """Whatever stands beside it in the bytes, no refused number is left readable."""
    chance = random.Random(3)
    encode = default_codec().encoder("order")
    for _ in range(share_of(2_000)):
        number = with_check_digit("4" + "".join(chance.choice("0123456789") for _ in range(14)))
        around = [chance.choice(["", "x", "7", "12 ", "9-"]) for _ in range(2)]
        order = replace(
            ORDER,
            order_id=str(chance.randrange(10**12)),
            instrument_token=chance.choice([number, f"tok_{number}"]),
            customer_id=chance.choice([None, str(chance.randrange(10**10))]),
            country=chance.choice([None, "GB", f"{around[0]} {number} {around[1]}"]),
        )
        assert fields_with_card_numbers(order)
        assert number.encode() not in mask_card_numbers(encode(order_to_record(order)))


def test_the_ranges_refused_are_within_those_masked() -> None:
    """A range added to one table and not to the other would leave a number readable."""
    for low, high, lengths in card_numbers._ISSUED:
        assert len(low) == len(high)
        assert low <= high
        for length in lengths:
            for first in range(int(low[0]), int(high[0]) + 1):
                assert ord(str(first)) in card_numbers._FIRST_DIGITS[length], (low, length)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["4", "4 ", "41-", "9 ", "4111 1111 1111 1112 "])
def test_looking_takes_linear_time(pattern: str) -> None:
    """Near misses cost no more a byte the longer the text is."""

    def look(size: int) -> None:
        holds_card_number((pattern * (1 + size // len(pattern)))[:size])

    assert grows_no_faster_than_linearly(look)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("cvv", True), ("CVV2", True), ("card_cvc", True), ("security_code", True),
     ("card-security-code", True), ("Security Code", True), ("country", False), ("cid", True),
     ("currency", False), ("order_id", False)],
)  # fmt: skip
def test_names_of_security_codes(name: str, is_one: bool) -> None:
    """A field named like a security code is known by its name, whatever it holds."""
    assert names_a_security_code(name) is is_one
