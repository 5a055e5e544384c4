"""A hundred thousand inputs that nobody can read, and the commands that deal with their letters."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from pipeline.chaos.overload.memory import peak_mib
from pipeline.chaos.overload.scenario import Options, Outcome, Say
from pipeline.chaos.overload.stand import Stand, orders
from pipeline.domain.keys import record_key
from pipeline.errors import UserError
from producers.load_generator import KeyValue, run_load
from schemas.codec import wire_header

NAME = "dead-letters"
# No schema has it: what a producer writes whose registry is not ours.
UNKNOWN_ID = 987_654
LETTERS_PER_S = 1_000_000
# Between two counts: a batch of letters is written in a fraction of it.
SETTLE_S = 10.0
# What a person waits for without asking whether it hangs, and what a small machine has.
LIST_S_MAX, COMMAND_MIB_MAX = 120.0, 2_048.0


def run(options: Options, say: Say) -> Outcome:
    count = options.letters
    outcome = Outcome(
        NAME,
        f"{count:,} orders of a schema that nobody knows, among good ones; all of them redriven "
        "and refused once more",
    )
    bad = unreadable(count)
    good = orders(int(options.rate_per_s * 10))
    with Stand(options.place / NAME, say, options.partitions) as stand:
        stand.wait_until_joined()
        load = stand.publish(good, options.rate_per_s)
        begun_s = time.monotonic()
        run_load(stand.settings.bootstrap_servers, bad)
        unread = stand.lag("payments", "orders")
        stand.keep_until(lambda: not load.is_alive(), "burying")
        stand.settle(len(good), "burying")
        # What is left of a lag that is read to the end are markers; orders have none.
        stand.keep_until(lambda: unread() == 0, "burying", progress=unread)
        outcome.figure("buried, beside good orders, in", f"{time.monotonic() - begun_s:,.0f} s")
        desk = _Desk(stand)
        listed = desk.timed(outcome, "list (counts them, shows 50)", "list")
        counted = json.loads(desk.timed(outcome, "list --json --limit 1", *_COUNT))
        first = json.loads(desk.run("list", "--json", "--limit", "1"))["letters"][0]
        desk.timed(outcome, "show one", "show", first["letter"])
        desk.timed(
            outcome, "redrive --all", "redrive", "--all", "--yes", "--rate", str(LETTERS_PER_S),
            "--reason", "tried again", "--actor", "paystream chaos overload",
        )  # fmt: skip
        # They went back in transactions, whose last markers nobody reads.
        stand.keep_until(lambda: unread() <= stand.partitions, "burying again", progress=unread)
        again = desk.counted_until(count)
        everything = json.loads(desk.run(*_COUNT, "--state", "all"))
        outcome.claim(
            "each is a letter, once", f"{counted['count']:,}", held=counted["count"] == count
        )
        outcome.claim("the list says how many", f"{count:,}", held=f"{count:,}" in listed)
        outcome.claim(
            "redriven once and buried again: so many open, and so many of all",
            f"{again['count']:,} of {everything['count']:,}",
            held=(again["count"], everything["count"]) == (count, 2 * count),
        )
        outcome.claim(
            f"each command within {LIST_S_MAX:.0f} s, the redrive apart, and "
            f"{COMMAND_MIB_MAX:,.0f} MiB",
            f"{desk.slowest_s:,.1f} s, {desk.most_mib:,.0f} MiB",
            held=desk.slowest_s <= LIST_S_MAX and desk.most_mib <= COMMAND_MIB_MAX,
        )
        stand.claim_whole(outcome)
    return outcome


_COUNT = ("list", "--json", "--limit", "1")


def unreadable(count: int) -> list[KeyValue]:
    value = wire_header(UNKNOWN_ID) + b"written with another registry"
    return [(record_key("shop-a", f"unreadable-{n}"), value) for n in range(count)]


class _Desk:
    """``paystream dead-letters`` as a person runs it: a process of its own."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self.slowest_s = self.most_mib = 0.0

    def timed(self, outcome: Outcome, name: str, *words: str) -> str:
        begun_s = time.monotonic()
        said, mib = self._run(words)
        took_s = time.monotonic() - begun_s
        outcome.figure(name, f"{took_s:,.1f} s, {mib:,.0f} MiB")
        if words[0] != "redrive":
            self.slowest_s = max(self.slowest_s, took_s)
        self.most_mib = max(self.most_mib, mib)
        return said

    def counted_until(self, count: int) -> dict[str, Any]:
        """What ``list`` counts, once that is so many or does not change any more."""
        found: dict[str, Any] = json.loads(self.run(*_COUNT))
        while found["count"] != count:
            self._stand.keep_for(SETTLE_S)
            before, found = found, json.loads(self.run(*_COUNT))
            if found["count"] == before["count"]:
                break
        return found

    def run(self, *words: str) -> str:
        return self._run(words)[0]

    def _run(self, words: tuple[str, ...]) -> tuple[str, float]:
        """What it said, and the most memory it held."""
        command = [
            sys.executable, "-m", "pipeline", "dead-letters", *words,
            "--bootstrap-servers", self._stand.settings.bootstrap_servers,
        ]  # fmt: skip
        most_mib = 0.0
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
            # What the system counts of a child that has ended is charged with its parent's memory.
            while process.poll() is None:
                most_mib = max(most_mib, peak_mib(process.pid))
                self._stand.supervisor.tick()
                self._stand.outcomes.look(0.02)
            said.seek(0)
            text = said.read().decode()
        if process.returncode != 0:
            raise UserError(f"{' '.join(command)} ended with {process.returncode}: {text}")
        return text, most_mib
