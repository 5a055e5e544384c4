"""A decision that could not be published or booked is not made: it would keep every later one back.

What was made before that was looked at is taken further as far as it can be.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine

from pipeline.domain.decisions import ENTRY, entry_body
from pipeline.domain.posting import Posting
from pipeline.domain.transfers import made_available
from pipeline.errors import UserError
from pipeline.ledger.database import reading
from pipeline.ledger.decisions import all_decisions, decide
from pipeline.ledger.payouts import move_payouts, payout_history
from pipeline.ledger.queries import balances, standing
from pipeline.ledger.verification import verify_books
from producers.payout_records import companions_of
from tests.support import payouts
from tests.support.ledger import journal_at
from tests.support.ledger_rules import FULL, NOW_MS, book_all
from tests.support.ledger_suite import OnEachDatabase

PAIR = [Posting("bank:x", "GBP", 1_00), Posting("suspense:y", "GBP", -1_00)]
# A byte 0xE9 of a command line, which is no UTF-8.
LATIN = "caf\udce9"


def post(engine: Engine, body: str, **said: Any) -> None:
    with engine.begin() as connection:
        decide(
            connection,
            **{"kind": ENTRY, "body": body, "actor": "anna", "reason": "r", "now_ms": NOW_MS}
            | said,
        )


def adjustment(lines: list[Posting]) -> str:
    return entry_body("adjustment", "shop", "2010-12-30", lines)


def unchecked(account: str) -> str:
    """As it was decided when nobody looked at an account's owner."""
    return adjustment(PAIR).replace("bank:x", json.dumps(account)[1:-1])


def require_others_go_on(engine: Engine, made: int = 0) -> None:
    """Nothing of what was refused is there, and what is decided next is booked."""
    with reading(engine) as connection:
        assert len(all_decisions(connection)) == made
    post(engine, adjustment(PAIR))
    assert book_all(engine) == 1
    with reading(engine) as connection:
        assert verify_books(connection).damages == ()


class TrialsSuite(OnEachDatabase):
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            ({"reason": LATIN}, "the reason .* no UTF-8"),
            ({"actor": LATIN}, "the name .* no UTF-8"),
            ({"reason": "a\0"}, "the reason .* a NUL"),
            ({"reason": "r" * 10_001}, "say it shorter"),
            ({"actor": "a" * 256}, "say it shorter"),
            ({"body": "no JSON"}, "cannot be booked"),
            ({"now_ms": 2**63}, "cannot be published"),
        ],
    )
    def test_what_no_topic_and_no_book_takes_is_not_decided(
        self, engine: Engine, said: dict[str, Any], why: str
    ) -> None:
        """A sentence names it, nothing is made of it, and the next decision is booked."""
        journal_at(engine)
        with pytest.raises(UserError, match=why):
            post(engine, **{"body": adjustment(PAIR)} | said)
        require_others_go_on(engine)

    def test_what_a_balance_cannot_hold_beside_what_is_in_it_is_not_decided(
        self, engine: Engine
    ) -> None:
        """Twice 4.6 * 10^18 fit into 64 bits, signed, which end at 9.22 * 10^18; then no more."""
        journal_at(engine)
        lines = [Posting(*line) for line in FULL]
        for _ in range(2):
            post(engine, adjustment(lines))
        assert book_all(engine) == 2
        with pytest.raises(UserError, match="cannot be booked"):
            post(engine, adjustment(lines[:100]))
        require_others_go_on(engine, made=2)

    def test_a_decision_of_before_that_cannot_be_booked_is_named(self, engine: Engine) -> None:
        """An earlier version made it, and two that fill the balances; what comes after waits. The
        books are whole up to it."""
        journal_at(engine)
        lines = [Posting(*line) for line in FULL]
        for _ in range(3):
            post(engine, adjustment(lines), tried=False)
        said = r"decision 3 \(entry, by anna\) cannot be booked .*a decision that stands in the way"
        for _ in range(2):
            with pytest.raises(UserError, match=said):
                book_all(engine)
        with reading(engine) as connection:
            assert verify_books(connection).damages == ()

    def test_what_a_balance_cannot_hold_of_one_command_is_not_decided(self, engine: Engine) -> None:
        """Our account's credits have room for 15.00 more: two payouts of 10.00 are not called paid
        at once, though there is room for each; then one is."""
        payouts.announce(engine, payouts.row(), payouts.row("other"))
        for merchant in ("shop", "other"):
            payouts.receive(engine, 10_00, "2010-12-01T09:00", merchant=merchant)
        payouts.create(engine, "2010-12-01", "2010-12-01T18:00")
        with reading(engine) as connection:
            ids = sorted(payouts.payout_book(connection).payouts)
        now = {"now_ms": payouts.ms("2010-12-01T18:05")}
        with engine.begin() as connection:
            move_payouts(connection, ids, "approve", actor="bert", **now)
            payouts.submit_payouts(connection, "GBP", actor="bert", **now)
        most, line_minor = 2**63 - 1 - 15_00, 10**15 - 1
        for lines in (4_600, 4_600, most // line_minor - 9_200):
            post(engine, adjustment([Posting("bank:main-gbp", "GBP", -line_minor)] * lines
                                    + [Posting("bank:x", "GBP", line_minor)] * lines))  # fmt: skip
        rest = most % line_minor
        post(engine, adjustment([Posting("bank:main-gbp", "GBP", -rest),
                                 Posting("suspense:y", "GBP", rest)]))  # fmt: skip
        book_all(engine)
        with reading(engine) as connection:
            made = len(all_decisions(connection))
        with pytest.raises(UserError, match="cannot be booked"), engine.begin() as connection:
            move_payouts(connection, ids, "confirm", actor="bert", **now)
        with reading(engine) as connection:
            assert len(all_decisions(connection)) == made
        with engine.begin() as connection:
            move_payouts(connection, ids[:1], "confirm", actor="bert", **now)
        assert book_all(engine) == 1

    def test_hundreds_of_payouts_are_created_by_one_command(self, engine: Engine) -> None:
        """PostgreSQL checks the lines of one insertion before it takes the next: all of them are
        tried as one."""
        merchants = [f"shop-{n}" for n in range(501)]
        payouts.announce(engine, *map(payouts.row, merchants))
        payouts.post(
            engine, "2010-12-01T09:00",
            *(line for each in merchants for line in made_available(each, "GBP", 10_00)),
        )  # fmt: skip
        made = payouts.create(engine, "2010-12-01", "2010-12-01T18:00")
        assert len(made.events) == len(merchants)
        with reading(engine) as connection:
            assert verify_books(connection).damages == ()

    def test_an_entry_by_hand_is_of_no_day_that_is_yet_to_come(self, engine: Engine) -> None:
        """It is 14 November, by UTC: the next day's may be written down already."""
        journal_at(engine)
        later = entry_body("adjustment", "shop", "2023-11-16", PAIR)
        with pytest.raises(UserError, match="the entry is of 2023-11-16, which is yet to come"):
            post(engine, later)
        require_others_go_on(engine)
        post(engine, entry_body("adjustment", "shop", "2023-11-15", PAIR))
        assert book_all(engine) == 1

    def test_a_refused_decision_takes_nothing_of_its_transaction_along(
        self, engine: Engine
    ) -> None:
        """Whoever goes on in the same transaction, as with the next line of a statement, commits
        what was made beside it and nothing of it."""
        journal_at(engine)
        with engine.begin() as connection:
            said = {"actor": "anna", "reason": "r", "now_ms": NOW_MS}
            decide(connection, kind=ENTRY, body=adjustment(PAIR), **said)
            with pytest.raises(UserError, match="cannot be booked"):
                decide(connection, kind=ENTRY, body="no JSON", **said)
        assert book_all(engine) == 1
        require_others_go_on(engine, made=1)

    def test_an_account_that_no_database_holds_is_booked_with_its_byte_written_out(
        self, engine: Engine
    ) -> None:
        """It was decided, and is in the topic: every copy of the books calls it the same."""
        journal_at(engine)
        post(engine, unchecked(f"bank:{LATIN}"))
        assert book_all(engine) == 1
        with reading(engine) as connection:
            assert {b.account for b in balances(connection)} == {r"bank:caf\udce9", "suspense:y"}
        require_others_go_on(engine, made=1)

    def test_an_account_under_a_name_that_is_none_today_may_be_emptied(
        self, engine: Engine
    ) -> None:
        """1.00 stands in it: so much may be taken out, and nothing more is put in."""
        journal_at(engine)
        post(engine, unchecked(f"bank:{LATIN}"))
        assert book_all(engine) == 1
        wrong = r"bank:caf\udce9"
        with reading(engine) as connection:
            stands = standing(connection, [wrong, "bank:x", LATIN])
        assert stands == {(wrong, "GBP"): 1_00}
        for amount_minor in (1, -2_00, -2_01):
            lines = [Posting(wrong, "GBP", amount_minor), Posting("bank:x", "GBP", -amount_minor)]
            with pytest.raises(UserError, match="no account"):
                entry_body("adjustment", "shop", "2010-12-30", lines, stands)
        lines = [Posting(wrong, "GBP", -1_00), Posting("bank:x", "GBP", 1_00)]
        post(engine, entry_body("adjustment", "shop", "2010-12-30", lines, stands))
        assert book_all(engine) == 1
        with reading(engine) as connection:
            assert standing(connection, [wrong]) == {(wrong, "GBP"): 0}
            assert verify_books(connection).damages == ()

    def test_a_currencys_own_account_that_holds_another_is_told_until_it_is_taken_out(
        self, engine: Engine
    ) -> None:
        """1.00 in pounds stands in the position of euros; the right one takes it over."""
        journal_at(engine)
        wrong, right = "currency_position:EUR", "currency_position:GBP"
        post(engine, unchecked(wrong))
        assert book_all(engine) == 1
        with reading(engine) as connection:
            (damage,) = verify_books(connection).damages
            stands = standing(connection, [wrong])
        assert (damage.name, damage.place) == (
            "account_of_another_currency", f"balances {wrong} GBP",
        )  # fmt: skip
        lines = [Posting(wrong, "GBP", -1_00), Posting(right, "GBP", 1_00)]
        with pytest.raises(UserError, match="kept in its own currency"):
            entry_body("adjustment", "", "2010-12-30", lines)
        post(engine, entry_body("adjustment", "", "2010-12-30", lines, stands))
        assert book_all(engine) == 1
        with reading(engine) as connection:
            assert verify_books(connection).damages == ()

    def test_a_banks_reference_that_is_no_text_is_refused(self, engine: Engine) -> None:
        """Or the payout could not be told of, nor anything that is decided after it."""
        payout = self._submitted(engine)
        with (
            pytest.raises(UserError, match=r"the reference .* no UTF-8"),
            engine.begin() as connection,
        ):
            move_payouts(connection, [payout.payout_id], "confirm", actor="anna", now_ms=NOW_MS,
                         reference=LATIN)  # fmt: skip
        assert payouts.move(engine, payout, "confirm", "2010-12-03T10:00").state == "paid"

    def test_what_would_go_with_a_payouts_decision_has_to_be_publishable(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if nobody looked at references: the record that goes to `payouts` is tried itself."""
        payout = self._submitted(engine)
        with monkeypatch.context() as unlooked:
            unlooked.setattr("pipeline.domain.payouts.require_text", lambda *_: None)
            unlooked.setattr("pipeline.domain.payouts.storable", lambda text: text)
            with (
                pytest.raises(UserError, match="cannot be published"),
                engine.begin() as connection,
            ):
                move_payouts(connection, [payout.payout_id], "confirm", actor="anna",
                             now_ms=NOW_MS, reference=LATIN)  # fmt: skip
        assert payouts.move(engine, payout, "confirm", "2010-12-03T10:00").state == "paid"

    def test_a_payout_that_was_paid_under_such_a_reference_can_be_told_of(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Made when nobody looked: its record writes the byte out, and the decision stays."""
        payout = self._submitted(engine)
        monkeypatch.setattr("pipeline.domain.payouts.require_text", lambda *_: None)
        with engine.begin() as connection:
            (event,) = move_payouts(connection, [payout.payout_id], "confirm", actor="anna",
                                    now_ms=NOW_MS, reference=LATIN)  # fmt: skip
        told = {role: noun for role, _, noun in companions_of(engine, [event])}
        assert told["payouts"].reference == r"caf\udce9"
        assert book_all(engine) == 1
        with engine.begin() as connection:
            paid, events = payout_history(connection, payout.payout_id)
        assert paid.state == "paid"
        assert json.loads(events[-1].body)["reference"] == LATIN

    def _submitted(self, engine: Engine) -> Any:
        journal_at(engine)
        payouts.announce(engine)
        payouts.post(engine, "2010-12-01T10:00", *made_available("shop", "GBP", 10_00))
        payouts.create(engine, "2010-12-01", "2010-12-02T10:00")
        (payout,) = payouts.payouts(engine).values()
        payouts.move(engine, payout, "approve", "2010-12-02T11:00")
        payouts.submit(engine, "2010-12-02T12:00")
        return payouts.payouts(engine)["2010-12-01"]
