"""What a caller names of a cluster, looked at before a client has it: addresses, a topic, a group.

The client's own answers to names that are none are many: an assertion that ends the process, a name
cut at its NUL, minutes of looking for a broker at no address, a bare ValueError.
"""

from __future__ import annotations

import re
import string
from typing import Final

from pipeline.broker_addresses import broker_addresses
from pipeline.errors import UserError

# What a string of Kafka's protocol may have.
GROUP_BYTES_MAX: Final = 32_767
# Kafka's rule (org.apache.kafka.common.internals.Topic).
_TOPIC: Final = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]{1,249}")


def check_servers(given: object) -> None:
    """Raise UserError where these are no addresses of brokers."""
    if not isinstance(given, str) or not _are_servers(given):
        # The client takes it, and says when it gives up that nobody answers there.
        raise UserError(
            f"bootstrap_servers is {ascii(given)[:60]}; give host:port[,host:port ...]."
        )


def check_topic_name(given: object) -> None:
    """Raise UserError where this is no name of a topic."""
    if not isinstance(given, str) or not _TOPIC.fullmatch(given):
        raise UserError(
            f"topic is {ascii(given)[:60]}; give a name of 1 to 249 letters, digits, dots, dashes "
            "and underscores."
        )


def check_group(given: object) -> None:
    """Raise UserError where this is no name of a group."""
    if not isinstance(given, str) or not _is_group(given):
        # Of none the client ends the process, and it reads others as a name that is not theirs: it
        # drops blanks at the beginning and what follows a NUL.
        raise UserError(
            f"group_id is {ascii(given)[:60]}; give a name of 1 to {GROUP_BYTES_MAX:,} bytes that "
            "begins with no blank and has no NUL, the same for all who share the topic's "
            "partitions."
        )


def _are_servers(given: str) -> bool:
    try:
        addresses = broker_addresses(given)
    except ValueError:
        return False
    return bool(addresses) and all(
        host and host.isprintable() and " " not in host and 0 < port < 65_536
        for host, port in addresses
    )


def _is_group(given: str) -> bool:
    try:
        size = len(given.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= GROUP_BYTES_MAX and given[0] not in string.whitespace and "\0" not in given
