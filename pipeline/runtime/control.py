"""The control topic: documents that every worker follows while it runs.

It is compacted, and the newest entry of a key counts. Each worker reads all of it by a consumer of
its own that belongs to no group: at the start up to the end, then for as long as the worker runs.
Entries are checked before they are written (``paystream control set``), and again by whoever
follows them, since others can write to the topic as well.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline.batches.unreadable import (
    UNFOLDED_BYTES_MAX,
    UnreadableBatches,
    is_unreadable,
    not_stepped_over,
)
from pipeline.domain.model import AuditEntry, ControlEntry
from pipeline.domain.records import control_entry_from_record, to_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.runtime.control_standing import Told
from pipeline.runtime.unreadable_batch import step_over
from schemas.codec import Codec
from schemas.errors import DecodeError, RegistryUnavailable
from topics.catalogue import Catalogue

_log = logging.getLogger(__name__)

ROLE = "control"
CHANGE_ACTION = "control_change"
# Of the ids of what the audit keeps about changes: the same change has the same id.
_ENTRIES = uuid.UUID("5f0f2d6a-6f0e-5d3c-9a57-0b7f6f3f1c11")
# A few entries of a few kilobytes: what takes longer is a broker that is away.
READ_TIMEOUT_S = 15.0
# Of a worker that starts, after that: half of what others wait, since both and its own start are to
# come to less than the supervisor's STEADY_S, or it would try a wrong address for ever.
METADATA_TIMEOUT_S = 5.0
# How soon a stop is noticed.
POLL_S = 0.2
# After trouble with the broker or the registry; the entries in force stay in force.
PAUSE_S = 1.0

# An entry of a key, or None when it was deleted.
OnEntry = Callable[[str, ControlEntry | None], None]
# The key of a record that is no entry, and why it is left out; no key where that is not known.
OnUnreadable = Callable[[str, str], None]


class _NotRead(UserError):
    """Its end was not come to in time."""


class ControlReader:
    """Follows the topic; ``on_entry`` is called by ``start`` and then by a thread of its own."""

    def __init__(
        self,
        bootstrap_servers: str,
        catalogue: Catalogue,
        codec: Codec,
        on_entry: OnEntry,
        on_unreadable: OnUnreadable = lambda key, why: None,
    ) -> None:
        self._servers = bootstrap_servers
        self._topic = catalogue.name(ROLE)
        self._partitions = catalogue[ROLE].partitions
        self._decode = codec.decoder("control-entry")
        self._on_entry = on_entry
        self._on_unreadable = on_unreadable
        self._unreadable = UnreadableBatches()
        # A batch that could not be stepped over yet.
        self._held_up_by = ""
        self._ended: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="control", daemon=True)
        self._consumer = Consumer(
            {
                **reaching(bootstrap_servers),
                # The client has a line for each failed connection: a worker's log would be full of
                # them while the broker is away, and a terminal where a command says so itself.
                "log_level": 2,
                # Never used: partitions are assigned by hand and nothing is committed.
                "group.id": "paystream-control-unused",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
                "check.crcs": True,
                "enable.partition.eof": True,
                # A worker that starts waits for so long, since its topic mostly has nothing to say.
                "fetch.wait.max.ms": 100,
            }
        )

    def start(self) -> None:
        """Take what is there, then follow what comes. UserError when it cannot be read;
        KafkaException while a cluster that has the topic does not answer for it."""
        try:
            self.read()
        except _NotRead as error:
            if not self._is_there():
                raise
            # Its leaders are away, which passes: whoever starts again finds them.
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, str(error))) from error
        self._thread.start()

    def read(self) -> None:
        """Take everything up to the ends."""
        self._consumer.assign([TopicPartition(self._topic, p, 0) for p in range(self._partitions)])
        deadline = time.monotonic() + READ_TIMEOUT_S
        while len(self._ended) < self._partitions:
            if time.monotonic() > deadline:
                if self._held_up_by:
                    raise UserError(self._held_up_by)
                raise _NotRead(
                    f"the topic {self._topic} cannot be read within {READ_TIMEOUT_S:.0f} s; is the "
                    f"cluster at {self._servers} reachable, and were the topics made "
                    "(`paystream topics apply`)?"
                )
            self._poll()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._consumer.close()

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._poll()
            except Exception as error:
                # Whatever it is, the worker's work goes on by the entries it has.
                _log.warning("the control topic cannot be read now: %s", error)
                self._stop.wait(PAUSE_S)

    def _is_there(self) -> bool:
        """Whether any broker answers, and knows the topic."""
        try:
            found = self._consumer.list_topics(self._topic, timeout=METADATA_TIMEOUT_S)
        except KafkaException:
            return False
        return bool(found.topics[self._topic].partitions)

    def _poll(self) -> None:
        message = self._consumer.poll(POLL_S)
        if message is None:
            return
        error = message.error()
        if error is None:
            self._take(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            self._held_up_by = ""
            self._ended.add(message.partition() or 0)
        elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise UserError(
                f"there is no topic {self._topic}; make the topics with `paystream topics apply`."
            )
        elif is_unreadable(error):
            self._step_over(message)
        elif error.fatal():
            raise KafkaException(error)

    def _step_over(self, message: Message) -> None:
        """Left out, as an entry is that cannot be read: nothing that this program writes there
        is compressed, and a worker that did not start for it would be the greater harm."""
        place = message.topic() or "", message.partition() or 0, message.offset() or 0
        self._held_up_by = not_stepped_over(*place, "where it ends could not be asked for")
        stepped = step_over(self._unreadable, self._consumer, message)
        if stepped is not None:
            batch = stepped.batch
            where = f"{self._topic}[{stepped.partition()}]@{batch.first_offset}"
            why = f"the batch at {where} is left out: {stepped.detail}"
            _log.error("%s; what it was to change is written anew by `paystream control set`", why)
            self._on_unreadable("", why)

    def _take(self, message: Message) -> None:
        key = (message.key() or b"").decode("utf-8", "replace")
        raw = message.value()
        if raw is None:
            self._on_entry(key, None)
            return
        try:
            entry = control_entry_from_record(self._decode(raw))
        except (DecodeError, RegistryUnavailable) as error:
            _log.error(
                "entry %s[%s]@%s of the control topic is left out: %s",
                key, message.partition(), message.offset(), error,
            )  # fmt: skip
            self._on_unreadable(key, f"it cannot be read: {error}")
            return
        if entry.key == key:
            self._on_entry(key, entry)
        else:
            self._on_unreadable(key, "it names another key than its record")


def read_records(bootstrap_servers: str, catalogue: Catalogue, codec: Codec) -> list[Told]:
    """Everything the topic still holds, the records of each key in their order."""
    found: list[Told] = []
    reader = ControlReader(
        bootstrap_servers,
        catalogue,
        codec,
        lambda key, entry: found.append(Told(key, entry)),
        lambda key, why: found.append(Told(key, None, why)),
    )
    try:
        reader.read()
    finally:
        reader.close()
    return found


def newest_entry(
    bootstrap_servers: str, catalogue: Catalogue, codec: Codec, key: str
) -> ControlEntry | None:
    """The newest entry of a key that can be read, whether or not workers take it."""
    found: ControlEntry | None = None
    for told in read_records(bootstrap_servers, catalogue, codec):
        if told.key == key and told.unreadable is None:
            found = told.entry
    return found


def change_entry(
    bootstrap_servers: str,
    catalogue: Catalogue,
    codec: Codec,
    *,
    key: str,
    value: str,
    changed_by: str,
    reason: str,
    now_ms: int,
    newest: int | None = None,
) -> ControlEntry:
    """Write the next version of an entry, and in the same transaction the audit's record of it.

    ``newest``: only if this version is (0: none). UserError when another one is, when somebody else
    writes at the same time (one transactional id for all lets the later of two put the earlier
    one off), or when it is not certain that it was written.
    """
    producer = Producer(
        {
            **reaching(bootstrap_servers),
            "transactional.id": f"paystream/{catalogue.settings.prefix}/control",
            "partitioner": "murmur2_random",
            "transaction.timeout.ms": int(READ_TIMEOUT_S * 1000),
            "log_level": 0,
        }
    )
    try:
        producer.init_transactions(READ_TIMEOUT_S)
        # After that, nobody else's write can still be on its way.
        before = newest_entry(bootstrap_servers, catalogue, codec, key)
        version = before.version if before is not None else 0
        if newest is not None and newest != version:
            raise UserError(f"version {version} is the newest, not {newest}; look at it first.")
        entry = ControlEntry(
            key=key,
            value=value,
            version=version + 1,
            changed_by=changed_by,
            reason=reason,
            changed_at_ms=now_ms,
        )
        subject = f"{ROLE}/{key}"
        audit = AuditEntry(
            entry_id=str(uuid.uuid5(_ENTRIES, f"{catalogue.name(ROLE)}/{key}/{entry.version}")),
            actor=changed_by,
            action=CHANGE_ACTION,
            subject=subject,
            occurred_at_ms=now_ms,
            reason=reason,
            detail=json.dumps({"version": entry.version}),
        )
        producer.begin_transaction()
        encoded = codec.encoder("control-entry")(to_record(entry))
        producer.produce(catalogue.name(ROLE), encoded, key.encode())
        encoded = codec.encoder("audit-entry")(to_record(audit))
        producer.produce(catalogue.name("audit"), encoded, subject.encode())
        producer.commit_transaction(READ_TIMEOUT_S)
    except KafkaException as error:
        raise UserError(
            f"the entry was not certainly written ({error.args[0].str()}): the cluster is away, or "
            "somebody else changed it at the same time. Look with `paystream control show`."
        ) from error
    return entry
