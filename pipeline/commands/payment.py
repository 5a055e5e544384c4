"""``paystream payment ...``: what a person asks of one payment."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.commands.audit import (
    GatewayUrl,
    LedgerUrl,
    NoGateway,
    NoLedger,
    audit_sources,
    told_plainly,
)
from pipeline.commands.options import AsJson, BootstrapServers, Prefix
from pipeline.commands.payment_ask import ask, ids_of
from pipeline.commands.payment_options import (
    Actor,
    Amount,
    CommandId,
    Currency,
    Key,
    Reason,
    Wait,
)
from pipeline.commands.payment_words import (
    acknowledge_command,
    record_refund_command,
    resolve_command,
    resolve_dispute_command,
)
from pipeline.errors import UserError

payment_app = typer.Typer(
    help="Ask something of one payment, and see its whole history.",
    epilog="Example: paystream payment show shop-a:1001",
    no_args_is_help=True,
)


@payment_app.command("capture")
def capture_command(
    payment: Key,
    amount: Amount = None,
    currency: Currency = None,
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Capture an authorized payment, in whole or in part.

    Example:

    \b
      paystream payment capture shop:1001 --amount 12.50 --wait 30
    """
    ask(
        "capture",
        payment,
        amount=amount,
        currency=currency,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


@payment_app.command("cancel")
def cancel_command(
    payment: Key,
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Cancel a payment: charge no more, and void what is authorized.

    Example:

    \b
      paystream payment cancel shop:1001 --reason "customer called" --wait 30
    """
    ask(
        "cancel",
        payment,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


@payment_app.command("refund")
def refund_command(
    payment: Key,
    amount: Amount = None,
    currency: Currency = None,
    despite_dispute: Annotated[
        bool, typer.Option("--despite-dispute", help="Refund although a dispute is open.")
    ] = False,
    charge: Annotated[
        str | None,
        typer.Option(
            "--charge",
            metavar="REF",
            help="Which charge gives back, by the gateway's own id; default: the one that stands.",
        ),
    ] = None,
    business_date: Annotated[
        str | None,
        typer.Option("--business-date", help="YYYY-MM-DD it is booked under; default: the sale's."),
    ] = None,
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Give money back, in whole or in part, never more than its charge took.

    A payment that was charged twice has two charges; one refund is of one of them.

    Asking for the same refund again is the same refund, and is told as "repeated": give another
    --command-id (or --reason) for a second one of the same amount.

    Example:

    \b
      paystream payment refund shop:1001 --amount 5.00 --reason "one came broken" --wait 30
    """
    ask(
        "refund",
        payment,
        amount=amount,
        currency=currency,
        gateway_reference=charge,
        override="dispute" if despite_dispute else None,
        business_date=business_date,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


@payment_app.command("give-back")
def give_back_command(
    payment: Key,
    despite_dispute: Annotated[
        bool, typer.Option("--despite-dispute", help="Refund although a dispute is open.")
    ] = False,
    operation: Annotated[
        str | None,
        typer.Option(
            "--operation", metavar="ID", help="Which of several; default: all that is outstanding."
        ),
    ] = None,
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Order again what came too late and could not be given back: a refund, or a hold's void.

    Such money is given back by itself, and tried again while that may help. What its gateway
    refused for good, or too often, waits for this; `paystream payment show` names it. What waits
    for the end of a dispute is given back at once with --despite-dispute.

    Example:

    \b
      paystream payment give-back shop:1001 --reason "gateway says it works again" --wait 30
    """
    ask(
        "give_back",
        payment,
        operation_id=operation,
        override="dispute" if despite_dispute else None,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


@payment_app.command("retry")
def retry_command(
    payment: Key,
    token: Annotated[
        str,
        typer.Option("--token", help="Token of the other instrument; never a card number."),
    ],
    fingerprint: Annotated[
        str | None,
        typer.Option("--card-fingerprint", help="By which risk rules and caps know the card."),
    ] = None,
    card_scheme: Annotated[
        str | None,
        typer.Option("--card-scheme", help="Its card network, for example visa; for caps."),
    ] = None,
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Try a failed payment again, with another instrument.

    Risk rules look at it as they did at the order: it may be refused, or wait for a review.

    Example:

    \b
      paystream payment retry shop:1001 --token tok_other --wait 30
    """
    from pipeline.domain.card_numbers import is_card_number

    if is_card_number(token):
        raise UserError("The token is a card number; give the gateway's token for it instead.")
    ask(
        "retry",
        payment,
        instrument_token=token,
        card_fingerprint=fingerprint,
        card_scheme=card_scheme,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


for _name, _command in (
    ("resolve", resolve_command),
    ("resolve-dispute", resolve_dispute_command),
    ("record-refund", record_refund_command),
    ("acknowledge", acknowledge_command),
):
    payment_app.command(_name)(_command)


@payment_app.command("show")
def show_command(
    payment: Key,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
    gateway_url: GatewayUrl = None,
    no_ledger: NoLedger = False,
    no_gateway: NoGateway = False,
    as_json: AsJson = False,
) -> None:
    """Tell a payment's whole history from its topics.

    Amounts, every attempt and why it was made at its gateway, retries, inquiries, notifications,
    refunds, disputes, and the commands that wait.

    Exit code 0: found. 1: nobody knows this payment. 3: the broker is away.

    Example:

    \b
      paystream payment show shop:1001
    """
    from pipeline.audit.trace import trace
    from pipeline.commands.payment_story import story_json, story_lines

    merchant_id, order_id = ids_of(payment)
    with told_plainly():
        sources, codec = audit_sources(
            bootstrap_servers,
            prefix,
            ledger_url,
            gateway_url,
            no_ledger=no_ledger,
            no_gateway=no_gateway,
        )
        found = trace(
            sources,
            f"{merchant_id}:{order_id}",
            codec=codec,
            on_progress=lambda n: typer.echo(f"{n:,} records read ...", err=True),
        )
    if as_json:
        typer.echo(json.dumps(story_json(found), indent=2))
    else:
        for line in story_lines(found):
            typer.echo(line)
    if not found.hops:
        typer.echo(f"No record of {payment} is in the topics; check both ids.", err=True)
        raise typer.Exit(1)
