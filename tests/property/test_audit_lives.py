"""The audit over random lives of payments, as the processors wrote them: it accuses no healthy one.

The lives are those of ``test_processors_lifecycle_properties``, whose model holds the gateway's
true books; here their records and books are judged as ``paystream verify`` would.
"""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.audit.gateway_copy import GatewayCopy
from pipeline.audit.report import Finding, Severity
from pipeline.domain.reversals import outstanding
from tests.property import test_processors_lifecycle_properties as lives
from tests.support.audit_story import judged_flow
from tests.support.examples import share_of

# What a flow at rest may still say: nobody else than these can go on.
AT_REST = {"waits_for_a_person", "waits_for_the_customer"}
# What is true of a life and no fault of the pipeline's: its gateway took more than it held, or
# somebody said that a refund came back which did not.
OVERCAPTURED = "amounts_out_of_order"
MISTAKEN = "settlement_without_refund"
# What the model forges and a flow's own transactions rule out: the same result committed twice.
FORGED = {"result_duplicated"}
# Of fewer there may be none in which money goes back.
WALKS = max(40, share_of(120))


def judged(life: lives.Life) -> list[Finding]:
    """What the audit says of a life at its end: all of its inputs but timers are processed."""
    true = FORGED | ({OVERCAPTURED} if life.lavish else set())
    true |= {MISTAKEN} if life.mistaken else set()
    return [f for f in judged_flow(life.flow, books(life)) if f.name not in true]


def books(life: lives.Life) -> GatewayCopy:
    """The model's true books, entry by entry."""
    copy = GatewayCopy()
    for moved in life.books.values():
        request = moved.request
        if moved.state not in ("done", "failed"):
            continue
        kind = "authorization" if request.kind == "authorize" else request.kind
        entry: dict[str, Any] = {
            "kind": kind,
            "id": moved.reference,
            "reference": request.idempotency_key,
            "charge_id": request.parent_reference or moved.reference,
            "amount_minor": request.amount_minor,
            "currency": request.currency,
            "merchant_id": request.merchant_id,
            "order_id": request.order_id,
            "created_at_ms": 0,
        }
        copy.add(entry, recent=False)
        if moved.state == "failed":
            copy.add({**entry, "kind": "refund_failed", "id": f"{moved.reference}-f"}, recent=False)
        withdrawn = False
        for number, stage in enumerate(life.disputes.get(moved.reference, [])):
            if (stage == "won") is withdrawn:
                withdrawn = not withdrawn
                kind = "dispute" if withdrawn else "dispute_won"
                named = {"kind": kind, "id": f"d{number}", "reference": f"d_{moved.reference}"}
                amount = {"amount_minor": life.disputed_minor[moved.reference]}
                copy.add({**entry, **named, **amount}, recent=False)
    return copy


@pytest.mark.parametrize("part", range(4))
def test_no_healthy_life_is_accused(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures in parts, refunds that fail, lost answers, notices in any order, late successes: at
    the end nothing is broken, what is pending waits for somebody by name, and what was given up
    while it is owed is pending."""
    ended: list[lives.Life] = []

    class Kept(lives.Life):
        def teardown(self) -> None:
            super().teardown()
            ended.append(self)

    monkeypatch.setattr(lives, "Life", Kept)
    for seed in range(part * WALKS // 4, (part + 1) * WALKS // 4):
        lives.live(seed)
        life = ended.pop()
        found = judged(life)
        broken = [f for f in found if f.severity is Severity.BROKEN]
        assert not broken, f"live({seed}): {broken}"
        assert {f.name for f in found} <= AT_REST, f"live({seed}): {found}"
        owed = outstanding(life.payment())
        assert not owed or "waits_for_a_person" in {f.name for f in found}, f"live({seed}): {owed}"


def test_a_life_whose_refund_is_not_settled_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same judgement over the same records cries when one of them is taken away."""
    ended: list[lives.Life] = []

    class Kept(lives.Life):
        def teardown(self) -> None:
            super().teardown()
            ended.append(self)

    monkeypatch.setattr(lives, "Life", Kept)
    accused = 0
    for seed in range(WALKS // 4):
        lives.live(seed)
        life = ended.pop()
        if life.payment().refunded_minor:
            settlements = life.flow.topics["settlements"]
            kinds = [each.kind for each in life.flow.settlements()]
            del settlements[kinds.index("refund")]
            assert any(f.severity is Severity.BROKEN for f in judged(life)), f"live({seed})"
            accused += 1
    assert accused
