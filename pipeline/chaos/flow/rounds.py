"""The faults of a run as they happen: begun when due, kept up, ended, written down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.chaos.flow.cluster import Cluster
from pipeline.chaos.flow.draw import BY_NAME, Drawn
from pipeline.chaos.flow.fault import Fault
from pipeline.chaos.flow.kinds import make
from pipeline.chaos.flow.load import Load
from pipeline.chaos.flow.recovery import felt
from pipeline.chaos.flow.report import Done

TURN_S = 0.05
SAY_EVERY_S = 5.0
# A fault whose moment does not come is left out. Rolling three brokers takes a busy machine a
# hundred seconds, and the next one at a broker waits for it.
LATE_S_MAX = 120.0


class Rounds:
    """``run`` returns when the load is over and every fault has ended."""

    def __init__(
        self,
        cluster: Cluster,
        load: Load,
        drawn: Sequence[Drawn],
        log_file: Path,
        say: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._load = load
        self._due = list(drawn)
        self._log_file = log_file
        self._say = say
        self._active: list[tuple[Fault, Done]] = []
        self._done: list[Done] = []
        self._said_s = 0.0
        self.begun_s = time.monotonic()

    def run(self) -> None:
        while not self._load.is_over or self._active or self._due or self._cluster.is_busy:
            self._cluster.tick()
            self._end_what_is_over()
            self._begin_what_is_due()
            self._tell()
            time.sleep(TURN_S)

    def done(self) -> list[Done]:
        """Every fault in order, with how long it was felt."""
        samples = self._cluster.watch.samples
        found = sorted(self._done, key=lambda one: one.number)
        happened = [one for one in found if not one.skipped]
        for one in happened:
            begun_s, ended_s = self.begun_s + one.begun_s, self.begun_s + one.ended_s
            how = felt(samples, begun_s, ended_s)
            one.recovered_s, one.still_s, one.where = how.recovered_s, how.still_s, how.where
            until_s = one.ended_s + (how.recovered_s or 0.0)
            one.alone = not any(
                other.begun_s < until_s and other.ended_s > one.begun_s
                for other in happened
                if other is not one
            )
        return found

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self.begun_s

    def _begin_what_is_due(self) -> None:
        for drawn in [each for each in self._due if each.at_s <= self._now_s]:
            fault = make(drawn, self._cluster)
            over = self._now_s + drawn.duration_s > self._load.seconds
            if over or self._is_held(drawn) or not fault.may_begin():
                if over or self._now_s - drawn.at_s > LATE_S_MAX:
                    self._due.remove(drawn)
                    self._note(
                        Done(drawn.number, drawn.kind, "", drawn.at_s, drawn.at_s,
                             skipped="its moment did not come")
                    )  # fmt: skip
                continue
            self._due.remove(drawn)
            done = Done(drawn.number, drawn.kind, "", self._now_s, 0.0)
            done.hit = fault.start()
            self._active.append((fault, done))
            self._write("begin", done)

    def _is_held(self, drawn: Drawn) -> bool:
        """Whether a fault that began late is still at what this one would hit."""
        holds = BY_NAME[drawn.kind].holds
        return any(holds & BY_NAME[done.kind].holds for _, done in self._active)

    def _end_what_is_over(self) -> None:
        for each in [each for each in self._active if each[0].is_over()]:
            fault, done = each
            fault.end()
            self._active.remove(each)
            done.ended_s = self._now_s
            done.injured = fault.injured
            done.skipped = fault.came_to_nothing
            self._note(done)

    def _note(self, done: Done) -> None:
        self._done.append(done)
        self._write("skip" if done.skipped else "end", done)

    def _write(self, what: str, done: Done) -> None:
        with self._log_file.open("a", encoding="utf-8") as file:
            line = {"at": time.strftime("%H:%M:%S", time.gmtime()), "what": what, **asdict(done)}
            file.write(json.dumps(line) + "\n")

    def _tell(self) -> None:
        if self._now_s - self._said_s < SAY_EVERY_S:
            return
        self._said_s = self._now_s
        open_s = max(self._cluster.watch.stuck_now().values(), default=0.0)
        under_way = ", ".join(f"{done.kind} ({done.hit})" for _, done in self._active)
        self._say(
            f"{self._now_s:>5.0f} s   orders {self._load.published:>7,}   "
            f"faults {len(self._done):>3}   longest open end {open_s:>3.0f} s"
            f"   {under_way}"
        )
