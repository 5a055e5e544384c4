"""Publish commands on payments, and decisions of people about them."""

from __future__ import annotations

from pipeline.domain.card_numbers import fields_not_to_send
from pipeline.domain.model import PaymentCommand
from producers.publisher import InvalidRecord, Publisher, PublishError

__all__ = ["CommandPublisher", "InvalidCommand", "PublishError"]


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

        with CommandPublisher(servers) as publisher:
            publisher.publish(command)

    A command names its payment by merchant and order, which are its key, so commands on one
    payment keep their order. The same ``command_id`` again has no effect, so publishing again is
    safe. What became of a command stands in the payment-events: one names its id as
    ``operation_id``.

    Publishing, failures and ``config`` are as with ``OrderPublisher``. One that holds a card number
    is not let out of the process (CardNumberInCommand).
    """

    noun = "command"
    role = "payment-commands"
    kind = PaymentCommand
    invalid = InvalidCommand

    def _refuse(self, noun: PaymentCommand) -> None:
        fields = fields_not_to_send(noun)
        if fields:
            raise CardNumberInCommand(noun.command_id, fields)

    def _ids(self, noun: PaymentCommand) -> tuple[tuple[str, str], ...]:
        # The command's id becomes part of the key at the gateway.
        return (*super()._ids(noun), ("command_id", noun.command_id))
