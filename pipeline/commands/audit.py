"""``paystream verify`` and ``paystream trace``: what the whole log says, and what one order did."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import AsJson, BootstrapServers, Prefix
from pipeline.commands.output import reader_may_leave
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.audit.verify import Sources
    from schemas.codec import Codec

# 0, 1 and 2 are verdicts: whole, broken, still on its way.
EXIT_UNAVAILABLE = 3

LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger-url",
        envvar="PAYSTREAM_LEDGER_URL",
        help="The ledger's database, as sqlite:///FILE or postgresql+psycopg://...",
    ),
]
GatewayUrl = Annotated[
    str | None,
    typer.Option(
        "--gateway-url",
        envvar="PAYSTREAM_GATEWAY_URL",
        help="Gateways with books at /v1/books, http://host:port[,...].",
    ),
]
NoLedger = Annotated[bool, typer.Option("--no-ledger", help="Leave the ledger out.")]
NoGateway = Annotated[bool, typer.Option("--no-gateway", help="Leave the gateways' books out.")]


def verify_command(
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
    gateway_url: GatewayUrl = None,
    no_ledger: NoLedger = False,
    no_gateway: NoGateway = False,
    wait_s: Annotated[
        float,
        typer.Option("--wait", min=0, metavar="SECONDS", help="Wait for what is on its way."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Read everything and say whether the guarantees hold.

    Reads every topic from the beginning, the ledger and the gateways' books, and checks them
    against each other. Changes nothing and may run beside a live flow.

    Exit code 0: whole. 1: broken. 2: something is still on its way. 3: it could not be judged.

    Examples:

    \b
      paystream verify

    \b
      paystream verify --wait 60 --json

    \b
      paystream verify --bootstrap-servers kafka-1:9092 --prefix eu- --no-gateway
    """
    from pipeline.audit.render import report_lines
    from pipeline.audit.verify import verify
    from pipeline.interrupted_queries import heard_in_queries

    with told_plainly(), heard_in_queries():
        sources, codec = audit_sources(
            bootstrap_servers,
            prefix,
            ledger_url,
            gateway_url,
            no_ledger=no_ledger,
            no_gateway=no_gateway,
        )
        report = verify(
            sources,
            wait_s=wait_s,
            codec=codec,
            on_round=lambda r: typer.echo(
                f"waiting: {', '.join(f'{f.name} ({f.count})' for f in r.pending)}", err=True
            ),
        )
    with reader_may_leave():
        if as_json:
            typer.echo(json.dumps(report.to_json(), indent=2))
        else:
            for line in report_lines(report):
                typer.echo(line)
    raise typer.Exit(report.exit_code)


def trace_command(
    order: Annotated[str, typer.Argument(metavar="MERCHANT:ORDER", help="Which order.")],
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
    ledger_url: LedgerUrl = None,
    gateway_url: GatewayUrl = None,
    no_ledger: NoLedger = False,
    no_gateway: NoGateway = False,
    as_json: AsJson = False,
) -> None:
    """Follow one order through the topics, hop by hop, to its charge and its journal entry.

    Exit code 0: found. 1: nobody knows this order. 2: the name is no order's. 3: a server is away.

    Examples:

    \b
      paystream trace shop:1001

    \b
      paystream trace shop:1001 --json
    """
    from pipeline.audit.render import print_trace
    from pipeline.audit.trace import trace
    from pipeline.interrupted_queries import heard_in_queries

    merchant_id, separator, order_id = order.partition(":")
    if not (merchant_id and separator and order_id):
        typer.echo(
            f"{order!r} names no order; write the merchant and the order, as in shop:1001.",
            err=True,
        )
        raise typer.Exit(UserError.exit_code)
    with told_plainly(), heard_in_queries():
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
            order,
            codec=codec,
            on_progress=lambda n: typer.echo(f"{n:,} records read ...", err=True),
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    if not found.hops:
        typer.echo(
            f"No record of the order {order} is in the topics"
            + (f" with the prefix {sources.prefix!r}" if sources.prefix else "")
            + f" (partition {found.partition}); check the merchant's and the order's id.",
            err=True,
        )
        raise typer.Exit(1)
    if not as_json:
        print_trace(found, pretty=sys.stdout.isatty())


def audit_sources(
    bootstrap_servers: str | None,
    prefix: str | None,
    ledger_url: str | None,
    gateway_url: str | None,
    *,
    no_ledger: bool,
    no_gateway: bool,
) -> tuple[Sources, Codec]:
    """What to audit and how its records are read: options before the environment, the file and
    the flow that runs here."""
    from pipeline.audit.verify import Sources
    from pipeline.config import load_settings
    from pipeline.record_codec import record_codec

    settings = load_settings(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=prefix,
        ledger_url=ledger_url,
        gateway_url=gateway_url,
    )
    # An address that was named goes before the gateways of the configuration.
    named = gateway_url is not None
    urls = settings.gateway_url.split(",") if named else settings.gateway_urls()
    sources = Sources(
        settings.bootstrap_servers,
        settings.topic_prefix,
        None if no_ledger else settings.books_url(),
        () if no_gateway else tuple(url.strip() for url in urls if url.strip()),
    )
    return sources, record_codec(settings.catalogue(), settings.schema_registry_url)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Print what a person can do something about, and leave with a code that is no verdict."""
    try:
        yield
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_UNAVAILABLE) from None
    except typer.Exit:
        raise
    except Exception:
        # A fault of the auditor is no verdict about the flow; 1 would read as "broken".
        traceback.print_exc()
        raise typer.Exit(EXIT_UNAVAILABLE) from None
