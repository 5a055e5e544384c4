"""What an overload comes to: claims that can fail, memory that grows, the wrong clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.chaos.document import Place
from pipeline.chaos.overload.campaign import SCENARIOS
from pipeline.chaos.overload.large_orders import (
    PUBLISHED_BYTES_MAX,
    as_record,
    beyond_the_publisher,
    large_orders,
    lines_alike,
)
from pipeline.chaos.overload.memory import Memory, cpu_s, is_flat, peak_mib, resident_mib
from pipeline.chaos.overload.outcomes import percentile
from pipeline.chaos.overload.report import Report, as_markdown, as_text
from pipeline.chaos.overload.scenario import Outcome
from pipeline.chaos.overload.shifted_worker import SHIFT_FILE, write_shift
from pipeline.domain.keys import partition_of
from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.validation import broken_rule
from pipeline.errors import UserError
from schemas.codec import RECORD_BYTES_MAX, default_codec
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


def outcome(*held: bool, name: str = "hot-order") -> Outcome:
    made = Outcome(name, "a lot of it")
    made.figure("orders", "7")
    for number, each in enumerate(held):
        made.claim(f"claim {number}", "seen", held=each)
    return made


@pytest.mark.parametrize(
    ("outcomes", "holds"),
    [
        ([outcome(True, True)], True),
        ([outcome(True, False)], False),
        ([outcome(True), outcome(False)], False),
        ([outcome()], False),
        ([], False),
    ],
    ids=["all hold", "one does not", "one of another", "nothing claimed", "nothing done"],
)
def test_a_run_holds_only_if_every_claim_of_every_scenario_does(
    outcomes: Sequence[Outcome], *, holds: bool
) -> None:
    """And a scenario that claimed nothing has shown nothing."""
    report = Report("paystream chaos overload", "", "2 cores", "4", "2", outcomes)
    assert report.holds is holds
    broken = any(not claim.held for each in outcomes for claim in each.claims)
    assert ("BROKEN" in as_text(report)) is ("BROKEN" in as_markdown(report)) is broken


def test_a_scenario_that_is_run_again_replaces_its_own_block_only() -> None:
    """The others keep theirs, with the command and the day that they are from."""
    first = Report(
        "first run",
        "monday",
        "2 cores",
        "4",
        "2",
        [outcome(True), outcome(True, name="restored-table")],
    )
    again = Report("second run", "tuesday", "2 cores", "4", "2", [outcome(True, True)])
    both = as_markdown(again, before=as_markdown(first))
    assert both.count("**hot-order**") == both.count("**restored-table**") == 1
    of_scenario, of_second = both.split("**restored-table**")
    assert "second run" in of_scenario
    assert "claim 1" in of_scenario
    assert "first run" not in of_scenario
    assert "first run" in of_second
    assert "second run" not in of_second
    assert as_markdown(again, before=both) == both


@pytest.mark.parametrize(
    ("before", "after", "flat"),
    [
        ([100.0, 200.0], [200.0, 240.0], True),
        ([100.0, 200.0], [300.0], False),
        ([1_000.0], [1_240.0], True),
        ([1_000.0], [1_300.0], False),
        ([], [100.0], False),
        ([100.0], [], False),
    ],
)
def test_memory_is_flat_if_the_most_does_not_grow(
    before: list[float], after: list[float], *, flat: bool
) -> None:
    """By a share of it, or by what an allocator moves; nothing seen is not flat."""
    assert is_flat(before, after) is flat


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_looked_at_for_as_long_as_it_lasts() -> None:
    """Of a process that is gone nothing is said."""
    begun_s = time.monotonic()
    with Memory(lambda: {"me": os.getpid(), "gone": 2**22 + 1}) as memory:
        wait_until(lambda: len(memory.series["me"]) >= 1, 20, "a look")
    assert all(mib > 1 for mib in memory.between("me", begun_s, time.monotonic()))
    assert memory.between("me", begun_s - 2, begun_s - 1) == []
    assert memory.between("gone", begun_s, time.monotonic()) == []
    assert resident_mib(2**22 + 1) is None
    assert cpu_s(2**22 + 1) == 0.0
    assert peak_mib(2**22 + 1) == 0.0
    assert peak_mib(os.getpid()) >= 1


def test_a_percentile_is_one_of_the_values() -> None:
    """By nearest rank."""
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([5], 0.5) == 5
    assert percentile([], 0.99) == 0


@pytest.mark.slow
def test_a_wrong_clock_jumps_whenever_it_is_told_to(tmp_path: Path) -> None:
    """Also what is imported by its name; the clock that cannot jump stays."""
    shift_file = tmp_path / "shift"
    write_shift(shift_file, 3_600.0)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.chaos.overload.shifted_worker import _shift_clock, write_shift\n"
        "import time; right, steady = time.time, time.monotonic()\n"
        "_shift_clock(Path(sys.argv[1]))\n"
        "from time import time as by_name\n"
        "ahead = by_name() - right()\n"
        "write_shift(Path(sys.argv[1]), -3600.0)\n"
        "print(round(ahead), round(by_name() - right()), time.monotonic() - steady < 60)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(shift_file)],
        env={**os.environ, SHIFT_FILE: str(shift_file), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["3600", "-3600", "True"]


def test_a_table_has_one_place_in_a_document(tmp_path: Path) -> None:
    """Between the markers of its own command; another command's are left alone."""
    mine, other = Place("overload"), Place("copy")
    document = tmp_path / "document.md"
    document.write_text(f"a\n{mine.begin}\nold\n{mine.end}\n{other.begin}\nkept\n{other.end}\n")
    mine.require(document)
    mine.write(document, "new")
    assert document.read_text() == (
        f"a\n{mine.begin}\n\nnew\n\n{mine.end}\n{other.begin}\nkept\n{other.end}\n"
    )
    document.write_text(f"{mine.end}\n{mine.begin}\n")
    with pytest.raises(UserError, match="does not say where"):
        mine.require(document)


@pytest.mark.slow
def test_large_orders_are_valid_and_at_their_limit() -> None:
    """Each of its own amount, in few partitions; and one byte more is beyond what a client lets
    out, some more beyond what a record may have."""
    made = large_orders(4, 1, 6)
    policy = Policy(gateways=(GatewayProfile(name="simulator"),))
    for order, most in (
        *((order, PUBLISHED_BYTES_MAX) for order in made.published),
        *((order, RECORD_BYTES_MAX) for order in made.unfolded),
    ):
        key, value = as_record(order)
        size = len(value) + (len(key) if most == PUBLISHED_BYTES_MAX else 0)
        assert most - 64 < size <= most
        assert broken_rule(order, order.submitted_at_ms, policy) is None
        assert partition_of(key, 6) < 2
        assert default_codec().decoder("order")(value)["lines"][-1]["sku"] == "85123A"
    assert len({order.amount_minor for order in made.paid}) == len(made.paid) == 4
    assert sum(map(len, as_record(beyond_the_publisher()))) == PUBLISHED_BYTES_MAX + 1
    (key, longer), (_, alike) = made.beyond[0], lines_alike(0, 10_000)
    assert RECORD_BYTES_MAX < len(longer) < RECORD_BYTES_MAX + 128
    assert len(alike) > 9_990
    lines = default_codec().decoder("order")(alike)["lines"]
    assert len(lines) > 1_900
    assert [line["quantity"] for line in lines] == [1] * len(lines)


def test_every_scenario_has_a_name() -> None:
    """As the command takes it."""
    assert list(SCENARIOS) == [
        "throttled-gateway", "paused-consumer", "large-records", "dead-letters", "hot-order",
        "restored-table", "clock-jumps",
    ]  # fmt: skip
