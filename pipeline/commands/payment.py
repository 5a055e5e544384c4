"""``paystream payment ...`` and ``paystream review ...``: what a person asks of one payment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

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
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.commands.payment_follow import Outcome
    from pipeline.domain.model import Payment, PaymentCommand, PaymentEvent

# The command was refused by a named rule, or what it asked for did not succeed.
EXIT_REFUSED = 1
# Nobody has answered yet.
EXIT_UNANSWERED = 3

# What moves money by itself, so that the same line typed twice has to be one command.
_DERIVED = frozenset({"capture", "refund", "retry", "record_refund"})
# Begins the ids that resolutions get here.
_RESOLVE_ID = "resolve-"

payment_app = typer.Typer(
    help="Ask something of one payment, and see its whole history.",
    epilog="Example: paystream payment show shop-a:1001",
    no_args_is_help=True,
)
review_app = typer.Typer(
    help="Payments that wait for a person's word on their risk.",
    epilog="Example: paystream review list",
    no_args_is_help=True,
)

Key = Annotated[str, typer.Argument(metavar="MERCHANT:ORDER", help="Which payment.")]
Amount = Annotated[
    str | None,
    typer.Option("--amount", help="In units of the currency, as 12.50; default: all that is left."),
]
Currency = Annotated[
    str | None,
    typer.Option("--currency", help="ISO 4217 code; default: the payment's, read from its table."),
]
CommandId = Annotated[
    str | None,
    typer.Option(
        "--command-id",
        help="The same id again has no effect. Default: derived from what is asked for capture, "
        "refund, retry and record-refund, else a new one; printed.",
    ),
]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; kept in the payment's history.")]
Actor = Annotated[
    str | None,
    typer.Option("--actor", "--by", help="Who asks; default: the user who runs this."),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        min=0,
        metavar="SECONDS",
        help="Follow the payment until the command is answered, and print the outcome.",
    ),
]


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
    _ask(
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
    _ask(
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

    Asking for the same refund again is the same refund: give another --command-id (or --reason) for
    a second one of the same amount.

    Example:

    \b
      paystream payment refund shop:1001 --amount 5.00 --reason "one came broken" --wait 30
    """
    _ask(
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
    _ask(
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


@payment_app.command("record-refund")
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
    _ask(
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
    _ask(
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


@payment_app.command("resolve")
def resolve_command(
    payment: Key,
    charged: Annotated[
        str | None,
        typer.Option("--charged", metavar="REF", help="It was charged: the gateway's own id."),
    ] = None,
    not_charged: Annotated[
        bool, typer.Option("--not-charged", help="It was not charged, and will not be.")
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

    Examples:

    \b
      paystream payment resolve shop:1001 --charged ch_123 --evidence "gateway's dashboard"

    \b
      paystream payment resolve shop:1001 --not-charged --evidence "support ticket 4711"

    \b
      paystream payment resolve shop:1001 --operation r-7 --charged re_9 --evidence "their report"
    """
    if (charged is None) == (not not_charged):
        raise UserError("Give one of --charged REF and --not-charged.")
    if not_charged and amount is not None:
        raise UserError("--amount says what was charged; leave it out with --not-charged.")
    if not (evidence or "").strip():
        raise UserError("Say what proves it with --evidence.")
    _ask(
        "resolve",
        payment,
        decision="not_charged" if charged is None else "charged",
        amount=amount,
        currency=currency,
        operation_id=operation,
        gateway_reference=charged,
        evidence=evidence,
        command_id=command_id,
        reason=reason,
        actor=actor,
        wait_s=wait_s,
        bootstrap_servers=bootstrap_servers,
        prefix=prefix,
    )


@payment_app.command("resolve-dispute")
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
    _ask(
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


@payment_app.command("acknowledge")
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
    _ask(
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

    merchant_id, order_id = _ids(payment)
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


@review_app.command("list")
def review_list_command(
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Payments in review, the one that waits longest first.

    Example:

    \b
      paystream review list
    """
    from pipeline.commands.payment_story import in_review
    from pipeline.domain.money import format_amount
    from pipeline.domain.reviews import is_first_review, review_name

    with told_plainly():
        sources, codec = audit_sources(
            bootstrap_servers, prefix, None, None, no_ledger=True, no_gateway=True
        )
        found = in_review(sources, codec)
    if as_json:
        typer.echo(
            json.dumps(
                [
                    {
                        "merchant_id": p.merchant_id,
                        "order_id": p.order_id,
                        "amount_minor": p.amount_minor,
                        "currency": p.currency,
                        "customer_id": p.customer_id,
                        "country": p.country,
                        "operation": review_name(p),
                        "reason": p.reason,
                        "since_ms": p.updated_at_ms,
                        "ends_at_ms": p.expires_at_ms,
                    }
                    for p in found
                ],
                indent=2,
            )
        )
        return
    from pipeline.audit.render import time_text

    for p in found:
        ends = f"  ends {time_text(p.expires_at_ms)}" if p.expires_at_ms else ""
        of = "" if is_first_review(p) else f"  --operation {review_name(p)}"
        typer.echo(
            f"{time_text(p.updated_at_ms)}  {p.merchant_id}:{p.order_id}  "
            f"{format_amount(p.amount_minor, p.currency)}  {p.reason or ''}{ends}{of}"
        )
    typer.echo(f"{len(found)} in review")


def _decides(decision: str, told: str, example: str) -> None:
    """Make the command of one decision about a payment in review."""

    def command(
        payment: Key,
        operation: Annotated[
            str | None,
            typer.Option(
                "--operation",
                metavar="ID",
                help="What is in review, as `review list` names it; needed for a retry, and for an "
                "order that is in review again.",
            ),
        ] = None,
        command_id: CommandId = None,
        reason: Reason = None,
        actor: Actor = None,
        wait_s: Wait = None,
        bootstrap_servers: BootstrapServers = None,
        prefix: Prefix = None,
    ) -> None:
        _ask(
            "review",
            payment,
            decision=decision,
            operation_id=operation,
            command_id=command_id,
            reason=reason,
            actor=actor,
            wait_s=wait_s,
            bootstrap_servers=bootstrap_servers,
            prefix=prefix,
        )

    command.__doc__ = f"{told}\n\nExample:\n\n\b\n  paystream review {decision} {example}"
    review_app.command(decision)(command)


_decides("approve", "Let a payment in review be charged.", 'shop:1001 --reason "known customer"')
_decides(
    "deny", "Reject a payment in review: nothing is charged.", 'shop:1001 --reason "stolen card"'
)


def _ask(
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

    from pipeline.commands.payment_follow import PaymentReader, judged
    from pipeline.config import load_settings
    from pipeline.domain.command_memory import is_another, is_remembered
    from pipeline.domain.keys import record_key
    from pipeline.domain.model import PaymentCommand
    from pipeline.domain.money import parse_amount
    from pipeline.domain.validation import is_date
    from pipeline.record_codec import record_codec
    from producers.command_publisher import CommandPublisher, InvalidCommand, PublishError

    merchant_id, order_id = _ids(key)
    if business_date is not None and not is_date(business_date):
        raise UserError(f"The business date {business_date!r} is not a date like 2026-11-23.")
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    catalogue = settings.catalogue()
    codec = record_codec(catalogue, settings.schema_registry_url)
    reader: PaymentReader | None = None
    try:
        unnamed = type_ in ("resolve", "review") and operation_id is None
        attempt: int | None = None
        if type_ == "review" and operation_id is not None:
            operation_id, attempt = _review_named(operation_id)
        unread = finding is not None and figures is None
        if wait_s is not None or unnamed or unread or (amount is not None and currency is None):
            reader = PaymentReader(
                settings.bootstrap_servers, catalogue, codec, record_key(merchant_id, order_id)
            )
        amount_minor = None
        if amount is not None:
            if currency is None:
                assert reader is not None
                found = reader.catch_up()
                if found is None:
                    raise UserError(
                        f"No payment {key} is in the table, so its currency is not known; "
                        "give --currency, or check both ids."
                    )
                currency = found.currency
            amount_minor = parse_amount(amount, currency)
        if unread:
            assert reader is not None
            figures = _figures_now(reader.catch_up(), key)
            typer.echo(f"figures   {figures}")
        if unnamed and type_ == "review":
            assert reader is not None
            operation_id, attempt = _review_now(reader.catch_up(), key)
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
        command = _with_id(command)
        repeated = False
        if reader is not None:
            known = reader.catch_up()
            if unnamed and type_ == "resolve" and known is not None:
                _check_single(known)
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
            typer.echo(f"follow it paystream payment show {key}")
            if reader is None and (command_id or type_ in _DERIVED):
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
    _end(outcome, key, wait_s)


def _end(outcome: Outcome | None, key: str, wait_s: float) -> None:
    """Print the outcome and leave with its exit code."""
    if outcome is None:
        typer.echo(
            f"Not answered within {wait_s:g} s; `paystream payment show {key}` tells where it is.",
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


def _with_id(command: PaymentCommand) -> PaymentCommand:
    """The command with its id: the given one, else, where money is moved, derived from all that is
    asked, and anything else has a new one.

    Not from the time or the person: typing the same line again must not give money back twice. But
    a cancel, a resolution or a review typed again is about how the payment stands by now, and is
    judged by that, where under the id of before it would have no effect. That a resolution means
    what it meant the first time is seen to by ``_check_single``.
    """
    from hashlib import sha256
    from secrets import token_hex

    from msgspec.structs import replace

    if command.command_id:
        return command
    if command.type not in _DERIVED:
        return replace(command, command_id=f"{command.type}-{token_hex(8)}")
    named = (
        ("operation", command.operation_id),
        ("dispute", command.dispute_id),
        ("gateway", command.gateway),
        ("card_fingerprint", command.card_fingerprint),
        ("card_scheme", command.card_scheme),
        ("finding", command.finding),
        ("figures", command.figures),
    )
    asked = (
        command.merchant_id,
        command.order_id,
        command.type,
        command.amount_minor,
        command.currency,
        command.instrument_token,
        command.decision,
        command.gateway_reference,
        command.evidence,
        command.reason,
        command.override,
        command.business_date,
        # Only what is given: what an older version asked for keeps its id.
        *(each for each in named if each[1] is not None),
    )
    digest = sha256(json.dumps(asked).encode()).hexdigest()
    return replace(command, command_id=f"{command.type}-{digest[:16]}")


def _check_single(payment: Payment) -> None:
    """Refuse to choose for a person what it is that he resolves.

    Also where only one is unknown: the same line, typed again later, would decide about another.
    """
    from pipeline.domain.commands import choices, unknown_attempts

    unknown = unknown_attempts(payment)
    if unknown and len({a.operation_id for a in payment.attempts}) > 1:
        raise UserError(
            "The payment has several operations; name the one that you resolve with --operation: "
            f"{choices(payment)}."
        )
    if unknown and any(each.startswith(_RESOLVE_ID) for each in payment.command_ids):
        raise UserError(
            "Something was resolved in this payment before; name what is meant now with "
            f"--operation: {choices(payment)}."
        )


def _review_named(operation: str) -> tuple[str, int]:
    """An operation and its attempt, as `review list` names them: ID or ID:ATTEMPT."""
    operation_id, _, number = operation.partition(":")
    if not number:
        return operation_id, 1
    if not number.isascii() or not number.isdigit() or len(number) > 4:
        raise UserError(f"{operation!r} names no review; `paystream review list` names them.")
    return operation_id, int(number)


def _review_now(payment: Payment | None, key: str) -> tuple[str, int]:
    """What is in review, where nobody can have decided about another one by the same line; what
    comes later has to be named."""
    from pipeline.domain.lifecycle import RISK_REVIEW
    from pipeline.domain.reviews import is_first_review, review_name, reviewed

    if payment is None or payment.status != RISK_REVIEW:
        state = "is not known" if payment is None else f"is {payment.status}"
        raise UserError(f"{key} is not in review: it {state}. See `paystream review list`.")
    if not is_first_review(payment):
        raise UserError(
            f"{key} is in review for {review_name(payment)}, not for its order alone: look at it, "
            f"and name it with --operation {review_name(payment)}."
        )
    return reviewed(payment)


def _figures_now(payment: Payment | None, key: str) -> str:
    """What is found of the payment as the table has it."""
    from pipeline.domain.findings import amounts_out_of_order

    figures = None if payment is None else amounts_out_of_order(payment)
    if figures is None:
        raise UserError(
            f"No amounts of {key} are out of order, so there is nothing to acknowledge; "
            "check both ids, or look again with `paystream verify`."
        )
    return figures


def _what(command: PaymentCommand) -> str:
    from pipeline.domain.money import format_amount

    amount = ""
    if command.amount_minor is not None and command.currency is not None:
        amount = f" of {format_amount(command.amount_minor, command.currency)}"
    decision = f" ({command.decision})" if command.decision else ""
    return f"{command.type}{decision}{amount} for {command.merchant_id}:{command.order_id}"


def _ids(key: str) -> tuple[str, str]:
    from pipeline.domain.keys import ID_PATTERN, valid_id

    merchant_id, _, order_id = key.partition(":")
    if not (valid_id(merchant_id) and valid_id(order_id)):
        raise UserError(
            f"{key!r} names no payment; write the merchant and the order, as in shop:1001 "
            f"(each {ID_PATTERN})."
        )
    return merchant_id, order_id
