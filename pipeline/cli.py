"""The ``paystream`` command. It only parses and hands over; each group has its own module."""

from __future__ import annotations

import sys

import typer

from pipeline.commands.audit import trace_command, verify_command
from pipeline.commands.chaos import app as chaos_app
from pipeline.commands.control import app as control_app
from pipeline.commands.dead_letters import app as dead_letters_app
from pipeline.commands.demo import demo_command
from pipeline.commands.flow import run_command, simulator_command, up_command
from pipeline.commands.ledger import app as ledger_app
from pipeline.commands.orders import order_app, orders_app
from pipeline.commands.payment import payment_app
from pipeline.commands.payouts import app as payouts_app
from pipeline.commands.positions import app as positions_app
from pipeline.commands.reconcile import app as reconcile_app
from pipeline.commands.review import review_app
from pipeline.commands.risk import app as risk_app
from pipeline.commands.schemas import app as schemas_app
from pipeline.commands.topics import app as topics_app
from pipeline.commands.transactions import app as transactions_app
from pipeline.commands.webhooks import app as webhooks_app

app = typer.Typer(
    name="paystream",
    help="Orders in, each charged once; settlements and balanced books out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: paystream demo. Settings: PAYSTREAM_<NAME> in the environment, or "
    "paystream.toml; see the README.",
)
app.command("demo")(demo_command)
app.command("up")(up_command)
app.command("run")(run_command)
app.command("simulator")(simulator_command)
app.add_typer(topics_app, name="topics")
app.add_typer(transactions_app, name="transactions")
app.add_typer(positions_app, name="positions")
app.add_typer(schemas_app, name="schemas")
app.add_typer(control_app, name="control")
app.add_typer(orders_app, name="orders")
app.add_typer(order_app, name="order")
app.add_typer(payment_app, name="payment")
app.add_typer(review_app, name="review")
app.add_typer(ledger_app, name="ledger")
app.add_typer(reconcile_app, name="reconcile")
app.add_typer(payouts_app, name="payouts")
app.add_typer(risk_app, name="risk")
app.add_typer(dead_letters_app, name="dead-letters")
app.add_typer(chaos_app, name="chaos")
app.add_typer(webhooks_app, name="webhooks")
app.command("trace")(trace_command)
app.command("verify")(verify_command)


def main() -> None:
    """Run one command; what is wrong outside the program is one sentence and exit code 2."""
    from pipeline.commands.output import discard_output
    from pipeline.errors import UserError

    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"paystream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        # typer turns both into an exit of its own, the second one without a word and with 1.
        if _came_of(ended, KeyboardInterrupt):
            print("paystream: interrupted", file=sys.stderr)
            sys.exit(130)
        if _came_of(ended, BrokenPipeError):
            # The reader of our output has gone (`paystream trace ... | head`).
            discard_output()
            sys.exit(141)
        raise


def _came_of(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether one of that kind was being handled when this one was raised."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
