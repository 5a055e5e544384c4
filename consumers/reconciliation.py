"""One run of reconciliation: what the topics hold now, against the books, once and again.

Rows are taken in, what matches is decided, published and booked, what does not becomes or ends a
break. A run that is ended at any step is taken further by the next one: each step is noted with
what it did, in one transaction, or is harmless to repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Engine

from consumers.flow_look import PATIENCE_S, FlowLook
from consumers.unknown_charges import payment_that_may_have_made
from pipeline.domain.breaks import LEDGER_DIFFERS, REFUND_AFTER_REVIEW, ReconciliationBreak
from pipeline.domain.clearing import cannot_be_kept, clearing_key
from pipeline.domain.due_days import require_come
from pipeline.domain.model import PaymentCommand
from pipeline.domain.reconciliation_decisions import BankStatement, refund_command
from pipeline.domain.reconciliation_rules import ReconciliationRules
from pipeline.domain.records import clearing_from_record, settlement_from_record
from pipeline.domain.time_zones import time_zone
from pipeline.errors import UserError
from pipeline.gateways.reports import ReportFile
from pipeline.ledger.database import reading
from pipeline.ledger.journal import Progress, Source
from pipeline.ledger.queries import booked_offsets
from pipeline.ledger.reconciliation import control
from pipeline.ledger.reconciliation.breaks import (
    Changes,
    find_break,
    keep,
    mark_published,
    unpublished_breaks,
)
from pipeline.ledger.reconciliation.clearing import Look, keep_breaks, look, mark_told
from pipeline.ledger.reconciliation.findings import Clocks
from pipeline.ledger.reconciliation.following import (
    catch_up,
    decide_releases,
    decide_resolution,
    decide_statement,
    named_too_late,
)
from pipeline.ledger.reconciliation.intake import (
    Placed,
    new_rows,
    refusal,
    stored_offsets,
    take_in,
)
from pipeline.ledger.reconciliation.refunds import (
    charge_of,
    charged_twice,
    mark_ordered,
    named_order,
    refunded_orders,
    unordered_refunds,
)
from pipeline.ledger.reconciliation.tables import prepare
from pipeline.runtime.topic_reader import PastRecord, TopicReader
from producers.clearings import ReconciliationPublisher, words_of
from producers.ledger_events import LedgerEvents, topic_ranges, topic_source
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue

BATCH_RECORDS = 5_000
# Rows have references in no order, so most come to a page of their own of the index: the more are
# taken in at once, the more of them share one that is written.
ROWS_TAKEN_TOGETHER = 20_000
PUBLISHED_AT_ONCE = 5_000


class Ran(Struct, frozen=True):
    """What a run did, in numbers. ``waiting``: on one side only, and not due yet."""

    taken_in: int
    cleared: int
    entries: int
    waiting: int
    opened: int
    ended: int
    told: int


class Reconciler:
    """Of one installation. ``now_ms`` is asked for the time; everything else is in the topics, the
    ledger and the rules. ``on_step`` is told the steps, for tests that end the process there;
    ``on_read`` how many records of a topic are read, where that may take long."""

    def __init__(
        self,
        bootstrap_servers: str,
        catalogue: Catalogue,
        codec: Codec,
        engine: Engine,
        rules: ReconciliationRules,
        *,
        now_ms: Callable[[], int],
        on_step: Callable[[str], None] = lambda _step: None,
        on_read: Callable[[str, int], None] = lambda _topic, _done: None,
    ) -> None:
        self._servers = bootstrap_servers
        self._catalogue = catalogue
        self._codec = codec
        self._engine = engine
        self._rules = rules
        self._now_ms = now_ms
        self._on_step = on_step
        self._on_read = on_read
        self._topic = catalogue.name("clearings")
        self._decode = codec.decoder("clearing")
        self._log = LedgerEvents(bootstrap_servers, catalogue, codec)
        self._publisher = ReconciliationPublisher(bootstrap_servers, catalogue, codec)
        prepare(engine)

    # Importing ----------------------------------------------------------------------------------

    def import_report(self, report: ReportFile) -> int:
        """Publish the rows of a report that are not in the topic yet; how many they were.

        UserError, and nothing published, when the report contradicts what was imported of it, or
        is of a day that is yet to come at its gateway.
        """
        zone = time_zone(self._rules.of(report.gateway).time_zone)
        require_come(
            report.report_date, f"the report {report.file_id} of {report.gateway}",
            self._now_ms(), zone,
        )  # fmt: skip
        self.take_in()
        with reading(self._engine) as connection:
            fresh = new_rows(connection, report.rows)
        if fresh:
            self._publisher.rows(fresh)
            self._on_step("published")
            self.take_in()
        return len(fresh)

    def import_statement(self, statement: BankStatement, actor: str) -> bool:
        """Decide, publish and book a bank statement; whether it is new."""
        self._log.publish(self._engine)
        events = decide_statement(self._engine, statement, actor, self._now_ms())
        self._log.publish(self._engine)
        return bool(events)

    def named_too_late(self, statement: BankStatement) -> int:
        """Lines of a statement that a gateway's name came too late for."""
        with reading(self._engine) as connection:
            return named_too_late(connection, statement)

    def take_in(self) -> int:
        """Take in what the clearings topic holds now; how many rows were new."""
        source = topic_source(self._servers, self._topic)
        with reading(self._engine) as connection:
            stored = stored_offsets(connection, source)
        taken = 0
        for partition, (low, end) in topic_ranges(self._servers, self._topic).items():
            start = stored.get(partition, 0)
            if low > start:
                raise UserError(
                    f"{self._topic}[{partition}] begins at offset {low}, but is taken in up to "
                    f"{start}: rows were deleted. Import their reports again, and keep the topic "
                    "for ever (retention.ms=-1)."
                )
            if end > start:
                taken += self._take_in(source, partition, start, end)
        return taken

    def _take_in(self, source: Source, partition: int, start: int, end: int) -> int:
        taken = 0
        done = start
        rows: list[Placed] = []
        refused: list[ReconciliationBreak] = []
        now_ms = self._now_ms()
        for record in TopicReader(self._servers).onward(self._topic, partition, start):
            made = self._row(source, record)
            if isinstance(made, Placed):
                rows.append(made)
            else:
                refused.append(made)
            if len(rows) + len(refused) == ROWS_TAKEN_TOGETHER:
                progress = {partition: Progress(done, record.offset + 1)}
                taken += take_in(self._engine, source, rows, progress, refused, now_ms=now_ms)
                done, rows, refused = record.offset + 1, [], []
        if end > done:
            progress = {partition: Progress(done, end)}
            taken += take_in(self._engine, source, rows, progress, refused, now_ms=now_ms)
        return taken

    def _row(self, source: Source, record: PastRecord) -> Placed | ReconciliationBreak:
        """What a record holds; one that is no row holds nobody up, and is looked at by a person."""
        partition, offset = record.partition, record.offset
        try:
            clearing = clearing_from_record(self._decode(record.value or b""))
        except DecodeError as error:
            day = control.day_of(record.timestamp_ms)
            return refusal(source, partition, offset, f"it cannot be read: {error}", day=day)
        wrong = cannot_be_kept(clearing)
        if wrong:
            day = control.day_of(record.timestamp_ms)
            return refusal(source, partition, offset, f"it cannot be kept: {wrong}", day=day)
        named = clearing_key(clearing.gateway, clearing.file_id, clearing.row_number)
        if record.key != named.encode():
            detail = f"its key is not that of row {named}"
            return refusal(source, partition, offset, detail, clearing=clearing)
        return Placed(clearing, partition, offset)

    # Running ------------------------------------------------------------------------------------

    def run(self, *, as_of: date | None = None, controlled: bool = True) -> Ran:
        """Clear what matches, keep the breaks, tell payments what only a report knew."""
        now_ms = self._now_ms()
        self._log.publish(self._engine)
        taken = self.take_in()
        catch_up(self._engine)
        done = self._look(as_of, now_ms)
        decide_releases(self._engine, now_ms)
        self._on_step("decided")
        entries = self._log.publish(self._engine)
        self._on_step("booked")
        self.order_refunds()
        told = self._tell(done, now_ms)
        changes = keep_breaks(self._engine, done, now_ms)
        if controlled:
            changes = _sum(changes, self._control(now_ms))
        self.publish_breaks()
        return Ran(taken, done.cleared, entries, done.waiting, changes.opened, changes.ended, told)

    def preview(self, *, as_of: date | None = None) -> Look:
        """What a run would find in what is taken in already; nothing is changed."""
        return self._look(as_of, self._now_ms(), dry_run=True)

    def _look(self, as_of: date | None, now_ms: int, *, dry_run: bool = False) -> Look:
        topics = self._catalogue.name("settlements"), self._topic
        clocks = Clocks(self._rules, now_ms, as_of)
        return look(self._engine, topics, self._rules, clocks, now_ms, dry_run=dry_run)

    def _tell(self, done: Look, now_ms: int) -> int:
        with reading(self._engine) as connection:
            unasked = refunded_orders(connection)
            twice = charged_twice(connection) if done.untold else frozenset()
        words = words_of(done.untold, now_ms, unasked, twice)
        if words:
            self._publisher.words(word for word, _ in words)
            self._on_step("told")
            mark_told(self._engine, [row for _, rows in words for row in rows])
        return len(words)

    def resolve(
        self,
        break_id: str,
        resolution: str,
        *,
        actor: str,
        reason: str,
        patience_s: float = PATIENCE_S,
    ) -> list[PaymentCommand]:
        """A person's word about a break, decided, published and followed; what is given back by it.
        UserError where it may not be, and then nothing is."""
        self._log.publish(self._engine)
        flow = None
        if resolution == REFUND_AFTER_REVIEW:
            with reading(self._engine) as connection:
                found = find_break(connection, break_id)
                named = None if found is None else named_order(connection, found)
                charge = None if found is None else charge_of(connection, found)
            if named is not None:
                flow = FlowLook(
                    self._servers, self._catalogue, self._codec, self._engine, patience_s=patience_s
                ).seen(*named)
            if flow is not None and flow.answered and charge is not None:
                # Whatever the row names: it may name another's order, or a garbled one.
                unknown = payment_that_may_have_made(
                    charge, self._servers, self._catalogue, self._codec, self._on_read
                )
                flow = replace(flow, unknown=unknown)
        decide_resolution(
            self._engine,
            break_id,
            resolution,
            actor=actor,
            reason=reason,
            now_ms=self._now_ms(),
            flow=flow,
        )
        self._on_step("resolved")
        self._log.publish(self._engine)
        asked = self.order_refunds()
        self.publish_breaks()
        return asked

    def known(self, break_id: str) -> ReconciliationBreak | None:
        """A break as it stands now."""
        with reading(self._engine) as connection:
            return find_break(connection, break_id)

    def order_refunds(self) -> list[PaymentCommand]:
        """Tell the flow what people have given back of what nobody asked for; what was told now."""
        with reading(self._engine) as connection:
            decided = unordered_refunds(connection)
        asked = [command for command in map(refund_command, decided) if command is not None]
        if asked:
            self._publisher.commands(asked)
            self._on_step("refunds_ordered")
            with self._engine.begin() as connection:
                mark_ordered(connection, decided)
        return asked

    def publish_breaks(self) -> int:
        """Publish breaks as they stand, where they have changed; how many."""
        published = 0
        after = ""
        while True:
            with reading(self._engine) as connection:
                waiting = unpublished_breaks(connection, PUBLISHED_AT_ONCE, after)
            if not waiting:
                if not after:
                    return published
                # From the beginning: one may have changed meanwhile.
                after = ""
                continue
            after = waiting[-1].break_id
            self._publisher.breaks(waiting)
            self._on_step("breaks_published")
            with self._engine.begin() as connection:
                mark_published(connection, waiting)
            published += len(waiting)

    def _control(self, now_ms: int) -> Changes:
        found = list(self._uncontrolled(now_ms))
        with self._engine.begin() as connection:
            return keep(connection, found, now_ms, judged={LEDGER_DIFFERS})

    def _uncontrolled(self, now_ms: int) -> Iterator[ReconciliationBreak]:
        """Where the ledger and the settlements topic differ, as far as the ledger has read it."""
        topic = self._catalogue.name("settlements")
        decode = self._codec.decoder("settlement")
        with reading(self._engine) as connection:
            ends = {
                o.partition: o.next_offset for o in booked_offsets(connection) if o.topic == topic
            }
            for partition, (low, _) in topic_ranges(self._servers, topic).items():
                end = ends.get(partition, 0)
                if end <= low:
                    continue
                booked = 0
                batch: list[control.Published] = []
                # What cannot be decompressed is in the dead letters as well.
                reader = TopicReader(self._servers, on_unreadable=lambda _batch: None)
                for record in reader.onward(topic, partition, low):
                    if record.offset >= end:
                        break
                    try:
                        settlement = settlement_from_record(decode(record.value or b""))
                    except DecodeError:
                        # In the dead letters: it names no movement.
                        continue
                    batch.append(
                        control.Published(
                            settlement, topic, partition, record.offset, record.timestamp_ms
                        )
                    )
                    if len(batch) == BATCH_RECORDS:
                        breaks, count = control.compare(connection, batch)
                        booked += count
                        batch = []
                        yield from breaks
                breaks, count = control.compare(connection, batch)
                booked += count
                yield from breaks
                entries = control.entries_between(connection, topic, partition, low, end)
                if entries > booked:
                    day = datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
                    yield control.too_many(topic, partition, booked, entries, day)


def _sum(one: Changes, other: Changes) -> Changes:
    return Changes(one.opened + other.opened, one.ended + other.ended)
