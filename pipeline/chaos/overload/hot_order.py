"""Thousands of commands on one payment, while others flow in the same lane and in others."""

from __future__ import annotations

import time
from collections import Counter

from pipeline.chaos.overload.outcomes import percentile
from pipeline.chaos.overload.scenario import Options, Outcome, Say
from pipeline.chaos.overload.stand import Stand, committed, orders
from pipeline.domain.model import PaymentCommand
from pipeline.domain.records import to_record
from producers.load_generator import run_load
from schemas.codec import default_codec

NAME = "hot-order"
COMMAND = "hot-"
BEFORE_S = 20.0
# The others' p99 while it is hot, against before: in other lanes, and in its own.
SLOWER_TIMES, SLOWER_MS, OWN_LANE_MS_MAX = 3.0, 500, 30_000
# What a payment may weigh: far from what a record may, whatever is asked of it.
RECORD_KIB_MAX = 256


def run(options: Options, say: Say) -> Outcome:
    count, rate_per_s = options.hot_commands, options.rate_per_s
    outcome = Outcome(
        NAME,
        f"{count:,} refunds of a penny asked of one payment at once, beside {rate_per_s:,.0f} "
        "orders a second",
    )
    hot, *others = orders(1 + int(rate_per_s * 3 * BEFORE_S))
    with Stand(options.place / NAME, say, options.partitions) as stand:
        stand.wait_until_joined()
        servers = stand.settings.bootstrap_servers
        stand.publish([hot], None)
        stand.keep_until(lambda: len(stand.outcomes) > 0, "the hot order")
        lane = stand.outcomes.partition[0]
        begun_ms = _now_ms()
        load = stand.publish(others, rate_per_s)
        stand.keep_for(BEFORE_S)
        hot_ms = _now_ms()
        run_load(servers, refunds(hot[0], count), topic=stand.catalogue.name("payment-commands"))
        unread = stand.lag("payments", "payment-commands")
        stand.keep_until(lambda: unread() == 0, "commands", progress=unread)
        cooled_ms = _now_ms()
        stand.keep_until(lambda: not load.is_alive(), "the others")
        stand.settle(1 + len(others), "the others")
        stand.claim_whole(outcome)
        outcome.figure("commands read in", f"{(cooled_ms - hot_ms) / 1000:,.1f} s")
        _claim_answers(outcome, stand, hot[0], count)
        _claim_others(outcome, stand, lane, begun_ms, hot_ms, cooled_ms)
    return outcome


def _claim_answers(outcome: Outcome, stand: Stand, key: bytes, count: int) -> None:
    servers = stand.settings.bootstrap_servers
    decode = default_codec().decoder("payment-event")
    rejected: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    taken: set[str] = set()
    for message in committed(servers, stand.catalogue["payment-events"]):
        if message.key() != key:
            continue
        fields = decode(message.value())
        command = fields["operation_id"]
        if command is None or not command.startswith(COMMAND):
            continue
        if fields["type"] == "command_rejected":
            rejected[command] += 1
            reasons[fields["reason"] or ""] += 1
        else:
            taken.add(command)
    told = ", ".join(f"{times:,} {why}" for why, times in reasons.most_common())
    outcome.claim(
        "each command is taken or refused by name, once",
        f"{len(taken):,} taken, {told or 'none refused'}",
        held=len(taken | rejected.keys()) == count == len(taken) + rejected.total(),
    )
    sizes = [
        len(message.value() or b"")
        for message in committed(servers, stand.catalogue["payments"])
        if message.key() == key
    ]
    outcome.figure("snapshots of it", f"{len(sizes):,}")
    outcome.claim(
        f"it weighs at most {RECORD_KIB_MAX} KiB",
        f"{max(sizes, default=0) / 1024:,.1f} KiB",
        held=0 < max(sizes, default=0) <= RECORD_KIB_MAX * 1024,
    )


def _claim_others(
    outcome: Outcome, stand: Stand, lane: int, begun_ms: int, hot_ms: int, cooled_ms: int
) -> None:
    seen, rest = stand.outcomes, [p for p in range(stand.partitions) if p != lane]
    before = percentile(seen.took_ms(begun_ms, hot_ms), 0.99)
    elsewhere = percentile(seen.took_ms(hot_ms, cooled_ms, but=[lane]), 0.99)
    same = percentile(seen.took_ms(hot_ms, cooled_ms, but=rest), 0.99)
    outcome.claim(
        "orders of other lanes: to settlement, p99, before and while it is hot",
        f"{before:,} ms, then {elsewhere:,} ms",
        held=0 < elsewhere <= max(SLOWER_TIMES * before, before + SLOWER_MS),
    )
    outcome.claim(
        f"orders of its own lane: p99 at most {OWN_LANE_MS_MAX:,} ms",
        f"{same:,} ms",
        held=0 < same <= OWN_LANE_MS_MAX,
    )


def refunds(key: bytes, count: int) -> list[tuple[bytes, bytes]]:
    merchant, _, order = key.decode().partition(":")
    encode = default_codec().encoder("payment-command")
    return [
        (
            key,
            encode(
                to_record(
                    PaymentCommand(
                        merchant_id=merchant,
                        order_id=order,
                        command_id=f"{COMMAND}{number}",
                        type="refund",
                        submitted_at_ms=_now_ms(),
                        amount_minor=1,
                        currency="GBP",
                    )
                )
            ),
        )
        for number in range(count)
    ]


def _now_ms() -> int:
    return int(time.time() * 1000)
