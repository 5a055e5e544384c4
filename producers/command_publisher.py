"""Publish commands on payments, and decisions of people about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.domain.card_numbers import holds_card_number
from pipeline.domain.model import PaymentCommand
from producers.publisher import DELIVERY_TIMEOUT_S, InvalidRecord, Publisher, PublishError
from schemas.codec import Codec

__all__ = ["CommandPublisher", "InvalidCommand", "PublishError"]

# What people and other systems write; ids are exempt as they are in orders.
_TEXTS = (
    "instrument_token", "card_fingerprint", "reason", "evidence", "actor", "gateway_reference",
    "override",
)  # fmt: skip
_OPAQUE = frozenset({"instrument_token", "card_fingerprint", "gateway_reference"})


class InvalidCommand(InvalidRecord):
    """The command cannot become a record: its ids, a field's type, or its size."""


class CardNumberInCommand(InvalidCommand):
    """A text of the command holds a card number; ``fields`` names them, nothing repeats it."""

    def __init__(self, command: str, fields: tuple[str, ...]) -> None:
        super().__init__(
            f"command {command} holds a card number in {', '.join(fields)}; leave it out, it would "
            "be kept with the payment"
        )
        self.fields = fields


class CommandPublisher(Publisher[PaymentCommand]):
    """Writes commands to the topic payment-commands, each at least once.

    ::

        with CommandPublisher("127.0.0.1:9092") as publisher:
            publisher.publish(command)

    A command names its payment by merchant and order, which are its key, so commands on one
    payment keep their order. The same ``command_id`` again has no effect, so publishing again is
    safe. What became of a command stands in the payment-events: one names its id as
    ``operation_id``.

    Publishing, failures and ``config`` are as with ``OrderPublisher``.
    """

    noun = "command"
    kind = PaymentCommand
    invalid = InvalidCommand

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        topic: str = "payment-commands",
        codec: Codec | None = None,
        client_id: str = "paystream-command-publisher",
        delivery_timeout_s: float = DELIVERY_TIMEOUT_S,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            bootstrap_servers,
            topic=topic,
            codec=codec,
            client_id=client_id,
            delivery_timeout_s=delivery_timeout_s,
            config=config,
        )

    def publish(self, noun: PaymentCommand) -> None:
        """Queue one command, as ``Publisher.publish`` does.

        One that holds a card number is not let out of the process (CardNumberInCommand).
        """
        fields = tuple(
            name
            for name in _TEXTS
            if (text := getattr(noun, name)) is not None
            and holds_card_number(text, opaque=name in _OPAQUE)
        )
        if fields:
            raise CardNumberInCommand(noun.command_id, fields)
        super().publish(noun)

    def _ids(self, noun: PaymentCommand) -> tuple[tuple[str, str], ...]:
        # The command's id becomes part of the key at the gateway.
        return (*super()._ids(noun), ("command_id", noun.command_id))
