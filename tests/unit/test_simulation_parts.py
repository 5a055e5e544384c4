"""What a simulated run is made of: records that are handed on, and defences that are taken out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.domain.records import payment_from_record, to_record
from tests.house import TOP
from tests.simulation.clients import ClientFaults, SimConsumer
from tests.simulation.groups import Group
from tests.simulation.log import Cluster
from tests.simulation.mutate import BEGIN, END, Found, hints_of, with_table
from tests.simulation.mutations import MUTATIONS
from tests.simulation.shared import shared_codec
from tests.simulation.world import Process, World
from tests.support.payment_story import Story


def test_records_that_are_handed_on_are_what_avro_reads() -> None:
    """A payment is the same whether it went through bytes or was carried."""
    payment = Story().payment
    record = to_record(payment)
    read = []
    for codec in (shared_codec(True), shared_codec(False)):
        raw = codec.encoder("payment", checked=False)(record)
        read.append(payment_from_record(codec.decoder("payment")(raw)))
    assert read == [payment, payment]
    garbage = shared_codec(False).decoder("payment")
    written = shared_codec(True).encoder("payment")(record)
    assert payment_from_record(garbage(written)) == payment, "other bytes are read by the real one"


@pytest.mark.slow
def test_a_defence_is_taken_out_without_a_file_being_written(tmp_path: Path) -> None:
    """The module is imported from another text; the file is as it was."""
    place = TOP / "pipeline" / "domain" / "window.py"
    before = place.read_text()
    program = (
        "from pathlib import Path\n"
        "from tests.simulation.mutate import instead_of\n"
        f"instead_of(Path({str(place)!r}), 'TAKEN_OUT = True')\n"
        "from pipeline.domain import window\n"
        "print(window.TAKEN_OUT, hasattr(window, 'annotations'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False"]
    assert place.read_text() == before


def test_the_table_of_defences_tells_which_seed_to_try_first() -> None:
    """What a run wrote is read by the next one, and only the table is written anew."""
    found: dict[str, Found | None] = {m.name: Found("seed 7", "charged_twice") for m in MUTATIONS}
    found[MUTATIONS[1].name] = None
    text = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", found, 12.0)
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert f"| {MUTATIONS[1].name} |" in text
    assert "**nothing**" in text
    hints = hints_of(text)
    assert hints[MUTATIONS[0].name] == 7
    assert MUTATIONS[1].name not in hints


def test_a_share_that_was_not_taken_before_the_next_sharing_is_none() -> None:
    """A member that joins again has given back what it was given, taken or not: otherwise it would
    read a partition that the next sharing gives to another one."""
    world = World("0")
    cluster = Cluster(world)
    cluster.create("requests", 2, 0.0)
    group = Group(cluster, "gateway", "range")

    def client(name: str) -> SimConsumer:
        process = Process(world, name)
        process.spawn(lambda: None)
        return SimConsumer(cluster, process, ClientFaults(), {"group.id": "gateway"})

    first = group.join(client("a"), "a", ["requests"])
    assert first.given == {("requests", 0), ("requests", 1)}
    second = group.join(client("b"), "b", ["requests"])
    group.rejoin(first)
    assert first.given == {("requests", 0)}
    assert second.given == {("requests", 1)}
    group.join(client("c"), "c", ["requests"])
    group.rejoin(first)
    assert first.given is None, "nobody has shared anew yet"
