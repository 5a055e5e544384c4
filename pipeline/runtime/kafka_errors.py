"""What to do about an error of a transactional call: the taxonomy of KIP-360 and KIP-447.

The client marks its errors itself; the order of the questions matters, because an error may carry
several marks.
"""

from __future__ import annotations

from enum import Enum

from confluent_kafka import KafkaError, KafkaException


class Course(Enum):
    """The course to take after an error."""

    LEAVE = "leave"  # the producer is unusable (fenced, or its state is lost): end the process
    ABORT = "abort"  # abort the transaction, rewind to its start and do it again
    RETRY = "retry"  # make the same call again with the same arguments


class LaneFatal(Exception):
    """The transactional producer cannot go on; its process must end and start anew."""


class LaneHung(LaneFatal):
    """The client does not come back: a transaction, or a consumer's close, does not end."""


def kafka_error(error: BaseException) -> KafkaError | None:
    """The KafkaError inside an exception of the client, if there is one."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return None


# Of a consumer: the client goes on looking for its broker, or for its place in the group.
_PASSING = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MAX_POLL_EXCEEDED,
    }
)


def ends_the_client(error: KafkaError) -> bool:
    """Whether the client that said it can do no more. A consumer tells by the code alone, as when
    another member has joined under its instance id; a producer marks its error."""
    return error.fatal() or error.code() == KafkaError._FATAL


def passes_by_itself(error: KafkaError) -> bool:
    """Whether a consumer's client gets over it: it is told, and consuming goes on."""
    return not error.fatal() and (error.retriable() or error.code() in _PASSING)


# Of a question that was asked for as long as it may take: nobody leads the partition, or the client
# was told by nobody yet that there is one. As a word of a consumer they may mean a deleted topic.
_LEADERLESS = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._DESTROY_BROKER,
        # Of none of the partitions that were asked about.
        KafkaError._NOENT,
    }
)


def was_asked_in_vain(error: KafkaError) -> bool:
    """Whether a question that failed so may be answered to a worker that starts again."""
    return passes_by_itself(error) or (not error.fatal() and error.code() in _LEADERLESS)


def course_of(error: KafkaError) -> Course:
    """Fatal first, then abortable, then retriable; an error without a mark is treated as fatal."""
    if error.fatal():
        return Course.LEAVE
    if error.txn_requires_abort():
        return Course.ABORT
    if error.retriable():
        return Course.RETRY
    return Course.LEAVE
