"""Options that the commands about one payment share."""

from __future__ import annotations

from typing import Annotated

import typer

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
OrderWait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        min=0,
        metavar="SECONDS",
        help="Follow the order until its payment is made, failed or rejected, and print which.",
    ),
]
