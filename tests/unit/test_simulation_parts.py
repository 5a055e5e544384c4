"""What a simulated run is made of: records that are handed on, and defences that are taken out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.domain.records import payment_from_record, to_record
from tests.house import TOP
from tests.simulation.mutate import BEGIN, END, Found, hints_of, with_table
from tests.simulation.mutations import MUTATIONS
from tests.simulation.shared import shared_codec
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
