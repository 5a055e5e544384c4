"""Why a cluster does not take this client: what the client knows and its exceptions do not say.

A request to brokers that refuse the connection ends as "timed out". That they wanted a certificate,
a password or no encryption at all stands only in the events of the connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.errors import UserError
from pipeline.kafka_access import access_of, reaching

# A refusal comes with the first answers of a connection.
LISTEN_S = 3.0
# In order: what says the most.
_TELLING = (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE)
# What a client without TLS or a user logs, over and over, of a broker that wants them.
_HUNG_UP = "Disconnected"
_HUNG_UP_MEANS = (
    "it takes the connection and ends it before an answer, as brokers do that want TLS or a user: "
    'say how it is reached with the setting kafka, "security.protocol" first'
)


def usable_access() -> None:
    """Refuse properties that no client can be made with, before anything starts (UserError)."""
    try:
        _listener(reaching("127.0.0.1:1"), _Heard())
    except KafkaException as error:
        raise UserError(
            f"the setting kafka is wrong: {_text(error.args[0].str())}. It says how brokers are "
            "reached; see docs/operations.md."
        ) from error


def why_refused(
    bootstrap_servers: str, config: Mapping[str, Any] | None = None, listen_s: float = LISTEN_S
) -> str:
    """A piece in brackets for a sentence that says that nobody answers; "" if it is not known.

    ``config``: the settings of the client that had no answer, where it has its own.
    """
    heard = _Heard()
    client = _listener({**reaching(bootstrap_servers), **access_of(config or {})}, heard)
    until = time.monotonic() + listen_s
    while time.monotonic() < until:
        client.poll(0.1)
        if said := heard.most_telling():
            return f" ({said})"
    return ""


def why_away(
    bootstrap_servers: str, error: KafkaException | None, config: Mapping[str, Any] | None = None
) -> str:
    """``why_refused``, else what the client itself said, in brackets; "" if it said nothing."""
    said = why_refused(bootstrap_servers, config)
    if said or error is None:
        return said
    cause = error.args[0] if error.args else error
    return f" ({cause.str() if isinstance(cause, KafkaError) else cause})"


class _Heard(logging.Handler):
    """The events of a client's connections, and its log: that a broker hung up is only there."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: list[KafkaError] = []
        self._lines: list[str] = []

    def error(self, error: KafkaError) -> None:
        self._errors.append(error)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def most_telling(self) -> str:
        for code in _TELLING:
            for error in self._errors:
                if error.code() == code:
                    return _text(error.str())
        return _HUNG_UP_MEANS if sum(_HUNG_UP in line for line in self._lines) > 1 else ""


def _listener(settings: Mapping[str, Any], heard: _Heard) -> AdminClient:
    logger = logging.Logger("paystream.kafka.refusal")
    logger.addHandler(heard)
    made: dict[str, Any] = {**settings, "error_cb": heard.error}
    return AdminClient(made, logger=logger)


def _text(said: str) -> str:
    # "sasl_ssl://host:9093/bootstrap: what it is (after 5ms in state AUTH_REQ)"
    return said.split("/bootstrap: ")[-1].rstrip(". ")
