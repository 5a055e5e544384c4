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


def kafka_error(error: BaseException) -> KafkaError | None:
    """The KafkaError inside an exception of the client, if there is one."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return None


def course_of(error: KafkaError) -> Course:
    """Fatal first, then abortable, then retriable; an error without a mark is treated as fatal."""
    if error.fatal():
        return Course.LEAVE
    if error.txn_requires_abort():
        return Course.ABORT
    if error.retriable():
        return Course.RETRY
    return Course.LEAVE
