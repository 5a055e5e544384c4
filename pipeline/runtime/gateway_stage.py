"""The gateway stage: requests to calls, answers to results. No state, no client."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.answer import NOT_SENT, UNKNOWN, GatewayAnswer
from pipeline.domain.health import UNREACHABLE
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import PaymentRequest
from pipeline.domain.records import request_from_record, to_record
from pipeline.processors.gateway import plan_call, result_of
from pipeline.runtime.calls import Call
from pipeline.runtime.dead_letters import dead_letter, is_redriven, unreadable_letter
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.letter_evidence import request_letter
from pipeline.runtime.too_large import CAUSE, DETAIL
from pipeline.runtime.work import Outgoing
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue

STAGE = "gateway"


class GatewayTerms(Struct, frozen=True):
    """What the stage has to know of a gateway: for how long it remembers keys, or that it has
    none (``idempotent`` False)."""

    key_retention_ms: int | None = None
    idempotent: bool = True


class GatewayStage:
    """What one record of ``payment-requests`` asks for, and what its answer is written as.

    ``terms`` by the gateway's name; ``key_retention_ms`` for gateways that are not among them.

    A request is read again after a crash, a rebalance or an aborted transaction. Where the gateway
    knows keys that is harmless, and it is sent again; but that it cannot be reached says nothing
    of whether a call of before did reach it, so that is ``unknown`` as well. Where it knows none, a
    request that any worker may have sent before is answered ``unknown`` instead of being sent: one
    that lay in the partition when it was assigned (``assigned``), or that this worker has once sent
    itself.

    ``clock_skew_ms``: by how much this machine's clock may differ from the brokers'.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        codec: Codec,
        *,
        key_retention_ms: int | None = None,
        terms: Mapping[str, GatewayTerms] | None = None,
        clock_skew_ms: int = 5_000,
    ) -> None:
        self._terms = dict(terms or {})
        self._other_terms = GatewayTerms(key_retention_ms)
        self._clock_skew_ms = clock_skew_ms
        self._sent_below: dict[int, int] = {}
        # Of all gateways: up to which time, and below which offset, somebody may have read.
        self._read_until_ms: dict[int, int] = {}
        self._read_below: dict[int, int] = {}
        # Operations that were to be sent again and are not: whoever heard of them has to know.
        self._refused: list[PaymentRequest] = []
        # Whether the worker has to say what lay in a partition that it takes.
        self.unrepeatable = any(not each.idempotent for each in self._terms.values())
        self.topic = catalogue.name("payment-requests")
        self._results = catalogue.name("gateway-results")
        self._dead_letters = catalogue.name("dead-letters")
        self._partitions = catalogue["payment-requests"].partitions
        self._decode = codec.decoder("payment-request")
        self._encode = codec.encoder("gateway-result", checked=False)

    def plan(self, record: InputRecord, now_ms: int) -> Call | list[Outgoing]:
        """The call a request asks for, or what is written instead of calling: a dead letter, or
        the result of a request that must not be sent any more. ``now_ms``: the worker's clock."""
        if record.value is None:
            return self._refuse(record, "empty_value", "a record without a value", now_ms)
        try:
            request = request_from_record(self._decode(record.value))
        except DecodeError as error:
            return self._refuse(record, error.kind, error.detail, now_ms)
        if record.key != record_key(request.merchant_id, request.order_id):
            detail = "the key is not the payload's merchant:order"
            return self._refuse(record, "key_mismatch", detail, now_ms, request)
        if is_redriven(record):
            # Nothing goes from the dead letters straight to a gateway: the payment may have been
            # charged elsewhere or cancelled meanwhile. It is told and asks, or sends, by itself.
            answer = GatewayAnswer(outcome=UNKNOWN, code="redriven")
            return [self.result(record, request, answer, now_ms)]
        terms = self._terms.get(request.gateway, self._other_terms)
        plan = plan_call(
            request,
            record.timestamp_ms,
            now_ms,
            terms.key_retention_ms,
            possibly_sent=not terms.idempotent
            and record.offset < self._sent_below.get(record.partition, 0),
        )
        read_before = self._was_read_before(record)
        if plan.refusal is not None:
            if request.try_number > 1:
                self._refused.append(request)
            return [self.result(record, request, plan.refusal, now_ms, read_before=read_before)]
        if not terms.idempotent:
            # Never lowered: an inquiry, which is always sent, lies below what others have sent.
            self.assigned(record.partition, record.offset + 1)
        return Call(
            record,
            request,
            plan.send_before_ms,
            read_before=read_before,
            appended_at_ms=record.timestamp_ms,
            partition=record.partition,
        )

    def take_refused(self) -> list[PaymentRequest]:
        """The operations that were decided to be sent again, and that ``plan`` refused since the
        last time: a worker that was frozen may have sent them."""
        refused, self._refused = self._refused, []
        return refused

    def taken(self, partition: int, now_ms: int) -> None:
        """The partition comes to this worker, and others may have read all that is older."""
        self._read_until_ms[partition] = now_ms + self._clock_skew_ms

    def _was_read_before(self, record: InputRecord) -> bool:
        """Whether this request may have been read before now, by whomever."""
        below = self._read_below.get(record.partition, 0)
        self._read_below[record.partition] = max(below, record.offset + 1)
        until_ms = self._read_until_ms.get(record.partition, 0)
        return record.offset < below or record.timestamp_ms <= until_ms

    def assigned(self, partition: int, end_offset: int) -> None:
        """The partition comes to this worker; what lies below ``end_offset`` others may have sent.

        The end by read_committed is enough: no other worker has read beyond it either.
        """
        self._sent_below[partition] = max(end_offset, self._sent_below.get(partition, 0))

    def result(
        self,
        record: InputRecord,
        request: PaymentRequest,
        answer: GatewayAnswer,
        now_ms: int,
        *,
        read_before: bool = False,
    ) -> Outgoing:
        """The gateway-result record of one answered call, in the request's partition."""
        if read_before and answer.outcome == NOT_SENT and answer.code in UNREACHABLE:
            # Not by this call.
            answer = replace(answer, outcome=UNKNOWN)
        result = result_of(request, answer, now_ms)
        if read_before and answer.outcome == NOT_SENT:
            result = replace(result, earlier_reads=1)
        value = self._encode(to_record(result))
        return (self._results, record.partition, record.key, value, None)

    def quarantine(self, record: InputRecord, now_ms: int) -> list[Outgoing]:
        """What is written for a request that killed the process three times.

        It may have been sent before the process died, so its payment is told that the outcome is
        unknown: it is inquired about like any other.
        """
        detail = "three times at this offset"
        return self._refuse(record, "killed_the_process", detail, now_ms, self._read(record))

    def bury_too_large(self, record: InputRecord, now_ms: int, *, told: bool) -> list[Outgoing]:
        """What is written for a request whose result no topic takes. It was sent, so its payment is
        told (unless that was too large) that the outcome is unknown."""
        if not told:
            return dead_letter(
                record, topic=self._dead_letters, stage=STAGE, cause=CAUSE, detail=DETAIL
            )
        return self._refuse(record, CAUSE, DETAIL, now_ms, self._read(record))

    def bury_unreadable(self, record: InputRecord, *, whole: bool) -> list[Outgoing]:
        """What is written for a batch of requests that cannot be unfolded: nobody knows whose."""
        return unreadable_letter(record, topic=self._dead_letters, stage=STAGE, whole=whole)

    def _read(self, record: InputRecord) -> PaymentRequest | None:
        try:
            return request_from_record(self._decode(record.value or b""))
        except DecodeError:
            return None

    def _refuse(
        self,
        record: InputRecord,
        cause: str,
        detail: str,
        now_ms: int,
        request: PaymentRequest | None = None,
    ) -> list[Outgoing]:
        """The letter, and the word of it to the payment that the request belongs to."""
        letters = dead_letter(
            record, topic=self._dead_letters, stage=STAGE, cause=cause, detail=detail
        )
        word = request_letter(record, request, cause, now_ms)
        if word is None:
            return letters
        key = record_key(word.merchant_id, word.order_id)
        lane = partition_of(key, self._partitions)
        return [*letters, (self._results, lane, key, self._encode(to_record(word)), None)]
