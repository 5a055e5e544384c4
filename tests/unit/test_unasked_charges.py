"""A charge nobody asked for is given back once, because a person says so, and the audit agrees."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.audit.evidence import CommandSeen, PaymentEvidence
from pipeline.audit.found_charges import is_unasked
from pipeline.audit.gateway_copy import ChargeSeen, GatewayCopy, MovementSeen
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.ids import idempotency_key, payment_id, unasked_order_id
from pipeline.domain.model import (
    Attempt,
    GatewayNotification,
    Payment,
    PaymentCommand,
    PaymentRequest,
)
from pipeline.domain.policy import HOUR_MS
from pipeline.domain.posting import JournalEntry, journal_entry
from pipeline.domain.records import to_record
from pipeline.domain.unasked_charges import NO_MERCHANT, settled_kind, unasked_command_id
from pipeline.processors.driver import FlowDriver
from producers.clearings import words_of
from schemas.codec import default_codec
from tests.support.audit_story import judged_flow
from tests.support.payment_story import (
    DECLINED,
    NOT_FOUND,
    NOW,
    ORDER,
    PENDING,
    POLICY,
    TIMED_OUT,
    Story,
    unasked,
    yes,
)
from tests.support.reconciliation import reported_side

COMMAND = unasked()
ORDER_ID = COMMAND.order_id


def ordered(**changed: Any) -> FlowDriver:
    flow = FlowDriver(POLICY, now_ms=NOW)
    flow.command(replace(COMMAND, **changed))
    return flow


def payment_in(flow: FlowDriver) -> Payment:
    payment = flow.payment(NO_MERCHANT, ORDER_ID)
    assert payment is not None
    return payment


def settled(flow: FlowDriver) -> list[tuple[str, int]]:
    return [(each.kind, each.amount_minor) for each in flow.settlements()]


def balances(flow: FlowDriver) -> Counter[str]:
    kept: Counter[str] = Counter()
    for each in flow.settlements():
        entry = journal_entry(each)
        assert isinstance(entry, JournalEntry), entry
        for posting in entry.postings:
            kept[posting.account] += posting.amount_minor
    return kept


def books(*refunded: str) -> GatewayCopy:
    """The gateway's: a charge under names and a reference that are none of ours."""
    copy = GatewayCopy()
    copy.charges["somebody:else"] = [ChargeSeen("ch_77", "typed by hand", 1250, "GBP", NOW, False)]
    key = idempotency_key(payment_id(NO_MERCHANT, ORDER_ID), f"late-{ORDER_ID}-1", "simulator", 1)
    copy.movements["somebody:else"] = [
        MovementSeen("refund", each, key, "ch_77", 1250, "GBP", False) for each in refunded
    ]
    return copy


def named(flow: FlowDriver, gateway: GatewayCopy | None = None) -> list[str]:
    return [each.name for each in judged_flow(flow, gateway)]


def test_it_is_booked_and_given_back_by_the_gateways_own_reference() -> None:
    """One refund, of that charge and amount; nothing is any merchant's, and nothing is left."""
    flow = ordered()
    (request,) = flow.requests()
    assert (request.kind, request.parent_reference, request.amount_minor, request.currency) == (
        "refund", "ch_77", 1250, "GBP",
    )  # fmt: skip
    assert settled(flow) == [("unasked_capture", 1250)]
    assert balances(flow) == {"gateway_receivable:simulator": 1250, "suspense:simulator": -1250}
    flow.answer(yes)
    assert settled(flow)[1:] == [("unasked_refund", -1250)]
    assert set(balances(flow).values()) == {0}
    assert [each.type for each in flow.events()] == ["charge_found", "reversal_started", "refunded"]
    assert {each.business_date for each in flow.settlements()} == {"2026-09-20"}
    payment = payment_in(flow)
    assert (payment.status, payment.captured_minor, payment.refunded_minor) == (
        "captured", 1250, 1250,
    )  # fmt: skip
    assert named(flow) == []
    assert named(flow, books(f"refund_1_late-{ORDER_ID}-1")) == []


def test_the_same_order_again_gives_nothing_back_a_second_time() -> None:
    """Published twice, or found in another row: one command of one charge, taken once."""
    flow = ordered()
    flow.answer(yes)
    assert flow.command(COMMAND).note == "duplicate_command"
    again = replace(COMMAND, evidence="row simulator:r:9", actor="bob", reason="seen again")
    assert flow.command(again).note == "duplicate_command"
    flow.command(replace(COMMAND, amount_minor=1300))
    assert flow.events()[-1].reason == "content_of_a_command_id_must_not_change"
    flow.command(replace(COMMAND, command_id="another"))
    assert flow.events()[-1].reason == "unasked_charge_must_have_its_own_key"
    assert len(flow.requests()) == 1
    assert len(settled(flow)) == 2


def test_an_unknown_refund_is_asked_about_and_sent_again_under_its_key() -> None:
    """The gateway is silent, then does not know it: the same key, so it is made once."""
    keys: list[str] = []

    def silent_at_first(request: PaymentRequest) -> GatewayAnswer:
        if request.kind == "inquire":
            return NOT_FOUND
        keys.append(request.idempotency_key)
        return TIMED_OUT if len(keys) == 1 else yes(request)

    flow = ordered()
    flow.run(silent_at_first)
    assert (len(keys), len(set(keys))) == (2, 1)
    assert settled(flow) == [("unasked_capture", 1250), ("unasked_refund", -1250)]
    assert named(flow) == []


def test_what_the_gateway_will_not_give_back_waits_for_a_person() -> None:
    """Told and named; ordered again by `give_back`, or recorded as paid otherwise."""
    flow = ordered()
    flow.answer(DECLINED)
    assert [each.type for each in flow.events()][-2:] == ["refund_failed", "reversal_failed"]
    assert named(flow, books()) == ["waits_for_a_person"]
    flow.command(PaymentCommand(
        merchant_id=NO_MERCHANT, order_id=ORDER_ID, command_id="g1", type="give_back",
        submitted_at_ms=NOW,
    ))  # fmt: skip
    flow.answer(yes)
    assert settled(flow)[-1] == ("unasked_refund", -1250)
    assert set(balances(flow).values()) == {0}
    assert named(flow) == []


def test_what_was_paid_back_otherwise_ends_it_too() -> None:
    """Recorded by a person: the charge is explained, and who paid its customer is to be."""
    flow = ordered()
    flow.answer(DECLINED)
    flow.command(PaymentCommand(
        merchant_id=NO_MERCHANT, order_id=ORDER_ID, command_id="x1", type="record_refund",
        submitted_at_ms=NOW, gateway_reference="TRF-9", evidence="statement", actor="ann",
    ))  # fmt: skip
    assert settled(flow)[-1] == ("unasked_external_refund", -1250)
    assert {account: minor for account, minor in balances(flow).items() if minor} == {
        "gateway_receivable:simulator": 1250, "unapplied_credits:unasked": -1250,
    }  # fmt: skip
    assert named(flow, books()) == []


def returned(flow: FlowDriver, back: Attempt) -> GatewayNotification:
    """The gateway's notice that a refund has come back."""
    return GatewayNotification(
        merchant_id=NO_MERCHANT, order_id=ORDER_ID, payment_id=payment_in(flow).payment_id,
        notification_id="n1", gateway="simulator", type="operation", amount_minor=0, currency="GBP",
        received_at_ms=NOW, operation_id=back.operation_id, attempt=1, kind="refund",
        outcome="failed", gateway_reference=back.gateway_reference,
    )  # fmt: skip


def test_a_refund_that_came_back_is_owed_again() -> None:
    """Its own kind of settlement puts it back into suspense, and a person is told."""
    flow = ordered()
    flow.answer(yes)
    back = payment_in(flow).attempts[-1]
    flow.notify(returned(flow, back))
    assert settled(flow)[-1] == ("unasked_refund_failed", 1250)
    assert balances(flow)["suspense:simulator"] == -1250
    assert named(flow) == ["waits_for_a_person"]
    # The gateway's books say so too, and what was told of them is not waited for.
    theirs = books(back.gateway_reference or "")
    (refund,) = theirs.movements["somebody:else"]
    theirs.movements["somebody:else"].append(
        replace(refund, kind="refund_failed", id=f"{refund.id}-failed")
    )
    assert named(flow, theirs) == ["waits_for_a_person"]


@pytest.mark.parametrize("merchant", ["somebody", "shop", ""])
@pytest.mark.parametrize(
    ("kind", "answer", "settles"),
    [
        ("refund", PENDING, ("unasked_refund", -1250)),
        # Given up by inquiry: a person would have to say what its row says.
        ("refund", None, ("unasked_refund", -1250)),
        ("refund_failed", yes, ("unasked_refund_failed", 1250)),
    ],
)
def test_a_reports_row_about_the_refund_reaches_it(
    merchant: str, kind: str, answer: Any, settles: tuple[str, int]
) -> None:
    """Though it repeats the order that the charge was made with, or none."""
    flow = ordered()
    if answer is None:
        flow.run(lambda _request: TIMED_OUT)
    else:
        flow.answer(answer)
    payment = payment_in(flow)
    back = payment.attempts[-1]
    row = reported_side(
        gateway="simulator", gateway_reference=back.gateway_reference or "re_9", kind=kind,
        operation_kind="refund", payment_id=payment.payment_id, operation_id=back.operation_id,
        attempt=1, merchant_id=merchant, order_id="1", amount_minor=1250,
    )  # fmt: skip
    assert words_of([row], NOW) == []
    ((word, _),) = words_of([row], NOW, {payment.payment_id: ORDER_ID})
    flow.notify(word)
    assert settled(flow)[-1] == settles
    assert flow.dead_letters == []


def disputed(flow: FlowDriver, state: str, **changed: Any) -> None:
    flow.notify(replace(GatewayNotification(
        merchant_id=NO_MERCHANT, order_id=ORDER_ID, payment_id=payment_in(flow).payment_id,
        notification_id=f"d-{state}", gateway="simulator", type="dispute", amount_minor=1250,
        fee_minor=1500, currency="GBP", received_at_ms=NOW, dispute_id="d1", dispute_state=state,
        gateway_reference="ch_77",
    ), **changed))  # fmt: skip


def give_back(flow: FlowDriver, command_id: str = "g1") -> None:
    flow.command(PaymentCommand(
        merchant_id=NO_MERCHANT, order_id=ORDER_ID, command_id=command_id, type="give_back",
        submitted_at_ms=NOW,
    ))  # fmt: skip


def test_what_its_customers_bank_takes_is_not_refunded_beside_that() -> None:
    """Disputed after the refund was refused: booked in suspense with its fee, and no refund runs
    while the bank has the money, nor once it keeps it."""
    flow = ordered()
    flow.answer(DECLINED)
    disputed(flow, "opened")
    give_back(flow)
    assert len(flow.requests()) == 1
    disputed(flow, "lost")
    give_back(flow, "g2")
    flow.advance(30 * 24 * HOUR_MS)
    assert len(flow.requests()) == 1
    assert settled(flow) == [
        ("unasked_capture", 1250), ("unasked_dispute", -1250), ("unasked_dispute_fee", -1500),
    ]  # fmt: skip
    assert {account: minor for account, minor in balances(flow).items() if minor} == {
        "gateway_receivable:simulator": -1500, "suspense:simulator": 1500,
    }  # fmt: skip
    taken = books()
    taken.movements["somebody:else"] = [
        MovementSeen("dispute", "d1", "d1", "ch_77", 1250, "GBP", False),
        MovementSeen("dispute_fee", "d1", "d1", "ch_77", 1500, "GBP", False),
    ]
    assert named(flow, taken) == []


def test_a_dispute_that_is_won_gives_the_refund_its_way_again() -> None:
    """What the bank gave back is owed to the customer's card, once."""
    flow = ordered()
    flow.answer(DECLINED)
    disputed(flow, "opened", fee_minor=0)
    disputed(flow, "won", fee_minor=0)
    give_back(flow)
    flow.run(yes)
    assert [kind for kind, _ in settled(flow)] == [
        "unasked_capture", "unasked_dispute", "unasked_reversal", "unasked_refund",
    ]  # fmt: skip
    assert set(balances(flow).values()) == {0}


def test_a_dispute_beyond_the_refund_is_a_loss_that_is_told() -> None:
    """Refunded and charged back as well: booked where it is looked at, and the event says so."""
    flow = ordered()
    flow.answer(yes)
    disputed(flow, "lost", fee_minor=0)
    assert flow.events()[-1].type == "loss_posted"
    assert balances(flow)["gateway_receivable:simulator"] == -1250
    assert balances(flow)["suspense:simulator"] == 1250


def test_the_audit_topic_says_who_had_it_given_back_and_why() -> None:
    """Carried out or refused, with the charge and the evidence."""
    flow = ordered()
    (entry,) = flow.audit_entries()
    assert (entry.actor, entry.action, entry.reason) == (
        "ann", "unasked_charge_refund", "nobody knows the card",
    )  # fmt: skip
    said = json.loads(entry.detail)
    assert (said["outcome"], said["gateway"], said["gateway_reference"]) == (
        "done", "simulator", "ch_77",
    )  # fmt: skip
    assert (said["amount_minor"], said["currency"], said["evidence"]) == (
        1250, "GBP", "row simulator:r:7",
    )  # fmt: skip
    (refused,) = ordered(actor=None).audit_entries()
    assert json.loads(refused.detail)["rule"] == "actor_must_be_given"


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"gateway_reference": "ch_78"}, "unasked_charge_must_have_its_own_key"),
        ({"gateway": "pacific"}, "unasked_charge_must_have_its_own_key"),
        ({"gateway": "none"}, "gateway_and_its_reference_must_be_given"),
        ({"gateway_reference": None}, "gateway_and_its_reference_must_be_given"),
        ({"gateway_reference": "a\nb"}, "gateway_and_its_reference_must_be_given"),
        ({"amount_minor": None}, "amount_must_be_given"),
        ({"amount_minor": 0}, "amount_must_be_positive"),
        ({"currency": None}, "currency_must_be_iso_4217"),
        ({"business_date": None}, "business_date_must_be_a_date"),
        ({"evidence": ""}, "evidence_must_be_given"),
        ({"actor": None}, "actor_must_be_given"),
    ],
)
def test_a_word_that_breaks_a_rule_moves_nothing(changed: dict[str, Any], rule: str) -> None:
    """Refused by name; no gateway is asked and nothing is settled."""
    flow = ordered(**changed)
    (letter,) = flow.dead_letters
    assert (letter.cause, letter.detail) == ("unasked_charge_refused", rule)
    assert (flow.requests(), settled(flow), flow.events()) == ([], [], [])


@pytest.mark.parametrize(
    "refused",
    [
        {"reason": "x" * 1001},
        {"actor": "x" * 256},
        {"reason": "nobody knows the card 4111 1111 1111 1111"},
        # As a worker of before this type of command was known left it.
        {"type": "refund_unasked_of_a_later_version"},
        {"type": "give_back", "command_id": "g0"},
        {"type": "credit", "command_id": "c0"},
    ],
)
def test_what_was_refused_first_can_still_be_given_back(refused: dict[str, Any]) -> None:
    """Nothing else could: the mended command is taken, whatever came under its key before it."""
    flow = ordered(**refused)
    assert flow.requests() == []
    flow.command(COMMAND)
    flow.run(yes)
    assert settled(flow) == [("unasked_capture", 1250), ("unasked_refund", -1250)]
    flow.command(COMMAND)
    assert len(flow.requests()) == 1
    assert named(flow) == []


def test_a_gateways_id_may_look_like_a_card_number() -> None:
    """Sixteen digits that pass Luhn: its own name for the charge, which nobody typed."""
    numbered = unasked("4111111111111111")
    flow = FlowDriver(POLICY, now_ms=NOW)
    flow.command(numbered)
    flow.answer(yes)
    assert settled(flow) == [("unasked_capture", 1250), ("unasked_refund", -1250)]
    # Where a person types it, it is refused as ever.
    assert flow.command(replace(numbered, type="resolve", command_id="r")).dead_letter is not None


def test_more_than_an_order_may_be_is_given_back_as_well() -> None:
    """The limit is for what is asked for; this was taken already."""
    flow = ordered(amount_minor=POLICY.amount_minor_max + 1)
    assert flow.requests()[0].amount_minor == POLICY.amount_minor_max + 1


def test_the_audit_finds_what_was_invented() -> None:
    """Without a person's word such a settlement is nobody's, and a charge stays one that nobody
    asked for until there is one; another amount than the gateway has is named."""
    flow = ordered()
    flow.answer(yes)
    kept = flow.topics["payment-commands"]
    flow.topics["payment-commands"] = []
    found = set(named(flow))
    assert {"payment_without_order", "settlement_without_evidence"} <= found
    flow.topics["payment-commands"] = kept
    assert named(FlowDriver(POLICY, now_ms=NOW), books()) == ["charge_without_payment"]
    kept = flow.topics["settlements"]
    flow.topics["settlements"] = []
    assert "command_without_outcome" in named(flow)
    flow.topics["settlements"] = kept
    other = books(f"refund_1_late-{ORDER_ID}-1")
    other.charges["somebody:else"] = [ChargeSeen("ch_77", "x", 1300, "GBP", NOW, False)]
    assert "settlement_amount_wrong" in named(flow, other)


@pytest.mark.parametrize("changed", [{"gateway": "pacific"}, {"gateway_reference": "ch_78"}])
def test_a_charge_that_no_person_named_is_not_settled_on_their_word(
    changed: dict[str, str],
) -> None:
    """The word is of one charge at one gateway, and evidence for no other."""
    flow = ordered()
    flow.answer(yes)
    first, *others = flow.topics["settlements"]
    other = to_record(replace(flow.settlements()[0], **changed))
    value = default_codec().encoder("settlement")(other)
    flow.topics["settlements"] = [replace(first, value=value), *others]
    assert "settlement_without_evidence" in named(flow)


def test_a_refund_whose_return_is_booked_was_booked_before() -> None:
    """Its success is no older word that the return has made void: without it money is missing."""
    flow = ordered()
    flow.answer(yes)
    back = payment_in(flow).attempts[-1]
    flow.notify(returned(flow, back))
    taken, _, came_back = flow.topics["settlements"]
    flow.topics["settlements"] = [taken, came_back]
    assert "success_without_settlement" in named(flow)


def test_a_charge_that_was_asked_for_is_a_merchants_whoever_it_is() -> None:
    """Earlier versions served one named so: what was sent, or has no such code, is a sale."""
    flow = ordered()
    payment = payment_in(flow)
    charge, *others = payment.attempts
    assert settled_kind(payment, "refund") == "unasked_refund"
    for changed in ({"tries": 1}, {"code": None}):
        sale = replace(payment, attempts=(replace(charge, **changed), *others))
        assert settled_kind(sale, "refund") == "refund"


def test_no_order_takes_the_name_that_stands_for_nobody() -> None:
    """It would be paid out to nobody: refused, and nothing is kept under the key."""
    flow = FlowDriver(POLICY, now_ms=NOW)
    decided = flow.order(replace(ORDER, merchant_id=NO_MERCHANT, order_id=ORDER_ID))
    assert decided.dead_letter == "merchant_must_not_be_reserved"
    assert (flow.requests(), flow.payment(NO_MERCHANT, ORDER_ID)) == ([], None)
    flow.command(COMMAND)
    flow.answer(yes)
    assert settled(flow) == [("unasked_capture", 1250), ("unasked_refund", -1250)]
    told = len(flow.events())
    again = flow.order(replace(ORDER, merchant_id=NO_MERCHANT, order_id=ORDER_ID))
    assert again.dead_letter == "merchant_must_not_be_reserved"
    assert len(flow.events()) == told


def test_a_payment_without_an_order_needs_the_key_of_its_charge() -> None:
    """A command under another key is no reason for a payment that has no order."""
    said = CommandSeen(0, 0, 0, "c", "refund_unasked", 1250, "ch_77", None, "simulator")
    for key, found in ((f"{NO_MERCHANT}:{ORDER_ID}", True), (f"{NO_MERCHANT}:1", False),
                       (f"shop:{ORDER_ID}", False)):  # fmt: skip
        assert is_unasked(PaymentEvidence(key, 0, "p", commands=(said,))) is found
        assert not is_unasked(PaymentEvidence(key, 0, "p"))


def test_the_second_charge_of_a_payment_goes_back_and_the_sale_stays() -> None:
    """The gateway charged one key twice: named until a person had the second given back."""
    story = Story(ORDER)
    story.flow.answer(yes)
    key = story.flow.requests()[0].idempotency_key
    copy = GatewayCopy()
    copy.charges["shop:1"] = [
        ChargeSeen(each, key, 500, "GBP", NOW, False) for each in ("charge_1", "ch_77")
    ]
    assert named(story.flow, copy) == ["charged_twice"]
    story.flow.command(unasked(amount_minor=500))
    story.flow.answer(yes)
    refund = story.flow.requests()[-1]
    copy.movements["shop:1"] = [
        MovementSeen("refund", f"refund_1_{refund.operation_id}", refund.idempotency_key, "ch_77",
                     500, "GBP", False)
    ]  # fmt: skip
    assert named(story.flow, copy) == []
    assert (story.status, story.money) == ("captured", (500, 500, 0))


def test_a_charge_that_two_payments_have_is_found() -> None:
    """An order's own charge went back as nobody's; another gateway's of that id is no matter."""
    story = Story(ORDER)
    story.flow.answer(yes)
    reference = story.payment.attempts[0].gateway_reference or ""
    other_id = unasked_order_id("pacific", reference)
    story.flow.command(replace(
        COMMAND, gateway="pacific", gateway_reference=reference, order_id=other_id,
        command_id=unasked_command_id(other_id),
    ))  # fmt: skip
    story.flow.run(yes)
    assert named(story.flow) == []
    story.flow.command(unasked(reference))
    story.flow.run(yes)
    assert named(story.flow) == ["charge_of_two_payments"]


def test_two_gateways_may_have_given_two_charges_one_id() -> None:
    """Each charge is judged with its own payment, whichever books are read first."""
    flow = ordered()
    other_id = unasked_order_id("pacific", "ch_77")
    flow.command(replace(
        COMMAND, gateway="pacific", order_id=other_id, command_id=unasked_command_id(other_id),
    ))  # fmt: skip
    flow.run(yes)
    for first, second in ((0, 1), (1, 0)):
        copy = GatewayCopy()
        copy.charges["somebody:else"] = [
            ChargeSeen("ch_77", "x", 1250, "GBP", NOW, False, books=each) for each in (0, 1)
        ]
        copy.movements["somebody:else"] = [
            MovementSeen("refund", f"refund_1_late-{order_id}-1",
                         idempotency_key(payment_id(NO_MERCHANT, order_id), f"late-{order_id}-1",
                                         gateway, 1),
                         "ch_77", 1250, "GBP", False, at)
            for order_id, gateway, at in ((ORDER_ID, "simulator", first),
                                          (other_id, "pacific", second))
        ]  # fmt: skip
        assert named(flow, copy) == []


@pytest.mark.parametrize("ours", [0, 1])
@pytest.mark.parametrize("amount_minor", [1250, 1300])
def test_a_sale_of_its_id_at_another_gateway_keeps_its_charge(ours: int, amount_minor: int) -> None:
    """Also while no refund says which is which, whichever books are read first, and where the books
    have another amount than the report had."""
    story = Story(replace(ORDER, amount_minor=1250))
    story.flow.answer(yes)
    (sale,) = story.flow.settlements()
    other_id = unasked_order_id("pacific", sale.gateway_reference)
    story.flow.command(replace(
        COMMAND, gateway="pacific", gateway_reference=sale.gateway_reference, order_id=other_id,
        command_id=unasked_command_id(other_id),
    ))  # fmt: skip
    story.flow.answer(DECLINED)
    key = story.flow.requests()[0].idempotency_key
    copy = GatewayCopy()
    theirs = "somebody:else", "typed", amount_minor, 1 - ours
    charges = [("shop:1", key, 1250, ours), theirs]
    for order, reference, minor, at in sorted(charges, key=lambda each: each[3]):
        copy.charges[order] = [
            ChargeSeen(sale.gateway_reference, reference, minor, "GBP", NOW, False, books=at)
        ]
    found = set(named(story.flow, copy))
    assert "waits_for_a_person" in found
    assert ("charge_amount_wrong" in found) == (amount_minor != 1250)
    assert not {"captured_without_charge", "charge_without_payment"} & found


def test_a_gateway_that_made_no_refund_is_found() -> None:
    """What we say went back has to be in the gateway's books."""
    flow = ordered()
    flow.answer(yes)
    assert "settlement_without_refund" in named(flow, books())


def test_answers_that_are_declines_in_passing_are_tried_again() -> None:
    """A gateway in trouble is asked again an hour later, by an operation of its own."""
    flow = ordered()
    flow.answer(GatewayAnswer(outcome="declined", code="processing_error"))
    flow.advance(HOUR_MS)
    flow.answer(yes)
    assert settled(flow)[-1] == ("unasked_refund", -1250)
    assert flow.settlements()[-1].operation_id == f"late-late-{ORDER_ID}-1-1"
