"""Publishing one command about a payment, and telling what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pipeline.commands.payment_meaning import (
    DERIVED,
    asked_anew,
    check_nobodys,
    check_single,
    figures_now,
    review_named,
    review_now,
    with_id,
)
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.commands.payment_follow import Outcome
    from pipeline.domain.model import Payment, PaymentCommand, PaymentEvent

# The command was refused by a named rule, or what it asked for did not succeed.
EXIT_REFUSED = 1
# Nobody has answered yet.
EXIT_UNANSWERED = 3


def ask(
    type_: str,
    key: str,
    *,
    amount: str | None = None,
    currency: str | None = None,
    instrument_token: str | None = None,
    card_fingerprint: str | None = None,
    decision: str | None = None,
    gateway_reference: str | None = None,
    operation_id: str | None = None,
    dispute_id: str | None = None,
    gateway: str | None = None,
    evidence: str | None = None,
    override: str | None = None,
    business_date: str | None = None,
    card_scheme: str | None = None,
    finding: str | None = None,
    figures: str | None = None,
    command_id: str | None,
    reason: str | None,
    actor: str | None,
    wait_s: float | None,
    bootstrap_servers: str | None,
    prefix: str | None,
) -> None:
    """Publish one command, and with ``wait_s`` tell what became of it."""
    import getpass
    import time

    from pipeline.commands.payment_follow import REPEATED, TAKEN_BEFORE, PaymentReader, judged
    from pipeline.config import load_settings
    from pipeline.domain.command_memory import is_another, is_remembered
    from pipeline.domain.keys import record_key
    from pipeline.domain.model import PaymentCommand
    from pipeline.domain.money import parse_amount
    from pipeline.domain.validation import is_date
    from pipeline.record_codec import record_codec
    from producers.command_publisher import CommandPublisher, InvalidCommand, PublishError

    merchant_id, order_id = ids_of(key)
    if business_date is not None and not is_date(business_date):
        raise UserError(f"The business date {business_date!r} is not a date like 2026-11-23.")
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    catalogue = settings.catalogue()
    codec = record_codec(catalogue, settings.schema_registry_url)
    given = amount is not None and currency is not None
    amount_minor = parse_amount(amount or "", currency or "") if given else None
    derived = not command_id and type_ in DERIVED
    reader: PaymentReader | None = None
    try:
        unnamed = type_ in ("resolve", "review") and operation_id is None
        attempt: int | None = None
        if type_ == "review" and operation_id is not None:
            operation_id, attempt = review_named(operation_id)
        unread = finding is not None and figures is None
        if wait_s is not None or derived or unnamed or unread:
            reader = PaymentReader(
                settings.bootstrap_servers, catalogue, codec, record_key(merchant_id, order_id)
            )
        if amount is not None and currency is None:
            reader = reader or PaymentReader(
                settings.bootstrap_servers, catalogue, codec, record_key(merchant_id, order_id)
            )
            found = reader.catch_up()
            if found is None:
                raise UserError(
                    f"No payment {key} is in the table, so its currency is not known; "
                    "give --currency, or check both ids."
                )
            currency = found.currency
            amount_minor = parse_amount(amount, currency)
        if gateway_reference is not None and type_ == "resolve":
            reader = reader or PaymentReader(
                settings.bootstrap_servers, catalogue, codec, record_key(merchant_id, order_id)
            )
            resolved = reader.catch_up()

            def found_at(*ids: str) -> Payment | None:
                key = record_key(*ids)
                with PaymentReader(settings.bootstrap_servers, catalogue, codec, key) as other:
                    return other.catch_up()

            if resolved is not None:
                check_nobodys(resolved, gateway_reference, found_at)
        if unread:
            assert reader is not None
            figures = figures_now(reader.catch_up(), key)
            typer.echo(f"figures   {figures}")
        if unnamed and type_ == "review":
            assert reader is not None
            operation_id, attempt = review_now(reader.catch_up(), key)
        command = PaymentCommand(
            merchant_id=merchant_id,
            order_id=order_id,
            command_id=command_id or "",
            type=type_,
            submitted_at_ms=int(time.time() * 1000),
            amount_minor=amount_minor,
            currency=currency,
            instrument_token=instrument_token,
            card_fingerprint=card_fingerprint,
            decision=decision,
            gateway_reference=gateway_reference,
            operation_id=operation_id,
            dispute_id=dispute_id,
            gateway=gateway,
            evidence=evidence,
            reason=reason,
            actor=actor or getpass.getuser(),
            override=override,
            business_date=business_date,
            card_scheme=card_scheme,
            finding=finding,
            figures=figures,
            attempt=attempt,
        )
        command = with_id(command)
        repeated = False
        if reader is not None:
            known = reader.catch_up()
            if derived and known is not None:
                command = asked_anew(command, known, reader.seen.events)
            if unnamed and type_ == "resolve" and known is not None:
                check_single(known, reader.seen.events)
            if known is not None and is_remembered(known, command):
                repeated = not is_another(known, command)
                same = (
                    "this command already, and the same id has no effect"
                    if repeated
                    else "another command under this id, which is refused"
                )
                typer.echo(
                    f"The payment knows {same}; give another --command-id than "
                    f"{command.command_id} to ask again.",
                    err=True,
                )
        try:
            with CommandPublisher(
                settings.bootstrap_servers,
                topic=catalogue.name("payment-commands"),
                codec=codec,
                config={"log_level": 0},
            ) as publisher:
                publisher.check()
                publisher.publish(command)
        except InvalidCommand as error:
            raise UserError(f"The command was not published: {error}.") from error
        except PublishError as error:
            raise UserError(str(error)) from error
        typer.echo(f"published {_what(command)}")
        typer.echo(f"command   {command.command_id}")
        if wait_s is None or reader is None:
            if repeated:
                typer.echo(f"{REPEATED:<9} {TAKEN_BEFORE}")
            typer.echo(f"follow it paystream payment show {key}")
            if reader is None and command_id:
                typer.echo(
                    "If the payment has taken this command before, it has no effect now; "
                    "--wait tells what became of it.",
                    err=True,
                )
            return
        outcome = reader.follow(
            lambda seen: judged(seen, command, repeated=repeated),
            wait_s,
            lambda event: _tell(event, command),
        )
    finally:
        if reader is not None:
            reader.close()
    end(outcome, key, wait_s, reader.seen.payment)


def ids_of(key: str) -> tuple[str, str]:
    from pipeline.domain.keys import ID_PATTERN, valid_id

    merchant_id, _, order_id = key.partition(":")
    if not (valid_id(merchant_id) and valid_id(order_id)):
        raise UserError(
            f"{key!r} names no payment; write the merchant and the order, as in shop:1001 "
            f"(each {ID_PATTERN})."
        )
    return merchant_id, order_id


def end(outcome: Outcome | None, key: str, wait_s: float, payment: Payment | None) -> None:
    """Print the outcome and leave with its exit code. ``payment``: as it was seen last."""
    if outcome is None:
        stands = "" if payment is None else f" (the payment is {payment.status})"
        typer.echo(
            f"Not answered within {wait_s:g} s{stands}; `paystream payment show {key}` tells where "
            "it is.",
            err=True,
        )
        raise typer.Exit(EXIT_UNANSWERED)
    typer.echo(f"{outcome.kind:<9} {outcome.text}")
    if outcome.kind not in ("done", "repeated"):
        raise typer.Exit(EXIT_REFUSED)


def _tell(event: PaymentEvent, command: PaymentCommand) -> None:
    mine = event.operation_id == command.command_id
    reason = f", {event.reason}" if event.reason else ""
    typer.echo(f"  {'' if mine else '('}{event.type}{reason}{'' if mine else ')'}", err=True)


def tell_step(event: PaymentEvent) -> None:
    """What the payment has come to, for who waits."""
    typer.echo(f"  {event.type}{f', {event.reason}' if event.reason else ''}", err=True)


def _what(command: PaymentCommand) -> str:
    from pipeline.domain.money import format_amount

    amount = ""
    if command.amount_minor is not None and command.currency is not None:
        amount = f" of {format_amount(command.amount_minor, command.currency)}"
    decision = f" ({command.decision})" if command.decision else ""
    return f"{command.type}{decision}{amount} for {command.merchant_id}:{command.order_id}"
