"""Defences of domain and processors that the property tests alone have to notice, one by one.

The scripted unit tests notice them as well. Here it is asked whether payments that no one has
written down come to where the defence is needed, and whether the judgement says so.
"""

from __future__ import annotations

from tests.simulation.mutations import PROCESSORS, Mutation

DOMAIN = "pipeline/domain"
# The quickest first.
PROPERTIES = (
    "tests/property/test_processors_properties.py::test_long_walks_keep_the_money_safe",
    "tests/property/test_processors_lifecycle_properties.py::test_long_lives_keep_the_money_true",
    "tests/property/test_processors_lifecycle_properties.py"
    "::test_lives_of_each_story_keep_the_money_true",
    "tests/property/test_evidence_order.py",
    "tests/property/test_processors_transitions_properties.py"
    "::test_every_transition_is_reached_and_no_other",
    "tests/property/test_processors_properties.py::TestMoney",
    "tests/property/test_processors_lifecycle_properties.py::TestLife",
    "tests/property/test_processors_transitions_properties.py::TestJourney",
)


def _property(name: str, file: str, text: str, instead: str) -> Mutation:
    return Mutation(name, file, text, instead, PROPERTIES)


PROPERTY_MUTATIONS: tuple[Mutation, ...] = (
    # Sending again, and elsewhere ---------------------------------------------------------------
    _property(
        "proof waits for the gateway's grace time",
        f"{PROCESSORS}/settlement.py",
        "asked_at_ms >= attempt.sendable_until_ms + profile.grace_ms\n        and",
        "asked_at_ms >= attempt.sendable_until_ms\n        and",
    ),
    _property(
        "proof waits for the end of the send window",
        f"{PROCESSORS}/settlement.py",
        "asked_at_ms >= attempt.sendable_until_ms + profile.grace_ms\n        and",
        "asked_at_ms >= attempt.sendable_until_ms - attempt.send_within_ms\n        and",
    ),
    _property(
        "a forgotten key proves nothing",
        f"{PROCESSORS}/settlement.py",
        "        and now_ms < attempt.started_at_ms + profile.key_retention_ms\n    )",
        "    )",
    ),
    _property(
        'a late "not found" is of when it was asked',
        f"{PROCESSORS}/settlement.py",
        "        return min(result.not_found_asked_at_ms, attempt.updated_at_ms)\n",
        "        return attempt.updated_at_ms\n",
    ),
    _property(
        "nothing is sent again before the gateway's grace time",
        f"{PROCESSORS}/settlement.py",
        "        and asked_at_ms >= lost_at_ms + profile.grace_ms\n",
        "",
    ),
    _property(
        "what is unknown is sent again so often, and no more",
        f"{PROCESSORS}/settlement.py",
        "        and attempt.resends < policy.resend_max\n",
        "",
    ),
    _property(
        "what is unknown is not sent twice to a gateway without keys",
        f"{PROCESSORS}/settlement.py",
        "        profile.idempotent\n        and is_uncertain(payment, attempt)\n",
        "        is_uncertain(payment, attempt)\n",
    ),
    _property(
        "what was not sent is tried so often, and no more",
        f"{PROCESSORS}/settlement.py",
        "    if attempt.retries >= policy.retry_max:\n",
        "    if False:\n",
    ),
    _property(
        "load counts as no retry",
        f"{PROCESSORS}/settlement.py",
        "counted = attempt.code not in OVERLOAD_CODES",
        "counted = True",
    ),
    _property(
        "a wait counts only for the try that it followed",
        f"{PROCESSORS}/settlement.py",
        "if attempt is None or due.try_number != attempt.tries:",
        "if attempt is None:",
    ),
    _property(
        "a charge declined by a gateway without keys goes nowhere else",
        f"{PROCESSORS}/failures.py",
        "        not profile.idempotent\n        or sendable_until_ms",
        "        sendable_until_ms",
    ),
    _property(
        "a charge that is cancelled goes nowhere else",
        f"{PROCESSORS}/failures.py",
        "        or payment.cancel_requested_by is not None\n        or now_ms >= charge",
        "        or now_ms >= charge",
    ),
    _property(
        "a charge whose time is over goes nowhere else",
        f"{PROCESSORS}/failures.py",
        "        or now_ms >= charge_deadline_ms(payment, attempt, policy)\n",
        "",
    ),
    _property(
        "only a gateway's own trouble lets another have the charge",
        f"{PROCESSORS}/failures.py",
        "        or action_of(attempt.code) is not Action.OTHER_GATEWAY\n",
        "",
    ),
    _property(
        "another gateway has no more time than the first",
        f"{PROCESSORS}/failures.py",
        "request = replace(request_of(changed, started), not_after_ms=not_after_ms)",
        "request = request_of(changed, started)",
    ),
    _property(
        "another gateway has no more time than the first, by permit",
        f"{PROCESSORS}/permit_answers.py",
        "    request = replace(request_of(changed, started), not_after_ms=not_after_ms)\n",
        "    request = request_of(changed, started)\n",
    ),
    _property(
        "a permit that comes after pay_before begins nothing",
        f"{PROCESSORS}/permit_answers.py",
        "    if _is_too_late(payment, now_ms):\n"
        "        return _expired(payment, attempt, now_ms)\n    before",
        "    before",
    ),
    # Words that contradict one another, and late ones --------------------------------------------
    _property(
        "a success of before is taken, whichever question it answers",
        f"{PROCESSORS}/settlement.py",
        "    if result.outcome == SUCCEEDED:\n        return late_evidence",
        "    if False:\n        return late_evidence",
    ),
    _property(
        "a contradiction leaves a letter",
        f"{PROCESSORS}/settlement.py",
        "        return contradictory(payment, result, now_ms)\n    if (\n",
        "        return _STALE_RESULT\n    if (\n",
    ),
    _property(
        "a decline of what was made leaves a letter, by a notice too",
        f"{PROCESSORS}/notifications.py",
        "        if has_succeeded(attempt.state) or attempt.state == CONTRADICTED:\n"
        "            return contradictory(payment, said, now_ms)\n",
        "        if has_succeeded(attempt.state) or attempt.state == CONTRADICTED:\n"
        "            return _STALE\n",
    ),
    _property(
        "a customer is sent nowhere once money is said to have moved",
        f"{PROCESSORS}/refused_evidence.py",
        'changes = {} if moves is None else {"next_action_url": None, "expires_at_ms": None}',
        "changes = {}",
    ),
    # Cancels, reviews, people -------------------------------------------------------------------
    _property(
        "a charge that is cancelled is not sent again",
        f"{PROCESSORS}/settlement.py",
        "        payment.cancel_requested_by is not None or payment.status not in UNDECIDED\n",
        "        payment.status not in UNDECIDED\n",
    ),
    _property(
        "what shows as taken after a cancel ends as cancelled",
        f"{PROCESSORS}/successes.py",
        "            moves = CANCEL_CONFIRMED\n        else:",
        "            moves = GIVEN_UP\n        else:",
    ),
    _property(
        "what was not taken after a cancel ends as cancelled",
        f"{PROCESSORS}/failures.py",
        "                moves = CANCEL_CONFIRMED\n            else",
        "                moves = GIVEN_UP\n            else",
    ),
    _property(
        "what shows as taken after a cancel goes back",
        f"{PROCESSORS}/successes.py",
        "            or payment.cancel_requested_by is not None\n            or (payment.pay",
        "            or (payment.pay",
    ),
    _property(
        "what shows as taken after pay_before goes back",
        f"{PROCESSORS}/successes.py",
        "            or (payment.pay_before_ms is not None and now_ms >= payment.pay_before_ms)\n",
        "",
    ),
    _property(
        "a review that is approved too late charges nobody",
        f"{PROCESSORS}/commands.py",
        "    if now_ms >= ends_ms:\n        expired",
        "    if False:\n        expired",
    ),
    _property(
        "nobody calls a charge not made while it may be sent",
        f"{PROCESSORS}/commands.py",
        "        if not _is_settled(attempt, now_ms, policy):\n"
        "            return _rejected(payment, command, rules.SEND_WINDOW_MUST_BE_OVER, now_ms)\n"
        "        made",
        "        made",
    ),
    _property(
        "the same command again has no effect",
        f"{PROCESSORS}/commands.py",
        "if payment is not None and is_remembered(payment, command):",
        "if False:",
    ),
    _property(
        "commands wait in their order",
        f"{PROCESSORS}/commands.py",
        "waiting = replace(payment, commands=(*payment.commands, command))",
        "waiting = replace(payment, commands=(command, *payment.commands))",
    ),
    _property(
        "a command waits while an operation is under way",
        f"{PROCESSORS}/commands.py",
        "    return is_held(payment) or rules.waits_for_another(payment, command)\n",
        "    return is_held(payment)\n",
    ),
    # Captures, refunds, disputes ----------------------------------------------------------------
    _property(
        "no more is captured than is held",
        f"{DOMAIN}/commands.py",
        "    if command.amount_minor is not None and command.amount_minor > room_minor:\n"
        "        return CAPTURE",
        "    if False:\n        return CAPTURE",
    ),
    _property(
        "a refund that came back is told as money",
        f"{PROCESSORS}/late_evidence.py",
        "refunded = payment.refunded_minor - (attempt.amount_minor if had_moved else 0)",
        "refunded = payment.refunded_minor",
    ),
    _property(
        "a refund that came back stays so",
        f"{PROCESSORS}/late_evidence.py",
        "            if attempt.code in CAME_BACK:\n                return _STALE_RESULT\n"
        "            return succeeded(",
        "            return succeeded(",
    ),
    _property(
        "a late success is taken, and goes back",
        f"{PROCESSORS}/late_evidence.py",
        "        elif attempt.state in (DECLINED, ATTEMPT_FAILED):\n            if attempt.code",
        "        elif attempt.state in (DECLINED, ATTEMPT_FAILED):\n"
        "            return _STALE_RESULT\n            if attempt.code",
    ),
    _property(
        "a late capture goes back as far as it took too much",
        f"{PROCESSORS}/successes.py",
        "    if back_minor:\n        made = followed",
        "    if False:\n        made = followed",
    ),
    _property(
        "what is owed back has a successor",
        f"{PROCESSORS}/reversals.py",
        "    return followed(made, _again(payment, ended, now_ms, policy))\n\n\ndef without",
        "    return made\n\n\ndef without",
    ),
    _property(
        "what is owed back is not given up on silence",
        f"{PROCESSORS}/settlement.py",
        "            and not is_reversal(attempt)\n",
        "",
    ),
    _property(
        "what came too late waits for the end of its dispute",
        f"{DOMAIN}/reversals.py",
        "return reversal.kind == REFUND and bars_refunds(payment, parent_of(payment, reversal))",
        "return False",
    ),
    _property(
        "what a bank took for good is not given back again",
        f"{DOMAIN}/reversals.py",
        "        - payment.charged_back_minor\n        - _lost_minor(with_ground(payment)),\n",
        "",
    ),
    _property(
        "a refund does not run during a dispute unasked",
        f"{DOMAIN}/commands.py",
        "    if bars_refunds(payment, charge) and command.override != OVERRIDE_DISPUTE:\n",
        "    if False:\n",
    ),
    _property(
        "the newest event of a dispute holds",
        f"{DOMAIN}/disputes.py",
        "    if place > held:\n",
        "    if True:\n",
    ),
    # Refunds that come back, and people who say so ------------------------------------------------
    _property(
        "only a refund that was made is said to have come back",
        f"{DOMAIN}/commands.py",
        "            and has_succeeded(each.state)\n            and each.code != RECORDED\n",
        "            and each.code != RECORDED\n",
    ),
    _property(
        "what was paid otherwise is not said to have come back",
        f"{DOMAIN}/commands.py",
        "            and has_succeeded(each.state)\n            and each.code != RECORDED\n",
        "            and has_succeeded(each.state)\n",
    ),
    _property(
        "a person's word that a refund came back is audited",
        f"{PROCESSORS}/commands.py",
        "    return audited(made, payment, command, now_ms, attempt=refund)\n",
        "    return made\n",
    ),
    _property(
        "a refund that came back is settled",
        f"{PROCESSORS}/late_evidence.py",
        "        made = decision(changed, settlement, event)\n    return with_owed_again",
        "    return with_owed_again",
    ),
    _property(
        "what came back is owed again",
        f"{PROCESSORS}/late_evidence.py",
        "    return with_owed_again(payment, made, now_ms, policy)\n",
        "    return made\n",
    ),
    _property(
        "of what goes back in parts each part that comes back is owed again",
        f"{DOMAIN}/reversals.py",
        "    row = _row(payment, reversal)\n    done_minor",
        "    row = [reversal]\n    done_minor",
    ),
    _property(
        "what came back is not ordered again by itself when a part has gone back",
        f"{PROCESSORS}/reversals.py",
        "    by_itself = has_room(payment) and not came_back_since(payment, done)\n",
        "    by_itself = has_room(payment)\n",
    ),
    _property(
        "what came back is not ordered again by itself at a dispute's word",
        f"{PROCESSORS}/reversals.py",
        "RECORDED\n            and not came_back_since(payment, each)\n",
        "RECORDED\n",
    ),
    _property(
        "what came back is not ordered again by itself when a part was declined",
        f"{PROCESSORS}/reversals.py",
        "        and has_room(payment)\n        and not came_back_since(payment, ended)\n",
        "        and has_room(payment)\n",
    ),
    # Unknowns and timers ------------------------------------------------------------------------
    _property(
        "what its gateway has is asked about for long",
        f"{PROCESSORS}/settlement.py",
        "asked_for_ms = policy.pending_max_ms if attempt.code in PENDING_CODES else 0",
        "asked_for_ms = 0",
    ),
    _property(
        "what its gateway was heard to have is asked about for as long",
        f"{DOMAIN}/payment.py",
        "frozenset({PENDING_CODE, CUSTOMER_ACTION_REQUIRED, HEARD_PENDING})",
        "frozenset({PENDING_CODE, CUSTOMER_ACTION_REQUIRED})",
    ),
    _property(
        "what its gateway has is not called unsent",
        f"{PROCESSORS}/settlement.py",
        "    if asked_at_ms is not None and not known_pending:\n",
        "    if asked_at_ms is not None:\n",
    ),
    _property(
        "unknown is inquired about before it is sent again",
        f"{PROCESSORS}/settlement.py",
        "    if outcome == NOT_SENT:\n",
        '    if outcome in (NOT_SENT, "unknown"):\n',
    ),
    _property(
        "what may have been sent is not given up on silence",
        f"{PROCESSORS}/settlement.py",
        "            not is_uncertain(payment, attempt)\n",
        "            True\n",
    ),
    _property(
        "what was lost once and sent again is not given up on silence",
        f"{PROCESSORS}/settlement.py",
        "            and not attempt.resends\n",
        "",
    ),
    _property(
        "silence is believed after so many questions",
        f"{PROCESSORS}/settlement.py",
        "            and attempt.inquiries >= policy.proof_inquiry_max\n",
        "",
    ),
    _property(
        "an authorization's expiry waits for what is under way",
        f"{PROCESSORS}/timers.py",
        "    if in_flight(payment) or reserved_minor(payment, CAPTURE) or "
        "open_void(payment) is not None:",
        "    if False:",
    ),
    _property(
        "a customer who has acted is not timed out",
        f"{PROCESSORS}/pendings.py",
        '        changes = {"next_action_url": None, "expires_at_ms": None}\n'
        "        if payment.status",
        "        if payment.status",
    ),
)
