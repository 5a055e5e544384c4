"""``paystream review ...``: payments that wait for a person's word on their risk."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.commands.audit import audit_sources, told_plainly
from pipeline.commands.options import AsJson, BootstrapServers, Prefix
from pipeline.commands.payment_ask import ask
from pipeline.commands.payment_options import Actor, CommandId, Key, Reason, Wait

review_app = typer.Typer(
    help="Payments that wait for a person's word on their risk.",
    epilog="Example: paystream review list",
    no_args_is_help=True,
)


@review_app.command("list")
def review_list_command(
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Payments in review, the one whose review ends first at the top.

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
                        "ordered_at_ms": p.ordered_at_ms,
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
        ends = time_text(p.expires_at_ms) if p.expires_at_ms else "no end"
        of = "" if is_first_review(p) else f"  --operation {review_name(p)}"
        typer.echo(
            f"ends {ends}  {p.merchant_id}:{p.order_id}  "
            f"{format_amount(p.amount_minor, p.currency)}  {p.reason or ''}{of}"
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
        ask(
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
