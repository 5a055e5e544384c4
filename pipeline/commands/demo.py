"""``paystream demo``: the whole flow once, on real orders, from nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.orders import show_problems
from pipeline.commands.stopping import StopSignals
from pipeline.errors import UserError

# The demo is about the flow, not about the file.
PROBLEMS_SHOWN_MAX = 20


def demo_command(
    orders: Annotated[
        Path | None,
        typer.Option(help="Invoices as CSV or orders as JSON Lines; default: the sample."),
    ] = None,
    faults: Annotated[
        str, typer.Option(help="Faults of the gateway simulator: default, none, or a JSON file.")
    ] = "default",
) -> None:
    """Start everything fresh, carry a file of orders through, and judge the result.

    Lines of the file that cannot be taken are named, and the others carried through.

    Exit code 0: every guarantee held. 1: one did not, or something is still on its way. 2: nothing
    ran, because the file or an option is wrong. 130: interrupted.

    Examples:

    \b
      paystream demo

    \b
      paystream demo --orders my-orders.jsonl --faults none
    """
    from pipeline.demo import Demo, sample_file
    from pipeline.gateways.simulator import FaultPlan
    from producers.invoice_csv import read_invoices
    from producers.order_file import detect_format, read_raw
    from producers.order_jsonl import read_orders

    FaultPlan.named(faults)
    path = orders or sample_file()
    now_ms = int(time.time() * 1000)
    raw = read_raw(path)
    read = read_invoices if detect_format(path, raw) == "invoice-csv" else read_orders
    found = read(path, now_ms=now_ms, raw=raw)
    show_problems(path, found.problems, PROBLEMS_SHOWN_MAX)
    if not found.orders:
        raise UserError(f"{path} holds no order that can be published.")
    with StopSignals():
        code = Demo(orders_file=path, found=found, faults=faults, say=_say).run()
    raise typer.Exit(code)


def _say(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')}  {line}" if line else "")
