"""``paystream dead-letters``: what could not be handled, and putting it back once it can be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import AsJson, BootstrapServers, Prefix, Yes
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.runtime.redrive.letter import Letter
    from pipeline.runtime.redrive.letter_log import LetterLog
    from pipeline.runtime.redrive.plan import Filter, Limits, Markers, Plan
    from pipeline.runtime.redrive.redriver import Done
    from schemas.codec import Codec
    from topics.catalogue import Catalogue

# Some of the letters that were meant are still open. 2 is a wrong option or a missing broker.
EXIT_PARTLY = 1
EXIT_INTERRUPTED = 130
# A screenful; the count says how many there are.
LETTERS_SHOWN = 50
RATE_PER_S = 500.0
REDRIVES_MAX = 3
STAGES = ("payments", "gateway", "ledger", "risk")
# Not redriven: the other readers of the topic would get the record a second time.
LOOKED_AT_ONLY = ("notifications",)
REFUSING = (*STAGES, *LOOKED_AT_ONLY, "webhooks")

app = typer.Typer(
    help="Look at inputs that could not be handled; put them back, once, or set them aside.",
    epilog="Example: paystream dead-letters list",
    no_args_is_help=True,
)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="PARTITION:OFFSET", help="Letters by name, as `list` shows them."),
]
Causes = Annotated[
    list[str] | None,
    typer.Option("--cause", help="Why it was refused, for example unknown_schema_id; repeatable."),
]
Stages = Annotated[
    list[str] | None,
    typer.Option(
        "--stage",
        help="Who refused it: payments, gateway, risk, ledger, notifications or webhooks; "
        "repeatable.",
    ),
]
Topics = Annotated[
    list[str] | None, typer.Option("--topic", help="Where the input was; repeatable.")
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Buried at or after: 2026-11-25T22:00 (UTC), or 30m, 2h, 7d ago.",
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Buried before; as --since.")
]
Key = Annotated[str | None, typer.Option("--key", metavar="MERCHANT:ORDER", help="Of one order.")]
Everything = Annotated[bool, typer.Option("--all", help="Every open letter; instead of a filter.")]
Actor = Annotated[
    str | None, typer.Option("--actor", help="Who, for the audit; default: the OS user.")
]
Reason = Annotated[
    str | None, typer.Option("--reason", help="Why, for the audit; required to write.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; write nothing.")]
Rate = Annotated[
    float, typer.Option("--rate", min=0.1, metavar="PER_SECOND", help="Letters a second at most.")
]


@app.command("list")
def list_command(
    cause: Causes = None,
    stage: Stages = None,
    topic: Topics = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    state: Annotated[
        str, typer.Option("--state", help="open, redriven, discarded or all.")
    ] = "open",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Show so many; default 50, with --json all."),
    ] = None,
    as_json: AsJson = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """List dead letters, the oldest first, and count them by cause, stage and topic.

    Examples:

    \b
      paystream dead-letters list

    \b
      paystream dead-letters list --cause unknown_schema_id --topic orders --since 2h

    \b
      paystream dead-letters list --key shop-a:1001 --state all --json
    """
    from pipeline.commands import dead_letters_text as text
    from pipeline.runtime.redrive.plan import STATES, histogram

    if state not in (*STATES, "all"):
        raise UserError(f"There is no state {state!r}; give one of {', '.join(STATES)} or all.")
    with _desk(bootstrap_servers, prefix) as desk:
        chosen = _filter(desk.catalogue, None, cause, stage, topic, since, until, key)
        letters, markers = desk.read()
    found = [
        letter
        for letter in chosen.select(letters)
        if state == "all" or markers.state(letter) == state
    ]
    counts = histogram(found)
    shown = found[: limit or (len(found) if as_json else LETTERS_SHOWN)]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "letters": [text.letter_json(letter, markers) for letter in shown],
                    "histogram": text.histogram_json(counts),
                    "count": len(found),
                },
                indent=2,
            )
        )
        return
    if not found:
        typer.echo(text.nothing_found(letters, markers, state))
        return
    for line in text.letter_lines(shown, markers):
        typer.echo(line)
    if len(shown) < len(found):
        typer.echo(f"... and {len(found) - len(shown):,} more; --limit shows them")
    typer.echo()
    for line in text.histogram_lines(counts):
        typer.echo(line)


@app.command("show")
def show_command(
    name: Annotated[
        str, typer.Argument(metavar="PARTITION:OFFSET", help="The letter, as `list` names it.")
    ],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the input's bytes to the output, nothing else.")
    ] = False,
    as_json: AsJson = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Show one dead letter: its headers, and its value decoded, or in hexadecimal.

    An input that was split because of its size is shown whole.

    Examples:

    \b
      paystream dead-letters show 3:17

    \b
      paystream dead-letters show 3:17 --raw > input.bin
    """
    from pipeline.commands import dead_letters_text as text

    place = _place(name)
    with _desk(bootstrap_servers, prefix) as desk:
        letters, markers = desk.read()
        letter = next(
            (each for each in letters if each.partition == place[0] and place[1] in each.pieces),
            None,
        )
        if letter is None:
            raise UserError(_no_such_letter(name))
        (whole,) = desk.log.wholes([letter])
        schemas = {spec.name: spec.schema for spec in desk.catalogue.topics.values()}
        decoded = text.decoded(whole, schemas.get(letter.topic), desk.codec)
    if raw:
        sys.stdout.buffer.write(whole.value or b"")
    elif as_json:
        typer.echo(json.dumps(text.whole_json(whole, markers, decoded), indent=2))
    else:
        for line in text.whole_lines(whole, markers, decoded):
            typer.echo(line)


@app.command("redrive")
def redrive_command(
    letters: Names = None,
    cause: Causes = None,
    stage: Stages = None,
    topic: Topics = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    everything: Everything = False,
    reason: Reason = None,
    actor: Actor = None,
    dry_run: DryRun = False,
    rate: Rate = RATE_PER_S,
    redrives_max: Annotated[
        int, typer.Option("--redrives-max", min=1, help="How often one record may be redriven.")
    ] = REDRIVES_MAX,
    masked_too: Annotated[
        bool,
        typer.Option(
            "--masked-too",
            help="Also those whose card numbers were masked, unless in the token to be charged.",
        ),
    ] = False,
    yes: Yes = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Put open letters back where they came from: same topic, partition, key, bytes and headers.

    Each goes back exactly once, whether this is run twice, by two people at once, or is stopped
    with Ctrl-C or killed and run again. A later run ends an earlier one. A request to a gateway is
    not sent: its payment is told, and asks or sends by itself.

    Exit code 0: all that were meant are redriven, now or before. 1: some are refused, see the
    reasons. 2: a wrong option, or the cluster is away. 130: stopped.

    Examples:

    \b
      paystream dead-letters redrive --cause unknown_schema_id --dry-run

    \b
      paystream dead-letters redrive --cause unknown_schema_id --since 2h \\
        --reason "schema registry was restored, INC-42"

    \b
      paystream dead-letters redrive 3:17 3:21 --reason "key fixed upstream"
    """
    from pipeline.runtime.redrive.masked import refuse_masked_tokens
    from pipeline.runtime.redrive.plan import Limits, plan_redrive
    from pipeline.runtime.redrive.redriver import REDRIVE_ACTION

    with _desk(bootstrap_servers, prefix) as desk:
        chosen = _filter(desk.catalogue, letters, cause, stage, topic, since, until, key)
        _require_choice(chosen, everything)
        limits = Limits(
            inputs={
                spec.name: desk.log.partitions.get(spec.name, 0)
                for each in STAGES
                for spec in desk.catalogue.inputs(each)
            },
            requests=desk.catalogue.name("payment-requests"),
            redrives_max=redrives_max,
            masked_too=masked_too,
        )
        known, markers = desk.read()
        selected = _selected(chosen, known, markers)
        plan = plan_redrive(selected, known, markers, limits)
        if masked_too:
            decoders = {
                spec.name: desk.codec.decoder(spec.schema)
                for each in STAGES
                for spec in desk.catalogue.inputs(each)
                if spec.schema is not None
            }
            refuse_masked_tokens(plan, desk.log.wholes, decoders)
        _carry_out(
            desk, plan, selected, markers, limits, chosen,
            action=REDRIVE_ACTION, reason=reason, actor=actor, dry_run=dry_run, rate=rate, yes=yes,
        )  # fmt: skip


@app.command("discard")
def discard_command(
    letters: Names = None,
    cause: Causes = None,
    stage: Stages = None,
    topic: Topics = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    everything: Everything = False,
    reason: Reason = None,
    actor: Actor = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Mark open letters as looked at and not to be redriven. The records stay.

    Of records that nobody of this flow wrote (`--cause no_lineage`) `paystream verify` takes this
    as an acknowledgement.

    Exit code 0: all that were meant are set aside, now or before. 1: some are redriven. 2: a wrong
    option, or the cluster is away. 130: stopped.

    Examples:

    \b
      paystream dead-letters discard 3:17 --reason "test traffic of a load test"

    \b
      paystream dead-letters discard --cause order_conflict --until 7d --reason "told the shop"

    \b
      paystream dead-letters discard --cause no_lineage --reason "a tool's test, its access is gone"
    """
    from pipeline.runtime.redrive.plan import Limits, plan_discard
    from pipeline.runtime.redrive.redriver import DISCARD_ACTION

    with _desk(bootstrap_servers, prefix) as desk:
        chosen = _filter(desk.catalogue, letters, cause, stage, topic, since, until, key)
        _require_choice(chosen, everything)
        known, markers = desk.read()
        selected = _selected(chosen, known, markers)
        plan = plan_discard(selected, markers)
        limits = Limits(inputs={}, requests="")
        _carry_out(
            desk, plan, selected, markers, limits, chosen,
            action=DISCARD_ACTION, reason=reason, actor=actor, dry_run=dry_run, rate=None, yes=yes,
        )  # fmt: skip


# What the commands share ------------------------------------------------------------------------


@dataclass
class _Desk:
    """One installation, opened."""

    servers: str
    catalogue: Catalogue
    codec: Codec
    log: LetterLog

    def read(self) -> tuple[list[Letter], Markers]:
        from pipeline.runtime.redrive.plan import Markers

        markers = Markers()
        letters = self.log.letters(
            (lambda n: typer.echo(f"{n:,} records read ...", err=True))
            if sys.stderr.isatty()
            else None
        )
        for why in self.log.left_out:
            typer.echo(why, err=True)
        self.log.refresh(markers)
        return letters, markers


@contextmanager
def _desk(bootstrap_servers: str | None, prefix: str | None) -> Iterator[_Desk]:
    from pipeline.config import load_settings
    from pipeline.record_codec import record_codec
    from pipeline.runtime.redrive.letter_log import LetterLog

    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    catalogue = settings.catalogue()
    codec = record_codec(catalogue, settings.schema_registry_url)
    with LetterLog(settings.bootstrap_servers, catalogue, codec) as log:
        yield _Desk(settings.bootstrap_servers, catalogue, codec, log)


def _carry_out(
    desk: _Desk,
    plan: Plan,
    selected: Sequence[Letter],
    markers: Markers,
    limits: Limits,
    chosen: Filter,
    *,
    action: str,
    reason: str | None,
    actor: str | None,
    dry_run: bool,
    rate: float | None,
    yes: bool,
) -> None:
    """Say what is meant, ask, do it, say what was done; exits with its code."""
    import logging

    from pipeline.commands import dead_letters_text as text
    from pipeline.commands.stopping import StopSignals
    from pipeline.runtime.redrive.plan import histogram
    from pipeline.runtime.redrive.redriver import REDRIVE_ACTION, Act, Pace, Redriver

    verb = "redriven" if action == REDRIVE_ACTION else "discarded"
    if not selected:
        typer.echo("no open dead letter matches; nothing to do")
        return
    for line in text.histogram_lines(histogram(selected)):
        typer.echo(line)
    typer.echo()
    for line in text.plan_lines(plan, verb, rate):
        typer.echo(line)
    if dry_run:
        typer.echo("nothing was written (--dry-run)")
        raise typer.Exit(EXIT_PARTLY if plan.refused else 0)
    if not plan.todo:
        raise typer.Exit(EXIT_PARTLY if plan.refused else 0)
    # What the client retries by itself is for a worker's log; a person is told how it ends.
    logging.getLogger("paystream.librdkafka").addHandler(logging.NullHandler())
    act = Act(_who(actor), _why(reason), text.chosen_json(chosen))
    _ask(len(plan.todo), verb, yes=yes)
    with (
        StopSignals() as signals,
        Redriver(desk.servers, desk.catalogue, desk.codec, desk.log, markers, limits) as redriver,
    ):
        signals.ready()
        with _progress(len(plan.todo), verb) as show:
            done = redriver.run(
                plan,
                act,
                action=action,
                pace=Pace(rate),
                stopped=signals.asked.is_set,
                on_progress=show,
            )
    for line in text.done_lines(done, plan, verb):
        typer.echo(line)
    if done.stopped and done.letters + done.already < len(plan.todo):
        raise typer.Exit(EXIT_INTERRUPTED)
    if plan.refused or done.refused:
        raise typer.Exit(EXIT_PARTLY)


def _filter(
    catalogue: Catalogue,
    names: list[str] | None,
    causes: list[str] | None,
    stages: list[str] | None,
    topics: list[str] | None,
    since: str | None,
    until: str | None,
    key: str | None,
) -> Filter:
    import time

    from pipeline.runtime.redrive.plan import Filter

    for stage in stages or ():
        if stage not in REFUSING:
            raise UserError(f"There is no stage {stage!r}; the stages are {', '.join(REFUSING)}.")
    if key is not None and not all(key.partition(":")):
        raise UserError(f"{key!r} names no order; write the merchant and the order: shop:1001.")
    now_ms = int(time.time() * 1000)
    since_ms, until_ms = (
        None if given is None else _time_ms(given, now_ms) for given in (since, until)
    )
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise UserError(f"--since {since} is not before --until {until}: no letter can match.")
    return Filter(
        causes=frozenset(causes or ()),
        stages=frozenset(stages or ()),
        topics=frozenset(_topic(catalogue, each) for each in topics or ()),
        since_ms=since_ms,
        until_ms=until_ms,
        key=None if key is None else key.encode(),
        places=frozenset(_place(each) for each in names or ()),
    )


def _topic(catalogue: Catalogue, given: str) -> str:
    """With or without the prefix."""
    stages = (*STAGES, *LOOKED_AT_ONLY)
    inputs = {spec.role: spec.name for each in stages for spec in catalogue.inputs(each)}
    if given in inputs:
        return inputs[given]
    if given in inputs.values():
        return given
    raise UserError(f"{given!r} is no input of this flow; its inputs are {', '.join(inputs)}.")


def _time_ms(given: str, now_ms: int) -> int:
    """A moment in UTC, or how long ago."""
    from datetime import UTC, datetime

    unit_ms = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    if given[:-1].isascii() and given[:-1].isdigit() and given[-1:] in unit_ms:
        return now_ms - int(given[:-1]) * unit_ms[given[-1]]
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise UserError(
            f"{given!r} is no time; write 2026-11-25T22:00 (UTC), or 30m, 2h or 7d for ago."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _place(given: str) -> tuple[int, int]:
    from pipeline.runtime.redrive.letter import parse_place

    place = parse_place(given)
    if place is None:
        raise UserError(f"{given!r} names no dead letter; write its partition and offset, as 3:17.")
    return place


def _no_such_letter(name: str) -> str:
    return (
        f"There is no dead letter {name}; `paystream dead-letters list --state all` names them all."
    )


def _require_choice(chosen: Filter, everything: bool) -> None:
    if not chosen.narrows and not everything:
        raise UserError("Say which: letters by name, a filter such as --cause, or --all.")
    if chosen.narrows and everything:
        raise UserError("--all and a filter contradict each other; give one of them.")


def _selected(chosen: Filter, letters: Sequence[Letter], markers: Markers) -> list[Letter]:
    """Open letters of a filter; of letters by name also those that are closed, to say so."""
    from pipeline.runtime.redrive.plan import unknown_places

    missing = unknown_places(chosen.places, letters)
    if missing:
        raise UserError(_no_such_letter(missing[0]))
    return [
        letter for letter in chosen.select(letters) if chosen.places or markers.of(letter) is None
    ]


def _who(actor: str | None) -> str:
    import getpass

    if actor is not None and actor.strip():
        return actor.strip()
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise UserError("This machine does not say who you are; give --actor NAME.") from None


def _why(reason: str | None) -> str:
    if reason is None or not reason.strip():
        raise UserError("Say why with --reason: it stands in the audit beside your name.")
    return reason.strip()


def _ask(letters: int, verb: str, *, yes: bool) -> None:
    if letters <= 1 or yes:
        return
    if not sys.stdin.isatty():
        raise UserError(
            f"{letters} letters would be {verb} and nobody can be asked here: add --yes, or look "
            "first with --dry-run."
        )
    if not typer.confirm(f"{letters} letters will be {verb}. Go on?"):
        raise UserError(f"Nothing was {verb}.")


@contextmanager
def _progress(letters: int, verb: str) -> Iterator[Callable[[Done], Any]]:
    """A bar where somebody watches."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=letters)
        yield lambda done: bar.update(
            task,
            completed=done.letters + done.already + sum(map(len, done.refused.values())),
        )
