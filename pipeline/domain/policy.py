"""What an installation may decide differently: limits, patience and gateways.

All times are in milliseconds, all counts are inclusive maxima. The defaults state their reasons;
they assume the catalogue's tiers, whose delays are the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from pipeline.domain.attempt_caps import BAR_MS, NETWORK_CAPS
from pipeline.domain.breaker import BreakerRule
from pipeline.domain.model import AttemptCap
from pipeline.domain.risk import RiskRules
from pipeline.domain.routes import HEALTHY, NO_ROUTES, AmountRange, Fee, Health, Routes
from topics.catalogue import TopicSettings

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


class GatewayProfile(Struct, frozen=True, kw_only=True):
    """One gateway: whom it serves, and what may be believed of its answers.

    ``currencies``, ``merchants``: None serves all. A gateway that names the merchant goes before
    those that serve all; then the lowest ``priority`` number goes first.
    """

    name: str
    # Whether its webhooks carry its own ids and nothing of ours: whose they are is then published.
    notices_by_own_id: bool = False
    currencies: frozenset[str] | None = None
    merchants: frozenset[str] | None = None
    priority: int = 100
    # How long after a charge was sent "not found" may still be the gateway's own lag: longer than
    # an HTTP call may take (30 s is what gateways advise as a client's time-out).
    grace_ms: int = 30_000
    # How long the gateway remembers an idempotency key; 24 h is the least that is customary.
    key_retention_ms: int = DAY_MS
    # What else it takes; None and no entry take all. An amount's limits go by currency.
    methods: frozenset[str] | None = None
    countries: frozenset[str] | None = None
    amounts: Mapping[str, AmountRange] = field(default_factory=dict)
    # Where instrument tokens live: one that begins so can be charged only here, and nothing else.
    token_prefixes: tuple[str, ...] = ()
    # Its share where payments are split, and its fees by currency.
    weight: int | None = None
    fees: Mapping[str, Fee] = field(default_factory=dict)
    # Protection, of all workers together: calls open at a time, calls begun a second, and how
    # many may come at once after a quiet while (a second's worth where it is not given).
    concurrency_max: int | None = None
    rate_per_s: float | None = None
    burst: int | None = None
    breaker: BreakerRule = BreakerRule()
    # How long a hold lasts before it is given back by us: what card networks grant at least.
    authorization_ms: int = 7 * DAY_MS
    # False: the gateway takes what arrives twice as two. Nothing that may have been sent there is
    # ever sent again by itself: "not found" leads to another gateway, or to a person.
    idempotent: bool = True


_TIERS = TopicSettings()


class Policy(Struct, frozen=True, kw_only=True):
    """The rules of one installation, handed to the processors with every input."""

    gateways: tuple[GatewayProfile, ...] = (GatewayProfile(name="simulator"),)
    # What each tier of waits takes; the stage sets what its catalogue says.
    retry_delays_ms: tuple[int, ...] = _TIERS.retry_delays_ms
    inquiry_delays_ms: tuple[int, ...] = _TIERS.inquiry_delays_ms
    timer_delays_ms: tuple[int, ...] = _TIERS.timer_delays_ms
    # Five waits of 5, 10, 20, 40 and 80 s are two and a half minutes (four at most, with the jitter
    # of tiers): a gateway's restart or a breaker's probe is ridden out, and a shopper is not kept
    # waiting longer.
    retry_max: int = 5
    # Held back by overload this often, 75 s in all, a charge goes to another gateway if one would
    # take it, once the first says that it does not know it; where there is none it goes on waiting.
    overload_max: int = 4
    # 12 questions 5 s apart, 16 of 15 s and 55 of a minute are an hour: longer than most outages;
    # then a person must look.
    inquiry_max: int = 83
    # What a gateway has and is not done with may take days (refunds, bank transfers): once the
    # inquiries are used up it is asked every hour, since its notice may never come; ten business
    # days are the longest that is customary, then a person must look.
    pending_check_ms: int = HOUR_MS
    pending_max_ms: int = 14 * DAY_MS
    # Before a payment fails because its gateway could not be reached, the gateway is asked this
    # often whether it knows the charge all the same: three questions outlast a single bad moment.
    proof_inquiry_max: int = 3
    # A charge the gateway does not know is sent again this often. Once covers a lost call; if the
    # second is lost as well, a third proves the path itself to be broken.
    resend_max: int = 3
    # A request not sent within a minute of its append goes back to the table, which decides anew.
    # Longer would delay giving up, shorter would expire requests in an ordinary backlog.
    send_within_ms: int = MINUTE_MS
    # By how much a worker's clock may differ from the brokers'.
    clock_skew_ms: int = 5_000
    # Half of the shortest customary key retention: no retry meets a key that was forgotten, and no
    # shopper is charged the day after.
    stale_after_ms: int = 12 * HOUR_MS
    # A bank's challenge expires within minutes; an hour leaves room for a shopper interrupted.
    customer_action_ms: int = HOUR_MS
    # Whoever ordered agreed to be charged soon: a hold taken with the order would be over by then
    # (authorization_ms), so a review that takes longer charges nobody.
    review_ms: int = 7 * DAY_MS
    # Commands may overtake their order by as much as one system's outage, not by more than a day.
    awaiting_order_ms: int = DAY_MS
    # For how long a command's record may come again from its topic: the retention, which the stage
    # sets.
    command_memory_ms: int = _TIERS.retention_ms
    # What is assessed before anybody is asked for money; None assesses nothing and costs nothing.
    risk: RiskRules | None = None
    # An order whose counts do not come for so long is looked at by a person: longer than a worker's
    # restart or a rebalance, shorter than a shopper keeps a promise.
    risk_answer_ms: int = 15 * MINUTE_MS
    # The largest amount that fits a card message (ISO 8583 field 4 has 12 digits).
    amount_minor_max: int = 999_999_999_999
    # 24 months: how long refunds and disputes can arrive, hence how long the table remembers.
    submitted_age_ms_max: int = 730 * DAY_MS
    # Clocks of upstream systems may be wrong by a time zone, not by more than a day.
    submitted_ahead_ms_max: int = DAY_MS
    # How often a declined card may be tried, and how long one is left alone that must not be.
    attempt_caps: tuple[AttemptCap, ...] = NETWORK_CAPS
    card_bar_ms: int = BAR_MS
    # Whether declines are counted across payments, by the card's fingerprint: then each attempt
    # asks the risk stage for a permit. Otherwise a payment is held to the caps by itself.
    count_cards: bool = False
    # How gateways are chosen, and how they do at the moment of the decision. What was chosen, and
    # why, is kept in the payment: a replay need not see the same health.
    routes: Routes = NO_ROUTES
    health: Health = HEALTHY


DEFAULT_POLICY = Policy()
