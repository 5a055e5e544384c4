"""``paystream demo``: the whole flow once, on real orders, from nothing."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError


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

    Exit code 0: every guarantee held. 1: one did not, or something is still on its way.

    Examples:

      paystream demo

      paystream demo --orders my-orders.jsonl --faults none
    """
    from pipeline.demo import Demo, sample_file
    from producers.invoice_csv import read_invoices
    from producers.order_file import detect_format
    from producers.order_jsonl import read_orders

    if faults not in ("none", "default") and not Path(faults).is_file():
        raise UserError(f"--faults must be none, default, or a file; {faults!r} is none of them.")
    path = orders or sample_file()
    now_ms = int(time.time() * 1000)
    read = read_invoices if detect_format(path) == "invoice-csv" else read_orders
    found = read(path, now_ms=now_ms)
    for problem in found.problems[:20]:
        typer.echo(f"{path}:{problem.line_number}: {problem.reason}", err=True)
    if not found.orders:
        raise UserError(f"{path} holds no order that can be published.")
    # A plain kill of the demo stops what it started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    code = Demo(orders_file=path, found=found, faults=faults, say=_say).run()
    raise typer.Exit(code)


def _say(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')}  {line}" if line else "")
