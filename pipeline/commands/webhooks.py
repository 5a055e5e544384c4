"""``paystream webhooks``: what merchants' endpoints were told, and telling them once more."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import UserError

if TYPE_CHECKING:
    from consumers.notifier.endpoints import EndpointFile
    from consumers.notifier.store import CallbackStore
    from pipeline.config import Settings

# The endpoint did not take it. 2 is a wrong option, file or database.
EXIT_NOT_DELIVERED = 1
SHOWN = 50

app = typer.Typer(
    help="Merchants' webhooks: try an endpoint, see what it was told, tell it once more.",
    epilog="Example: paystream webhooks log --merchant shop-a",
    no_args_is_help=True,
)

Merchant = Annotated[str | None, typer.Option("--merchant", help="Only this merchant's.")]
Order = Annotated[str | None, typer.Option("--order", help="Only this order's.")]
EndpointName = Annotated[str | None, typer.Option("--endpoint", help="Only to this endpoint.")]
GivenUp = Annotated[bool, typer.Option("--given-up", help="Only what was given up.")]
Since = Annotated[
    str | None, typer.Option("--since", help="Only events from then on, e.g. 2026-11-25T22:00Z.")
]


@app.command("test")
def test_command(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name in the file.")],
) -> None:
    """Send a signed test message to one endpoint, once, from here; it is not logged.

    Exit code 0: it was taken. 1: it was not; why is said. 2: there is no such endpoint.

    Example:

    \b
      paystream webhooks test shop-a
    """
    import asyncio
    import time
    import uuid

    from consumers.notifier.callback import TEST_TYPE, body_of
    from consumers.notifier.endpoints import shown_url
    from consumers.notifier.sender import DELIVERED, Delivery, Sender
    from pipeline.config import load_settings

    settings = load_settings()
    found = _endpoint_file(settings).load().get(endpoint)
    if found is None:
        raise UserError(f"there is no endpoint {endpoint!r} in {settings.merchant_endpoints}.")
    body = body_of(TEST_TYPE, int(time.time() * 1000), {"merchant_id": found.merchant})

    async def once() -> Delivery:
        async with Sender(
            allow_http=settings.callback_allow_http,
            allow_private=settings.callback_allow_private,
        ) as sender:
            return await sender.send(found, f"test-{uuid.uuid4()}", body)

    delivery = asyncio.run(once())
    typer.echo(
        f"{shown_url(found.url)}: {delivery.outcome}"
        + (f", status {delivery.status}" if delivery.status else "")
        + f", {delivery.took_ms} ms"
        + (f" ({delivery.detail})" if delivery.detail else "")
    )
    if delivery.outcome != DELIVERED:
        raise typer.Exit(EXIT_NOT_DELIVERED)


@app.command("log")
def log_command(
    merchant: Merchant = None,
    order: Order = None,
    endpoint: EndpointName = None,
    event: Annotated[str | None, typer.Option("--event", help="Only this event, by id.")] = None,
    given_up: GivenUp = False,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only what still waits.")] = False,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = SHOWN,
) -> None:
    """What endpoints were told, each delivery with its outcome; the newest events first.

    Examples:

    \b
      paystream webhooks log --merchant shop-a --order 1001

    \b
      paystream webhooks log --given-up --since 2026-11-25
    """
    from consumers.notifier.store import GIVEN_UP, WAITING
    from pipeline.commands.output import reader_may_leave
    from pipeline.config import load_settings

    if given_up and waiting:
        raise UserError("--given-up and --waiting exclude each other.")
    store = _store(load_settings())
    rows = store.find(
        merchant=merchant,
        order=order,
        endpoint=endpoint,
        event=event,
        state=GIVEN_UP if given_up else WAITING if waiting else None,
        since_ms=_epoch_ms(since),
        limit=limit + 1,
    )
    told = store.deliveries_of(row["event_id"] for row in rows[:limit])
    with reader_may_leave():
        if not rows:
            typer.echo("nothing")
        for row in rows[:limit]:
            typer.echo(_callback_line(row))
            for delivery in told.get((row["endpoint"], row["event_id"]), ()):
                typer.echo(_delivery_line(delivery))
        if len(rows) > limit:
            typer.echo(f"more than {limit}; --limit shows more")


@app.command("resend")
def resend_command(
    events: Annotated[
        list[str] | None, typer.Argument(metavar="EVENT...", help="Events by id, as `log` shows.")
    ] = None,
    merchant: Merchant = None,
    order: Order = None,
    endpoint: EndpointName = None,
    given_up: GivenUp = False,
    since: Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent.")] = False,
    by: Annotated[str | None, typer.Option("--by", help="Who; default: this login's name.")] = None,
) -> None:
    """Have callbacks delivered once more, with the ids they had, by the running workers.

    A receiver that suppresses repetitions by `webhook-id` takes only what it did not have. Events
    by id, or everything that the options choose. What went to an endpoint that is gone from the
    file is left out, and the endpoint named.

    Exit code 0: asked for. 1: nothing was chosen. 2: a wrong option or database, or all of it went
    to endpoints that are gone.

    Examples:

    \b
      paystream webhooks resend 8f14e45f-ceea-567f-a8d3-5b1f0c1d2e3f

    \b
      paystream webhooks resend --endpoint shop-a --given-up
    """
    import getpass
    import time

    from consumers.notifier.store import GIVEN_UP
    from pipeline.config import load_settings

    if not events and merchant is None and order is None and endpoint is None and not given_up:
        raise UserError("say which: events by id, --merchant, --order, --endpoint or --given-up.")
    settings = load_settings()
    known = _endpoint_file(settings).load().by_name
    store = _store(settings)
    wanted: list[str | None] = [*dict.fromkeys(events)] if events else [None]
    found = [
        row
        for event in wanted
        for row in store.find(
            merchant=merchant,
            order=order,
            endpoint=endpoint,
            event=event,
            state=GIVEN_UP if given_up else None,
            since_ms=_epoch_ms(since),
        )
    ]
    missing = sorted(set(events or ()) - {row["event_id"] for row in found})
    if missing and store.find(event=missing[0], limit=1):
        raise UserError(f"the other options leave out every callback of event {missing[0]}.")
    if missing:
        raise UserError(
            f"there is no callback of event {missing[0]}: no endpoint wanted it when it was read, "
            "or it is over 30 days old."
        )
    chosen = [(row["endpoint"], row["event_id"]) for row in found if row["endpoint"] in known]
    gone = Counter(row["endpoint"] for row in found if row["endpoint"] not in known)
    if gone:
        named = ", ".join(f"{count} to {name}" for name, count in sorted(gone.items()))
        said = f"callbacks of endpoints that are not in {settings.merchant_endpoints}: {named}"
        if not chosen:
            raise UserError(f"these are {said}. Put the endpoint back first.")
        typer.echo(f"left out are {said}", err=True)
    if not dry_run:
        store.resend(chosen, by or getpass.getuser(), int(time.time() * 1000))
    typer.echo(f"{len(chosen)} callbacks {'would be' if dry_run else 'will be'} delivered again")
    if not found:
        raise typer.Exit(EXIT_NOT_DELIVERED)


def _endpoint_file(settings: Settings) -> EndpointFile:
    from pathlib import Path

    from consumers.notifier.endpoints import EndpointFile

    if not settings.merchant_endpoints:
        raise UserError("name the file of endpoints in PAYSTREAM_MERCHANT_ENDPOINTS.")
    return EndpointFile(
        Path(settings.merchant_endpoints).expanduser(),
        allow_http=settings.callback_allow_http,
        allow_private=settings.callback_allow_private,
    )


def _store(settings: Settings) -> CallbackStore:
    from consumers.notifier.database import open_callbacks
    from consumers.notifier.store import CallbackStore

    return CallbackStore(open_callbacks(settings.callbacks_database()))


def _epoch_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{text!r} is no time; write 2026-11-25 or 2026-11-25T22:00Z.") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _callback_line(row: dict[str, Any]) -> str:
    line = (
        f"{_time(row['occurred_at_ms'])} {row['merchant_id']}:{row['order_id']} {row['type']} "
        f"#{row['sequence']} -> {row['endpoint']}: {row['state']}, {row['tries']} tries, "
        f"event {row['event_id']}"
    )
    return line + (f", next {_time(row['due_ms'])}" if row["state"] == "waiting" else "")


def _delivery_line(row: dict[str, Any]) -> str:
    number = f"try {row['try_number']} " if row["try_number"] else ""
    parts = [
        f"    {_time(row['at_ms'])} {number}{row['outcome']}",
        f"status {row['status']}" if row["status"] is not None else "",
        f"{row['took_ms']} ms" if row["try_number"] else "",
        row["detail"],
    ]
    return ", ".join(part for part in parts if part)
