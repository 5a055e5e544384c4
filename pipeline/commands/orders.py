"""``paystream orders import`` and ``paystream order submit``: orders into the flow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import BootstrapServers, Prefix
from pipeline.commands.payment_options import OrderWait
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.commands.payment_follow import PaymentReader
    from pipeline.domain.model import Order, PaymentCommand
    from producers.cancellations import GivenBack
    from producers.order_file import OrderFile, Problem
    from producers.publisher import Publisher

# Some lines of the file were bad, the others were published. 2 is a wrong file or option.
EXIT_PARTLY = 1
# More than a screen of problems helps nobody; the count says how many there are.
PROBLEMS_SHOWN_MAX = 50
# A file that is published sooner needs no progress bar.
PROGRESS_AFTER_S = 2.0

orders_app = typer.Typer(
    help="Publish the orders of a file.",
    epilog="Example: paystream orders import orders.jsonl --dry-run",
    no_args_is_help=True,
)
order_app = typer.Typer(
    help="Publish one order.",
    epilog="Example: paystream order submit --merchant shop-a --order-id 1001 --amount 12.50 "
    "--currency GBP --token tok_ok",
    no_args_is_help=True,
)


@orders_app.callback()
def _orders() -> None:
    """Publish the orders of a file."""


@order_app.callback()
def _order() -> None:
    """Publish one order."""


@orders_app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="Invoices as CSV, or orders as JSON Lines.")],
    merchant: Annotated[
        str, typer.Option("--merchant", help="Merchant id of the invoices in a CSV file.")
    ] = "online-retail",
    order_prefix: Annotated[
        str, typer.Option("--order-prefix", help="Put before every order id.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and report; publish nothing.")
    ] = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Publish the orders of FILE; importing it again changes nothing.

    The lines of cancellation invoices are published after the orders, as commands: a refund where
    the sale they cancel is known (same customer and stock code, an earlier invoice, enough sold),
    else a credit that is booked and held.

    Lines that cannot be taken are named and the others imported; an invoice with a bad line is
    left out whole, as are the invoices of the lines close to it. Exit code 0: everything was
    imported. 1: some lines were not. 2: nothing was, because the file, an option or the cluster is
    wrong.

    Examples:

    \b
      paystream orders import invoices.csv --merchant online-retail

    \b
      paystream orders import orders.jsonl --order-prefix 2026-11- --dry-run
    """
    found = _read(file, merchant, order_prefix)
    show_problems(file, found.problems, PROBLEMS_SHOWN_MAX)
    if not (found.orders or getattr(found, "cancellations", ())):
        raise UserError(_nothing_in(file, found))
    wanted = _given_back(found)
    given = _to_send(file, wanted)
    refused, refused_commands = 0, len(wanted.commands) - len(given.commands)
    if not dry_run:
        # Both topics are looked for before anything is published.
        asks = _Publishing(bootstrap_servers, prefix, commands=True) if given.commands else None
        with _Publishing(bootstrap_servers, prefix) as publisher:
            refused = _publish(publisher, file, found.orders, "orders", found.line_numbers)
        # After the orders: a refund that overtakes its order would have to wait for it.
        if asks is not None:
            with asks as publisher:
                refused_commands += _publish(publisher, file, given.commands, "commands")
    nouns = len(found.orders) + len(wanted.commands)
    if nouns and refused + refused_commands == nouns:
        would = "would be" if dry_run else "was"
        raise UserError(f"no order of {file} {would} published; the reasons are above.")
    for line in _summary(found, given, refused, refused_commands, dry_run=dry_run):
        typer.echo(line)
    if found.problems or refused or refused_commands:
        raise typer.Exit(EXIT_PARTLY)


@order_app.command("submit")
def submit_command(
    merchant: Annotated[str, typer.Option("--merchant", help="Merchant id.")],
    order_id: Annotated[str, typer.Option("--order-id", help="The merchant's id of the order.")],
    amount: Annotated[
        str, typer.Option("--amount", help="In units of the currency, for example 12.50.")
    ],
    currency: Annotated[str, typer.Option("--currency", help="ISO 4217 code, for example GBP.")],
    token: Annotated[
        str, typer.Option("--token", help="Token of the payment instrument; never a card number.")
    ],
    customer: Annotated[
        str | None, typer.Option("--customer", help="The merchant's id of the customer.")
    ] = None,
    country: Annotated[str | None, typer.Option("--country", help="Where the customer is.")] = None,
    card_fingerprint: Annotated[
        str | None,
        typer.Option(
            "--card-fingerprint", help="The same for the same card; for risk rules and caps."
        ),
    ] = None,
    card_scheme: Annotated[
        str | None,
        typer.Option("--card-scheme", help="Its card network, for example visa; for caps."),
    ] = None,
    business_date: Annotated[
        str | None, typer.Option("--business-date", help="YYYY-MM-DD; default: today (UTC).")
    ] = None,
    wait_s: OrderWait = None,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Publish one order and print its payment id; the same order again is the same payment.

    Whether it may be paid is decided by the flow: --wait tells. Exit code 0: published; with
    --wait: done, or repeated (the same order was taken before). 1: with --wait: rejected, or the
    payment failed. 2: nothing was published. 3: with --wait: not answered yet.

    Example:

    \b
      paystream order submit --merchant shop-a --order-id 1001 --amount 12.50 --currency GBP \
--token tok_ok --wait 30
    """
    import time
    from contextlib import ExitStack

    from pipeline.commands.order_follow import is_known, judged_order
    from pipeline.commands.payment_ask import end, tell_step
    from pipeline.domain.card_numbers import is_card_number
    from pipeline.domain.ids import payment_id
    from pipeline.domain.model import Order
    from pipeline.domain.money import format_amount, parse_amount
    from pipeline.domain.validation import is_date
    from producers.order_publisher import InvalidOrder

    amount_minor = parse_amount(amount, currency)
    if is_card_number(token):
        raise UserError("The token is a card number; give the gateway's token for it instead.")
    if business_date is not None and not is_date(business_date):
        raise UserError(f"The business date {business_date!r} is not a date like 2026-11-23.")
    now = time.time()
    order = Order(
        merchant_id=merchant,
        order_id=order_id,
        amount_minor=amount_minor,
        currency=currency,
        instrument_token=token,
        business_date=business_date or time.strftime("%Y-%m-%d", time.gmtime(now)),
        submitted_at_ms=int(now * 1000),
        customer_id=customer,
        country=country,
        card_fingerprint=card_fingerprint,
        card_scheme=card_scheme,
    )
    publishing = _Publishing(bootstrap_servers, prefix)
    with ExitStack() as opened:
        reader, repeated = None, False
        if wait_s is not None:
            reader = opened.enter_context(publishing.reader(merchant, order_id))
            repeated = is_known(reader.catch_up(), order)
        with publishing as publisher:
            try:
                publisher.publish(order)
            except InvalidOrder as error:
                raise UserError(f"The order was not published: {error}.") from error
        typer.echo(f"published {merchant}:{order_id}, {format_amount(amount_minor, currency)}")
        typer.echo(f"payment   {payment_id(merchant, order_id)}")
        if wait_s is None or reader is None:
            typer.echo(f"follow it paystream trace {merchant}:{order_id}")
            return
        outcome = reader.follow(
            lambda seen: judged_order(seen, order, repeated=repeated), wait_s, tell_step
        )
    end(outcome, f"{merchant}:{order_id}", wait_s, reader.seen.payment)


def show_problems(file: Path, problems: Sequence[Problem], shown_max: int) -> None:
    """Name what was not taken by line, and how many more there are."""
    for problem in problems[:shown_max]:
        typer.echo(f"{file}:{problem.line_number}: {problem.reason}", err=True)
    more = len(problems) - shown_max
    if more > 0:
        typer.echo(f"... and {more} more problems", err=True)


def _nothing_in(file: Path, found: OrderFile) -> str:
    if not found.problems:
        return f"{file} holds no orders; there is nothing to import."
    bad = found.bad_line_count
    why = f"{bad:,} of its lines are bad" if bad else "no invoice of it can be taken"
    return f"{file} holds no order that can be published ({why}; the reasons are above)."


def _read(file: Path, merchant: str, order_prefix: str) -> OrderFile:
    import time

    from pipeline.domain.keys import ID_PATTERN, valid_id
    from producers.invoice_csv import read_invoices
    from producers.order_file import detect_format, read_raw
    from producers.order_jsonl import read_orders

    if order_prefix and not valid_id(order_prefix):
        raise UserError(f"The order prefix {order_prefix!r} must match {ID_PATTERN}.")
    now_ms = int(time.time() * 1000)
    raw = read_raw(file)
    if detect_format(file, raw) == "invoice-csv":
        return read_invoices(
            file, now_ms=now_ms, merchant_id=merchant, prefix=order_prefix, raw=raw
        )
    return read_orders(file, now_ms=now_ms, prefix=order_prefix, raw=raw)


def _given_back(found: OrderFile) -> GivenBack:
    import time

    from producers.cancellations import GivenBack, given_back
    from producers.invoice_csv import InvoiceFile

    if not isinstance(found, InvoiceFile):
        return GivenBack()
    return given_back(found, now_ms=int(time.time() * 1000))


def _to_send(file: Path, given: GivenBack) -> GivenBack:
    """Without the commands that hold a card number, which are named; orders were looked at when
    they were read."""
    from pipeline.domain.card_numbers import fields_not_to_send
    from producers.cancellations import GivenBack
    from producers.command_publisher import CardNumberInCommand

    def may_go(command: PaymentCommand) -> bool:
        fields = fields_not_to_send(command)
        if fields:
            typer.echo(f"{file}: {CardNumberInCommand(command.command_id, fields)}", err=True)
        return not fields

    return GivenBack(tuple(filter(may_go, given.refunds)), tuple(filter(may_go, given.credits)))


class _Publishing:
    """A publisher that has seen its topic; what goes wrong with it becomes a UserError."""

    def __init__(
        self, bootstrap_servers: str | None, prefix: str | None, *, commands: bool = False
    ) -> None:
        from pipeline.config import load_settings
        from pipeline.record_codec import record_codec
        from producers.command_publisher import CommandPublisher
        from producers.order_publisher import OrderPublisher

        settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
        self._bootstrap_servers = settings.bootstrap_servers
        self._catalogue = catalogue = settings.catalogue()
        self._codec = record_codec(catalogue, settings.schema_registry_url)
        publisher: type[Publisher[Any]] = CommandPublisher if commands else OrderPublisher
        self._publisher = publisher(
            settings.bootstrap_servers,
            topic=catalogue.name("payment-commands" if commands else "orders"),
            client_id="paystream-import",
            codec=self._codec,
            # librdkafka's own lines would repeat what the error says.
            config={"log_level": 0},
        )
        self._publisher.check()

    def reader(self, merchant_id: str, order_id: str) -> PaymentReader:
        """Of what becomes of one order."""
        from pipeline.commands.payment_ask import ids_of
        from pipeline.commands.payment_follow import PaymentReader
        from pipeline.domain.keys import record_key

        key = record_key(*ids_of(f"{merchant_id}:{order_id}"))
        return PaymentReader(self._bootstrap_servers, self._catalogue, self._codec, key)

    def __enter__(self) -> Publisher[Any]:
        return self._publisher.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from producers.order_publisher import PublishError

        try:
            self._publisher.__exit__(None if error is None else type(error), error, None)
        except PublishError as failed:
            raise UserError(str(failed)) from failed
        if isinstance(error, PublishError):
            raise UserError(str(error)) from error


def _publish(
    publisher: Publisher[Any],
    file: Path,
    nouns: tuple[Order, ...] | tuple[PaymentCommand, ...],
    name: str,
    line_numbers: Sequence[int] = (),
) -> int:
    """Publish all; returns how many could not become a record."""
    import sys
    import time

    from producers.publisher import InvalidRecord

    refused = 0
    started_s = time.monotonic()
    progress = None
    try:
        for done, noun in enumerate(nouns):
            if done % 500 == 0 and sys.stderr.isatty():
                if progress is None and time.monotonic() - started_s > PROGRESS_AFTER_S:
                    progress = _Progress(len(nouns), name)
                if progress is not None:
                    progress.show(done)
            try:
                publisher.publish(noun)
            except InvalidRecord as error:
                refused += 1
                at = f"{file}:{line_numbers[done]}" if line_numbers else f"{file}"
                typer.echo(f"{at}: {error}", err=True)
    finally:
        if progress is not None:
            progress.close()
    publisher.flush()
    return refused


class _Progress:
    """A bar on a terminal's error stream, gone when done."""

    def __init__(self, total: int, name: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(f"publishing {name}", total=total)
        self._bar.start()

    def show(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def close(self) -> None:
        self._bar.stop()


def _summary(
    found: OrderFile, given: GivenBack, refused: int, refused_commands: int, *, dry_run: bool
) -> list[str]:
    from collections import Counter

    from pipeline.domain.money import format_amount
    from producers.invoice_csv import InvoiceFile

    sums: Counter[str] = Counter()
    for order in found.orders:
        sums[order.currency] += order.amount_minor
    total = ", ".join(format_amount(amount, currency) for currency, amount in sorted(sums.items()))
    zero = sum(order.amount_minor == 0 for order in found.orders)
    count = len(found.orders) - refused
    lines = [
        f"{'would publish' if dry_run else 'published'} {count} orders of {found.line_count} lines"
        + (f": {total}" if total and not refused else "")
        + (f" ({zero} of them with nothing due)" if zero else "")
    ]
    if isinstance(found, InvoiceFile) and found.cancellations:
        money_back = format_amount(
            sum(c.amount_minor for c in found.cancellations), found.cancellations[0].currency
        )
        lines.append(f"not orders: {len(found.cancellations)} cancellations, {money_back}")
        for commands, what in (
            (given.refunds, "refunds of the lines of known sales"),
            (given.credits, "credits of unknown sales, to hold"),
        ):
            total = format_amount(
                sum(command.amount_minor or 0 for command in commands),
                found.cancellations[0].currency,
            )
            lines.append(
                f"{'would publish' if dry_run else 'published'} {len(commands)} {what}: {total}"
            )
    if found.left_out or refused or refused_commands:
        commands_too = f" and {refused_commands} commands" if refused_commands else ""
        lines.append(
            f"left out: {found.left_out + refused} orders{commands_too}; the reasons are above"
        )
    return lines
