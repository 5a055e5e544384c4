"""Which steps of the lifecycle's tables the processors take, and that nothing moves without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from pipeline.domain import lifecycle
from pipeline.domain.decision import Decision
from pipeline.domain.lifecycle import (
    ATTEMPT_TRANSITIONS,
    AWAITING_ORDER,
    NEW,
    NONE,
    PAYMENT_TRANSITIONS,
    STARTED,
    SUCCEEDED,
    Step,
    has_succeeded,
)
from pipeline.domain.model import Payment
from pipeline.processors.driver import FlowDriver

Name = tuple[str, str]


class Watched(dict[Name, Step]):
    """A table that remembers which of its steps were looked up."""

    def __init__(self, table: Any) -> None:
        super().__init__(table)
        self.asked: set[Name] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self:
            self.asked.add(key)
        return super().get(key, default)

    def leads(self, source: str, to: str) -> bool:
        """Whether the steps asked for lead from one state to another, without a gap."""
        reached, more = {source}, True
        while more and to not in reached:
            more = False
            for at, trigger in self.asked:
                end = self[at, trigger].to
                if at in reached and end not in reached:
                    reached.add(end)
                    more = True
        return to in reached


class Steps:
    """The steps that decisions took, of payments and of attempts."""

    def __init__(self) -> None:
        self.payments: Final = Watched(PAYMENT_TRANSITIONS)
        self.attempts: Final = Watched(ATTEMPT_TRANSITIONS)
        self.taken: set[tuple[str, Name]] = set()

    def decided(self, before: Payment | None, decision: Decision) -> None:
        """Each state that this decision changed was changed by steps of the tables."""
        after = decision.payment
        if after is not None:
            was = NEW if before is None else before.status
            assert self.payments.leads(was, after.status), (
                f"no step led from {was} to {after.status}"
            )
            states = dict(_states(before))
            for name, state in _states(after):
                source = states.pop(name, NONE)
                # An order's first attempt is built in one go with its payment.
                ordered = was in (NEW, AWAITING_ORDER) and (source, state) == (NONE, STARTED)
                assert ordered or self.attempts.leads(source, state), (
                    f"no step of attempt {name} led from {source or 'new'} to {state}"
                )
            assert not states, f"attempts are gone: {sorted(states)}"
            self.taken |= {("payment", name) for name in self.payments.asked}
            self.taken |= {("attempt", name) for name in self.attempts.asked}
        self.forget()

    def forget(self) -> None:
        """Watch the next decision alone; what a cache answers would not be seen."""
        self.payments.asked.clear()
        self.attempts.asked.clear()
        lifecycle.payment_step.cache_clear()
        lifecycle.attempt_step.cache_clear()

    def is_missing(self, state: str, trigger: str) -> bool:
        """Whether a table has this step, and no decision took it."""
        name = state, trigger
        return (name in self.payments and ("payment", name) not in self.taken) or (
            name in self.attempts and ("attempt", name) not in self.taken
        )

    @property
    def missing(self) -> list[str]:
        """Steps of the tables that no decision took, by name."""
        every = {("payment", name) for name in PAYMENT_TRANSITIONS}
        every |= {("attempt", name) for name in ATTEMPT_TRANSITIONS}
        return [
            f"{what}: {source or 'new'} --{trigger}"
            for what, (source, trigger) in sorted(every - self.taken)
        ]


def _states(payment: Payment | None) -> Iterator[tuple[tuple[str, int], str]]:
    for each in () if payment is None else payment.attempts:
        state = SUCCEEDED if has_succeeded(each.state) else each.state
        yield (each.operation_id, each.attempt), state


@contextmanager
def watched_steps() -> Iterator[Steps]:
    """Both tables are watched until the end of the block."""
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, "PAYMENT_TRANSITIONS", steps.payments)
        patch.setattr(lifecycle, "ATTEMPT_TRANSITIONS", steps.attempts)
        steps.forget()
        yield steps
    steps.forget()


class WatchedDriver(FlowDriver):
    """A driver each of whose decisions is held to the watched tables."""

    steps: Steps

    def apply(self, source: Any, decision: Decision, value: bytes = b"") -> Decision:
        self.steps.decided(self.payment(source.merchant_id, source.order_id), decision)
        return super().apply(source, decision, value)
