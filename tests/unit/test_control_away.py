"""What a command about the control topic says when no broker answers."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.runtime import control
from schemas.codec import default_codec
from topics.catalogue import build_catalogue


@pytest.mark.slow
def test_reading_without_a_broker_is_one_sentence_and_no_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The client's own lines, two hundred of them, would hide it."""
    monkeypatch.setattr(control, "READ_TIMEOUT_S", 0.3)
    with pytest.raises(UserError, match=r"is the cluster at 127\.0\.0\.1:1 reachable"):
        control.read_records("127.0.0.1:1", build_catalogue(), default_codec())
    assert capfd.readouterr() == ("", "")
