"""A person's word about one payment: how an outcome or a dispute ended, what was paid otherwise,
and what is known to be so. Each needs evidence, and is kept with a name.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.options import BootstrapServers, Prefix
from pipeline.commands.payment_ask import ask
from pipeline.commands.payment_options import (
    Actor,
    Amount,
    CommandId,
    Currency,
    Key,
    Reason,
    Wait,
)
from pipeline.errors import UserError


def resolve_command(
    payment: Key,
    charged: Annotated[
        str | None,
        typer.Option("--charged", metavar="REF", help="It was charged: the gateway's own id."),
    ] = None,
    not_charged: Annotated[
        bool, typer.Option("--not-charged", help="It was not charged, and will not be.")
    ] = False,
    returned: Annotated[
        bool,
        typer.Option(
            "--returned",
            help="The refund --operation, known as made, came back; its gateway does not say so.",
        ),
    ] = False,
    operation: Annotated[
        str | None,
        typer.Option(
            "--operation",
            metavar="ID",
            help="Which operation; needed when the outcome of several is unknown.",
        ),
    ] = None,
    amount: Annotated[
        str | None,
        typer.Option(
            "--amount",
            help="What a charge took, where that is not what was asked; in units of the currency.",
        ),
    ] = None,
    currency: Currency = None,
    evidence: Annotated[
        str | None, typer.Option("--evidence", help="What proves it; kept with your name.")
    ] = None,
    despite_id: Annotated[
        bool,
        typer.Option(
            "--despite-id",
            help="Book it although the payment has REF of another operation, or another id of "
            "this one.",
        ),
    ] = False,
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Say what became of an outcome that no gateway could tell.

    Say only what you have seen in the gateway's own books. A payment said not to be charged may be
    tried again. `paystream payment show` lists the operations whose outcome is unknown.

    An id that the payment knows as another operation's is refused: mostly it was copied from the
    wrong line. Where the gateway has one id for both, and its books show both movements, say so
    with --despite-id. Never say --not-charged of money that moved.

    A refund for which there is no room stands beside one that is known as made and came back:
    say so of that one with --returned, then resolve the other.

    Examples:

    \b
      paystream payment resolve shop:1001 --charged ch_123 --evidence "gateway's dashboard"

    \b
      paystream payment resolve shop:1001 --not-charged --evidence "support ticket 4711"

    \b
      paystream payment resolve shop:1001 --operation r-7 --charged re_9 --evidence "their report"
    """
    if (charged is not None) + not_charged + returned != 1:
        raise UserError("Give one of --charged REF and --not-charged, or --returned.")
    if returned and operation is None:
        raise UserError("Name the refund that came back with --operation.")
    if charged is None and amount is not None:
        raise UserError("--amount says what was charged; leave it out without --charged.")
    if charged is None and despite_id:
        raise UserError("--despite-id is about the id of a charge; leave it out without --charged.")
    if not (evidence or "").strip():
        raise UserError("Say what proves it with --evidence.")
    ask(
        "resolve",
        payment,
        decision="returned" if returned else "not_charged" if not_charged else "charged",
        amount=amount,
        currency=currency,
        operation_id=operation,
        gateway_reference=charged,
        evidence=evidence,
        override="reference" if despite_id else None,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


def resolve_dispute_command(
    payment: Key,
    dispute: Annotated[
        str, typer.Option("--dispute", metavar="ID", help="The gateway's own id of the dispute.")
    ],
    won: Annotated[bool, typer.Option("--won", help="The money is ours again.")] = False,
    lost: Annotated[bool, typer.Option("--lost", help="The customer keeps it.")] = False,
    evidence: Annotated[
        str | None, typer.Option("--evidence", help="What proves it; kept with your name.")
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option("--gateway", help="Where it is; needed when two gateways use the same id."),
    ] = None,
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Say how a dispute ended that its gateway does not tell the end of.

    Say only what you have seen in the gateway's own books: the ledger follows it. What the gateway
    tells later goes before it.

    Example:

    \b
      paystream payment resolve-dispute shop:1 --dispute dp_7 --won --evidence "letter of 3 May"
    """
    if won == lost:
        raise UserError("Give one of --won and --lost.")
    if not (evidence or "").strip():
        raise UserError("Say what proves it with --evidence.")
    ask(
        "resolve_dispute",
        payment,
        decision="won" if won else "lost",
        dispute_id=dispute,
        gateway=gateway,
        evidence=evidence,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


def record_refund_command(
    payment: Key,
    reference: Annotated[
        str,
        typer.Option("--reference", metavar="REF", help="What the transfer is called at the bank."),
    ],
    evidence: Annotated[
        str | None, typer.Option("--evidence", help="What proves it; kept with your name.")
    ] = None,
    operation: Annotated[
        str | None,
        typer.Option(
            "--operation",
            metavar="ID",
            help="Which refund it stands for; needed when several are owed.",
        ),
    ] = None,
    amount: Amount = None,
    currency: Currency = None,
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
    """Record a refund that was made outside the gateway, as by bank transfer.

    For what came too late and its gateway will not refund: it is owed no more, and verify names it
    no more. The ledger takes it from what the merchant has available and keeps it in suspense
    until an entry by hand says who paid. It is not taken back.

    Example:

    \b
      paystream payment record-refund shop:1001 --reference TRF-88 --evidence "statement of 3 May"
    """
    if not reference.strip():
        raise UserError("Say with --reference what the transfer is called at the bank.")
    if not (evidence or "").strip():
        raise UserError("Say what proves it with --evidence.")
    ask(
        "record_refund",
        payment,
        amount=amount,
        currency=currency,
        operation_id=operation,
        gateway_reference=reference,
        evidence=evidence,
        business_date=business_date,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


def acknowledge_command(
    payment: Key,
    evidence: Annotated[
        str | None, typer.Option("--evidence", help="What you have seen; kept with your name.")
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option("--figures", help="As verify prints them; default: the payment's of now."),
    ] = None,
    finding: Annotated[
        str, typer.Option("--finding", help="Which finding of verify.")
    ] = "amounts_out_of_order",
    command_id: CommandId = None,
    reason: Reason = None,
    actor: Actor = None,
    wait_s: Wait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Acknowledge a finding of verify about one payment, with its figures of now.

    For what stays true whatever is done, as captures beyond an authorization that were given back.
    verify goes on showing it, as acknowledged, and ends with 0. Once the payment's amounts change
    it is a finding again. --reason and --evidence are needed, and are kept for ever.

    Example:

    \b
      paystream payment acknowledge shop:1001 --reason "given back" --evidence "ticket 4711"
    """
    if not (evidence or "").strip() or not (reason or "").strip():
        raise UserError("Say why with --reason, and what you have seen with --evidence.")
    ask(
        "acknowledge",
        payment,
        finding=finding,
        figures=figures,
        evidence=evidence,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )
