"""Asking a cluster about its topics and groups, and what is said when it does not answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, not in __all__
    AdminClient,
    OffsetSpec,
)

from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.kafka_refusal import why_away

# A person waits for this: long enough for a first connection with TLS, short enough to be told.
CONNECT_TIMEOUT_S: Final = 8.0
# One request to a broker that is there: it may be at its limit.
REQUEST_TIMEOUT_S: Final = 15.0
# New partitions get their leaders within a second or two; a cluster of many brokers takes longer.
VISIBLE_TIMEOUT_S: Final = 60.0
POLL_INTERVAL_S: Final = 0.1

_NO_ANSWER: Final = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
# A broker that has just started says these for a few seconds.
_COORDINATOR_COMES: Final = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)

T = TypeVar("T")


class Admin(AdminClient):
    """An admin client that remembers its settings, so that each broker can be asked by itself."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(dict(config))
        self.client_config = dict(config)


def connect(
    bootstrap_servers: str,
    config: Mapping[str, Any] | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Admin:
    """An admin client that has reached the cluster; UserError within ``timeout_s`` if it cannot."""
    try:
        admin = Admin(
            {
                **(config or {}),
                **reaching(bootstrap_servers),
                # Otherwise every failed attempt is printed to stderr, over our own sentence.
                "logger": logging.getLogger("paystream.kafka.admin"),
            }
        )
        admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise UserError(
            f"No Kafka broker answers at {bootstrap_servers}"
            f"{why_away(bootstrap_servers, error)}: start one, or "
            "name another with --bootstrap-servers or PAYSTREAM_BOOTSTRAP_SERVERS"
        ) from error
    return admin


def list_offsets(
    admin: Admin, partitions: Sequence[TopicPartition], spec: OffsetSpec
) -> dict[tuple[str, int], int]:
    """The offset that the spec names, by topic and partition."""
    answer = gathered(
        lambda: admin.list_offsets(
            dict.fromkeys(partitions, spec), request_timeout=REQUEST_TIMEOUT_S
        )
    )
    return {(tp.topic, tp.partition): result.offset for tp, result in answer.items()}


def earliest() -> OffsetSpec:
    """Where the first record that is kept lies."""
    spec: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # the client's gap
    return spec


def latest() -> OffsetSpec:
    """Where the next record will lie."""
    spec: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # the client's gap
    return spec


def until(lacking: Callable[[], list[str]], deadline_s: float) -> None:
    """Ask again and again until nothing is lacking; UserError if something still is."""
    while reasons := lacking():
        if time.monotonic() > deadline_s:
            raise UserError(
                f"The cluster did not follow within {VISIBLE_TIMEOUT_S:.0f} s "
                f"({'; '.join(reasons[:5])}): look at the brokers' logs, then apply again"
            )
        time.sleep(POLL_INTERVAL_S)


def once_coordinated(ask: Callable[[], T]) -> T:
    """Repeats a question about a group while the brokers still settle who coordinates it."""
    deadline_s = time.monotonic() + VISIBLE_TIMEOUT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_COMES or time.monotonic() > deadline_s:
                raise
        time.sleep(POLL_INTERVAL_S)


def gathered(ask: Callable[[], Mapping[Any, Future[Any]]]) -> dict[Any, Any]:
    """``future_results`` of what is asked, or what a person is told."""
    return asked(lambda: future_results(ask()))


def future_results(futures: Mapping[Any, Future[Any]]) -> dict[Any, Any]:
    """All the answers, by what was asked about; KafkaException if one is a refusal."""
    return {key: future.result(timeout=2 * REQUEST_TIMEOUT_S) for key, future in futures.items()}


def asked(ask: Callable[[], T]) -> T:
    """The answer; UserError if there is none or it is a refusal."""
    try:
        return ask()
    except KafkaException as error:
        raise user_error(error) from error


def user_error(error: KafkaException, what: str | None = None) -> UserError:
    """What a person is told: ``what`` could not be done, and the client's reason."""
    if what is None:
        cause = error.args[0] if error.args else None
        silent = isinstance(cause, KafkaError) and cause.code() in _NO_ANSWER
        what = "The Kafka cluster did not answer" if silent else "The Kafka cluster refused"
    return UserError(f"{what}: {reason(error)}")


def reason(error: KafkaException) -> str:
    """The client's own words for it."""
    cause = error.args[0] if error.args else error
    return str(cause.str()) if isinstance(cause, KafkaError) else str(cause)
