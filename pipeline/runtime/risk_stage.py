"""The risk stage: orders counted by card, customer or merchant, and declined attempts by card, in a
table keyed by what it counts.

Counts cannot be kept in lanes keyed by order: two workers would each know a part. Here every check
of one identity comes to one lane, whichever payments worker wrote it, so a limit is exact. The
answer goes back to the order's own lane. Like every stage: bytes in, bytes out, ``now`` is the
check's append time, and row, answer and input offset are one transaction.
"""

from __future__ import annotations

from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import RiskCheck, RiskResult, RiskVelocity
from pipeline.domain.records import check_from_record, to_record, velocity_from_record
from pipeline.domain.risk_answer import answer_check
from pipeline.domain.risk_velocity import velocity_key
from pipeline.runtime.admission import InputLane
from pipeline.runtime.batch import Batch
from pipeline.runtime.dead_letters import dead_letter
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.letter_evidence import check_letter
from pipeline.runtime.table import Table
from pipeline.runtime.too_large import CAUSE, DETAIL
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import RISK_VELOCITY_RETENTION_MS, Catalogue

STAGE = "risk"

ALREADY_COUNTED = "already_counted"


class RiskStage:
    """Knows no rules: a check says what to count it in, so workers need not agree on a file."""

    name = STAGE
    # A row that was not written for longer than any window counts nothing any more.
    keep_s = RISK_VELOCITY_RETENTION_MS // 1000

    def __init__(self, catalogue: Catalogue, codec: Codec) -> None:
        self.lanes = tuple(
            InputLane(spec.role, spec.name, spec.delay_ms) for spec in catalogue.inputs(STAGE)
        )
        self.table_topic = catalogue.name("risk-velocity")
        self._results = catalogue.name("risk-results")
        self._dead_letters = catalogue.name("dead-letters")
        self._partitions = catalogue["risk-checks"].partitions
        self._decode = codec.decoder("risk-check")
        self._decode_row = codec.decoder("risk-velocity")
        self._encode_row = codec.encoder("risk-velocity", checked=False)
        self._encode_result = codec.encoder("risk-result", checked=False)

    def decode_row(self, raw: bytes) -> RiskVelocity:
        """A stored row; a DecodeError here is our own damage, not bad input."""
        return velocity_from_record(self._decode_row(raw))

    def handle(self, record: InputRecord, table: Table[RiskVelocity], batch: Batch) -> None:
        """Count one check and answer it; one that cannot be read goes to the dead letters."""
        batch.took(record.topic, record.partition, record.offset)
        if record.value is None:
            self._bury(record, batch, "empty_value", "a record without a value")
            return
        try:
            check = check_from_record(self._decode(record.value))
        except DecodeError as error:
            self._bury(record, batch, error.kind, error.detail)
            return
        key = record.key
        if key is None or key != velocity_key(check.merchant_id, check.by, check.identity):
            detail = "the key is not the payload's kind:merchant:identity"
            self._bury(record, batch, "key_mismatch", detail, check)
            return
        row = table.get(record.partition, key)
        if row is None and partition_of(key, self._partitions) != record.partition:
            belongs = partition_of(key, self._partitions)
            detail = f"murmur2 of the key belongs to partition {belongs}"
            self._bury(record, batch, "misrouted", detail, check)
            return
        counted, answers = answer_check(row, check, record.timestamp_ms)
        for result in answers:
            self._tell(result, batch)
            if result.permit:
                batch.notes[("permits", f"{result.permit} {result.rule}")] += 1
        if counted is None:
            # An order, or what became of an attempt, that came a second time.
            batch.notes[("notes", ALREADY_COUNTED)] += 1
            return
        raw = self._encode_row(to_record(counted))
        batch.last_table_output[record.partition] = len(batch.outputs)
        batch.outputs.append((self.table_topic, record.partition, key, raw, None))
        table.prepare(record.partition, key, counted, raw)

    def quarantine(self, record: InputRecord, table: Table[RiskVelocity], batch: Batch) -> None:
        """A check that killed the process three times is not counted; its payment is told so."""
        batch.took(record.topic, record.partition, record.offset)
        check = self._read(record)
        self._bury(record, batch, "killed_the_process", "three times at this offset", check)

    def bury_too_large(
        self, record: InputRecord, table: Table[RiskVelocity], batch: Batch, *, told: bool
    ) -> None:
        """A check whose effects no topic takes is not counted; its payment is told so, unless that
        was too large."""
        batch.took(record.topic, record.partition, record.offset)
        self._bury(record, batch, CAUSE, DETAIL, self._read(record) if told else None)

    def _read(self, record: InputRecord) -> RiskCheck | None:
        try:
            return check_from_record(self._decode(record.value or b""))
        except DecodeError:
            return None

    def _tell(self, result: RiskResult, batch: Batch) -> None:
        """An answer goes to the lane of its order."""
        key = record_key(result.merchant_id, result.order_id)
        lane = partition_of(key, self._partitions)
        batch.outputs.append(
            (self._results, lane, key, self._encode_result(to_record(result)), None)
        )

    def _bury(
        self,
        record: InputRecord,
        batch: Batch,
        cause: str,
        detail: str,
        check: RiskCheck | None = None,
    ) -> None:
        batch.notes[("dead_letters", cause)] += 1
        batch.outputs.extend(
            dead_letter(record, topic=self._dead_letters, stage=STAGE, cause=cause, detail=detail)
        )
        if check is not None:
            self._tell(check_letter(record, check, cause), batch)
