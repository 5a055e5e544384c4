"""Payouts that the bank was asked for and has not debited: what every ledger makes of them."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from pipeline.domain.breaks import BY_LATER_EVIDENCE
from pipeline.domain.clearing import BankLine
from pipeline.domain.payouts import Payout
from pipeline.domain.reconciliation_decisions import BankStatement
from pipeline.domain.reconciliation_rules import read_rules
from pipeline.ledger.reconciliation.following import decide_statement
from tests.support import payouts
from tests.support.ledger_suite import OnEachDatabase
from tests.support.reconciliation import NOW_MS, Books, bank_moves, submitted_payout


class PayoutsUnconfirmedSuite(OnEachDatabase):
    """Subclassed once for each database, with a fixture ``url`` of an empty one."""

    @pytest.fixture
    def books(self, engine: Engine) -> Books:
        return Books(engine)

    @pytest.fixture
    def made(self, books: Books) -> Payout:
        """Of Wednesday, 1 December 2010: four business days after it are over on the 8th."""
        return submitted_payout(books)

    @pytest.mark.parametrize("said", [(), ("confirm",), ("lose",), ("lose", "confirm")])
    def test_one_that_the_bank_never_debits_is_a_break(
        self, books: Books, made: Payout, said: tuple[str, ...]
    ) -> None:
        """Whatever a person says of it; the bank's line ends the break, and not before."""
        for act in said:
            payouts.move(books.engine, made, act, "2010-12-02T08:00")
        books.run("2010-12-07")
        assert books.kinds() == []
        for _ in range(2):
            books.run("2010-12-08")
            assert books.kinds() == [("payout_unconfirmed", made.payout_id, 10_00)]
        (found,) = books.breaks()
        assert (found.gateway, found.merchant_id, found.since) == ("main-gbp", "shop", "2010-12-01")
        assert bank_moves(books, made, "s-1", -10_00)[0][1]
        books.run("2010-12-08")
        assert books.breaks() == []
        (ended,) = books.breaks(state=None)
        assert ended.resolution == BY_LATER_EVIDENCE

    def test_one_that_came_back_ends_it(self, books: Books, made: Payout) -> None:
        """The bank has refused it and debited nothing, as a person knows."""
        books.run("2010-12-08")
        payouts.move(books.engine, made, "return", "2010-12-08T08:00")
        books.run("2010-12-08")
        assert books.breaks() == []

    def test_one_that_was_not_submitted_is_not_awaited(self, books: Books) -> None:
        payouts.announce(books.engine)
        payouts.receive(books.engine, 10_00, "2010-12-01T10:00")
        payouts.create(books.engine, "2010-12-01", "2010-12-01T18:00")
        (made,) = payouts.payouts(books.engine).values()
        payouts.move(books.engine, made, "approve", "2010-12-01T18:05")
        books.run("2011-12-01")
        assert books.breaks() == []

    def test_lines_that_come_to_its_amount_are_enough(self, books: Books, made: Payout) -> None:
        """Debited in two lines, each of which is a break of its own; half of it is not enough."""
        payouts.move(books.engine, made, "confirm", "2010-12-02T08:00")
        half = BankLine(line_id="1", amount_minor=-5_00, currency="GBP", value_date="2010-12-02",
                        batch_id=made.payout_id)  # fmt: skip
        for number, kinds in enumerate((["bank_line_unknown", "payout_unconfirmed"],
                                        ["bank_line_unknown", "bank_line_unknown"])):  # fmt: skip
            statement = BankStatement("main-gbp", f"s-{number}", (half,))
            decide_statement(books.engine, statement, "anna", NOW_MS)
            books.run("2010-12-08")
            assert [kind for kind, _, _ in books.kinds()] == kinds

    def test_the_rules_say_when_it_is_due(self, books: Books, made: Payout) -> None:
        """One business day, and the 2nd is none: told on Saturday, after Friday."""
        rules = read_rules({"payouts": {"bank_days": 1, "holidays": ["2010-12-02"]}})
        books.run("2010-12-03", rules)
        assert books.breaks() == []
        books.run("2010-12-04", rules)
        assert [b.subject for b in books.breaks()] == [made.payout_id]
        # A look at an earlier day, or by rules that give more time, says nothing of it.
        books.run("2010-12-03", rules)
        books.run("2010-12-04")
        assert len(books.breaks()) == 1
