"""The tables of codes and of retry safety: complete, consistent, and what the document says."""

from __future__ import annotations

import re

import pytest

from pipeline.domain.normalisation import (
    BOUND,
    GATEWAY_CODES,
    OPERATIONS,
    RETRY_SAFETY,
    STANDARD,
    Action,
    Again,
    Phase,
    action_of,
    retry_safety,
    standard_code,
)
from pipeline.gateways import document
from pipeline.gateways.adapters.base import refused, unanswered
from pipeline.gateways.adapters.known import ADAPTERS
from pipeline.gateways.simulator.wires import legacy, northbank, pacific
from tests.house import TOP


def test_the_document_is_what_the_tables_say() -> None:
    """Whoever reads the document reads the code."""
    told = document.DOCUMENT.read_text(encoding="utf-8")
    assert told == document.render(), "run: python -m pipeline.gateways.document"


def test_every_code_of_a_gateway_is_in_the_table() -> None:
    """No word that a simulated gateway can say is left to the rule for unknown ones."""
    said = {
        "northbank": {*northbank._REASONS.values(), *(r[2] for r in northbank._REFUSALS.values())},
        "pacific": {str(number) for number in pacific._CODES.values()},
        "legacy": set(legacy._CODES.values()),
    }
    # The default one's codes are standard ones.
    assert {*said, "simulator"} == set(ADAPTERS)
    for adapter, codes in said.items():
        assert codes <= set(GATEWAY_CODES[adapter]), adapter


def test_every_standard_code_is_known_and_every_action_used() -> None:
    """A code without an action would be acted on at random."""
    for codes in GATEWAY_CODES.values():
        assert set(codes.values()) <= set(STANDARD)
    assert {standard.action for standard in STANDARD.values()} == set(Action)


def test_every_code_that_the_adapters_write_is_in_the_table() -> None:
    """Whatever word stands in the source of the gateways' side has an action."""
    words = set()
    for path in ("pipeline/gateways/http_adapter.py", "pipeline/gateways/adapters",
                 "pipeline/runtime/calls.py", "pipeline/domain/health.py",
                 "pipeline/processors/gateway.py"):  # fmt: skip
        found = TOP / path
        for file in found.glob("*.py") if found.is_dir() else [found]:
            text = file.read_text(encoding="utf-8")
            words |= set(re.findall(r'code="([a-z_]+)"', text))
            words |= set(re.findall(r'(?:unknown|_unknown|_not_sent)\("([a-z_]+)"', text))
            words |= set(re.findall(r'^[A-Z_]+: Final = "([a-z_]+)"$', text, re.MULTILINE))
    assert len(words) > 15
    assert words - set(STANDARD) == set()


def test_an_unknown_word_is_never_a_reason_to_send_again() -> None:
    """What nobody told us leads to an inquiry."""
    assert action_of(None) is action_of("what?") is Action.INQUIRE
    assert standard_code("pacific", "99", "gateway_error") == "gateway_error"


@pytest.mark.parametrize("adapter", GATEWAY_CODES)
def test_the_action_decides_what_a_refusal_says(adapter: str) -> None:
    """Retry here was not sent, inquire is unknown, all else declined; an inquiry's is unknown."""
    outcomes = {Action.RETRY_HERE: "not_sent", Action.INQUIRE: "unknown"}
    for own, code in GATEWAY_CODES[adapter].items():
        answer = refused(adapter, own)
        assert (answer.outcome, answer.code) == (
            outcomes.get(action_of(code), "declined"),
            code,
        )
        assert unanswered(adapter, own).outcome == "unknown"


def test_the_matrix_has_every_case() -> None:
    """No phase of no operation is left open, with and without keys."""
    assert set(RETRY_SAFETY) == {
        (phase, operation, keys)
        for phase in Phase
        for operation in OPERATIONS
        for keys in (True, False)
    }


def test_only_proof_or_a_plain_no_leads_elsewhere_and_never_from_a_later_operation() -> None:
    """Nothing that may have happened is tried a second time at another gateway."""
    elsewhere = {case for case, safety in RETRY_SAFETY.items() if safety.elsewhere is not Again.NO}
    assert elsewhere == {
        (phase, operation, keys)
        for phase, keys in (
            (Phase.DECLINED, True),
            (Phase.NOT_FOUND_PROVEN, True),
            (Phase.NOT_FOUND_PROVEN, False),
        )
        for operation in set(OPERATIONS) - BOUND
    }


def test_without_keys_only_what_was_not_written_is_sent_again() -> None:
    """Not even a proven "not found" lets the same attempt go out once more."""
    again = {
        phase
        for (phase, _, keys), safety in RETRY_SAFETY.items()
        if not keys and safety.here is Again.SAME_ATTEMPT
    }
    assert again == {Phase.NOT_WRITTEN, Phase.TURNED_AWAY}


def test_what_was_written_is_sent_nowhere_until_it_was_asked_about() -> None:
    """The row that the whole design is for."""
    for operation in OPERATIONS:
        for keys in (True, False):
            safety = retry_safety(Phase.WRITTEN, operation, idempotent=keys)
            assert (safety.here, safety.elsewhere) == (Again.NO, Again.NO)
