"""Who waits for a long reading sees that it goes on."""

from __future__ import annotations

import pytest

from pipeline.commands.reading_progress import saying_progress


def test_it_is_said_after_two_seconds_and_then_every_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_s = [0.0]
    say = saying_progress(lambda: now_s[0])
    said = []
    for now_s[0], done in ((1.9, 1_000), (2.1, 1_999), (2.1, 2_000), (3.9, 3_000), (4.2, 4_000)):
        say("payments", done)
        said.append(capsys.readouterr().err)
    assert said == [
        "", "", "2,000 records of payments read ...\n", "", "4,000 records of payments read ...\n",
    ]  # fmt: skip
