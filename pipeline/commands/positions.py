"""``paystream positions``: where stages stand in their inputs, moved over what is lost to them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.deciding import By, who
from pipeline.commands.options import AsJson, BootstrapServers, Prefix, Yes
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.runtime.positions.mover import ClusterGroup, Move
    from pipeline.runtime.positions.standing import Position
    from topics.admin import Admin
    from topics.catalogue import Catalogue

# Something is gone. 2 is a wrong option or a missing broker.
EXIT_GONE = 1
# Of what reads a topic, but keeps its place in a database of its own.
ELSEWHERE = {
    "ledger": "the ledger keeps its place in its database, not in Kafka; how it is moved stands in "
    'docs/ledger.md, "When the sink refuses to go on".',
    "notifications": "the notifications keep their place in their database, not in Kafka; they go "
    "on behind deleted events by themselves.",
}

app = typer.Typer(
    help="Where stages stand in their inputs; move one over records that are lost to it.",
    epilog="Example: paystream positions show",
    no_args_is_help=True,
)

Stage = Annotated[
    str | None, typer.Option("--stage", help="Whose position: payments, gateway or risk.")
]
GroupName = Annotated[
    str | None,
    typer.Option(
        "--group",
        help="Instead of a stage: a consumer group by its whole name, as of a subscriber.",
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; move nothing.")]


@app.command("show")
def show_command(
    stage: Stage = None,
    group: GroupName = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also partitions of which nothing is gone.")
    ] = False,
    as_json: AsJson = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Show of which partitions records were deleted before their stage had read them.

    Of each: the stage's position (the next offset that it reads), the first offset that the log
    still has, the next that is written, and how many are gone. Markers of transactions count as
    well, so one or a few that are gone before an empty log may be no records at all. Changes
    nothing; workers may run.

    Exit code 0: nothing is gone. 1: something is. 2: a wrong option, or the cluster is away.

    Examples:

    \b
      paystream positions show

    \b
      paystream positions show --stage payments --all --json
    """
    from pipeline.commands import positions_text as text
    from pipeline.commands.output import reader_may_leave
    from topics.catalogue import GROUP_STAGES

    _check_choice(stage, group)
    stages = GROUP_STAGES if stage is None and group is None else (stage,)
    with _desk(bootstrap_servers, prefix) as desk:
        found = [
            (each.name, position)
            for one in stages
            for each, known in [desk.group(one, group)]
            for position in desk.positions(each, known, stable=False)
        ]
    gone = any(position.gone or position.is_beyond_end for _, position in found)
    with reader_may_leave():
        if as_json:
            typer.echo(json.dumps(text.positions_json(found, everything), indent=2))
        else:
            for line in text.position_lines(found, everything):
                typer.echo(line)
    raise typer.Exit(EXIT_GONE if gone else 0)


@app.command("move")
def move_command(
    reason: Reason,
    stage: Stage = None,
    group: GroupName = None,
    by: By = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Move a stage over records that were deleted before it had read them, to the first left.

    Nothing else tells the flow that they are lost: what is skipped is in the audit topic, with who
    and why, in one transaction with the positions. Stop the stage on every machine first; the place
    of a worker that was stopped is kept for 10 s, which is waited for.

    Exit code 0: moved, or nothing is gone. 2: refused, a wrong option, or the cluster is away.

    Examples:

    \b
      paystream positions move --stage payments --reason "retention, INC-42" --dry-run

    \b
      paystream positions move --stage payments --reason "retention, INC-42; shops send again"
    """
    from pipeline.commands import positions_text as text
    from pipeline.runtime.positions.mover import MOVE_ACTION, Move

    _check_choice(stage, group)
    if stage is None and group is None:
        raise UserError("Say whose position: --stage payments, gateway or risk.")
    act = _act(MOVE_ACTION, reason, by)
    with _desk(bootstrap_servers, prefix) as desk:
        whose, known = desk.group(stage, group)
        if not dry_run:
            _require_empty(whose)
        stand = desk.positions(whose, known, stable=True)
        for each in stand:
            if each.is_beyond_end:
                typer.echo(text.beyond_end(each), err=True)
        moves = [
            Move(each.topic, each.partition, each.committed, each.first, each.committed)
            for each in stand
            if each.committed is not None and each.gone
        ]
        if not moves:
            typer.echo(f"nothing is gone that the group {whose.name} had not read; nothing to do")
            return
        _carry_out(desk, whose, moves, act, "are gone", dry_run=dry_run, yes=yes)


@app.command("step-over")
def step_over_command(
    place: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC[PARTITION]@OFFSET", help="The batch, as the worker names it."
        ),
    ],
    reason: Reason,
    stage: Stage = None,
    group: GroupName = None,
    by: By = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Move the stage that reads a topic over a damaged batch, to what can be read behind it.

    The records of the batch are lost to the flow. Another replica may have it whole: let that one
    lead first. Refused where the batch can be read, or records before it are not handled yet. As
    for `move`, the stage is stopped, and the audit says what was skipped, by whom and why.

    Exit code 0: moved. 2: refused, a wrong option, or the cluster is away.

    Examples:

    \b
      paystream positions step-over 'orders[3]@1042' --reason "disk of kafka-2, INC-43" --dry-run

    \b
      paystream positions step-over 'orders[3]@1042' --reason "disk of kafka-2, INC-43"
    """
    from pipeline.batches.readable import reading_places
    from pipeline.runtime.positions.mover import STEP_OVER_ACTION
    from pipeline.runtime.positions.stepping import parse_place, plan_step

    _check_choice(stage, group)
    parsed = parse_place(place)
    if parsed is None:
        raise UserError(
            f"{place!r} names no place in a topic; write it as the worker does: 'orders[3]@1042'."
        )
    act = _act(STEP_OVER_ACTION, reason, by)
    with _desk(bootstrap_servers, prefix) as desk:
        topic, partition, offset = desk.topic(parsed[0]), *parsed[1:]
        if group is None:
            stage = desk.reader_of(topic, stage)
        whose, known = desk.group(stage, group)
        if (topic, partition) not in known:
            raise UserError(f"there is no partition {topic}[{partition}].")
        if not dry_run:
            _require_empty(whose)
        (position,) = desk.positions(whose, [(topic, partition)], stable=True)
        with reading_places(desk.servers) as consumer:
            step = plan_step(consumer, position, offset, on_step=_saying_steps(topic, partition))
        typer.echo(f"{position.place}@{step.move.begin}: {step.why}")
        if not step.is_damaged:
            typer.echo(
                "a stage puts such a batch aside by itself, as a dead letter, wherever the brokers "
                "let it ask where the batch ends"
            )
        _carry_out(desk, whose, [step.move], act, "cannot be read", dry_run=dry_run, yes=yes)


# What the commands share ------------------------------------------------------------------------


@dataclass
class _Desk:
    """One installation, reached."""

    settings: Settings
    catalogue: Catalogue
    admin: Admin

    @property
    def servers(self) -> str:
        return self.settings.bootstrap_servers

    def group(
        self, stage: str | None, name: str | None
    ) -> tuple[ClusterGroup, list[tuple[str, int]]]:
        """A group and the partitions that it may have positions in; of one that is no stage's, all
        of the flow."""
        from pipeline.runtime.positions.mover import ClusterGroup
        from pipeline.runtime.positions.standing import partitions_of

        if stage is not None:
            topics = [spec.name for spec in self.catalogue.inputs(stage)]
            name = self.catalogue.group(stage)
        else:
            topics = [spec.name for spec in self.catalogue.topics.values()]
        whose = ClusterGroup(self.admin, self.servers, name or "")
        for each, where in ELSEWHERE.items():
            if whose.name == self.catalogue.group(each):
                raise UserError(where)
        return whose, partitions_of(self.admin, topics, missing=stage is None)

    def positions(
        self, group: ClusterGroup, known: Sequence[tuple[str, int]], *, stable: bool
    ) -> list[Position]:
        from pipeline.runtime.positions.standing import positions
        from topics.catalogue import GROUP_STAGES

        found = positions(
            self.admin,
            self.servers,
            group.name,
            known,
            stable=stable,
            waiting=lambda: _say(f"waiting for the offsets of group {group.name} ..."),
        )
        if group.name in map(self.catalogue.group, GROUP_STAGES):
            return found
        found = [each for each in found if each.committed is not None]
        if not found:
            raise UserError(f"the group {group.name} has no position in any topic of this flow.")
        return found

    def topic(self, given: str) -> str:
        """With or without the prefix."""
        for spec in self.catalogue.topics.values():
            if given in (spec.name, spec.role):
                return spec.name
        raise UserError(
            f"{given!r} is no topic of this flow; is the prefix "
            f"{self.catalogue.settings.prefix!r} right?"
        )

    def reader_of(self, topic: str, stage: str | None) -> str:
        """The stage that reads a topic by its group."""
        from topics.catalogue import GROUP_STAGES

        (spec,) = (each for each in self.catalogue.topics.values() if each.name == topic)
        readers = [each for each in spec.read_by if each in GROUP_STAGES]
        if stage is None and readers:
            return readers[0]
        if stage is not None and stage in readers:
            return stage
        for each in spec.read_by:
            if stage is None and each in ELSEWHERE:
                raise UserError(ELSEWHERE[each])
        raise UserError(f"{topic} is read by no group of {stage or 'a stage'}.")


def _check_choice(stage: str | None, group: str | None) -> None:
    from topics.catalogue import GROUP_STAGES

    if stage is not None and group is not None:
        raise UserError("--stage and --group contradict each other; give one of them.")
    if stage in ELSEWHERE:
        raise UserError(ELSEWHERE[stage])
    if stage is not None and stage not in GROUP_STAGES:
        raise UserError(f"There is no stage {stage!r}; the stages are {', '.join(GROUP_STAGES)}.")


@contextmanager
def _desk(bootstrap_servers: str | None, prefix: str | None) -> Iterator[_Desk]:
    from pipeline.config import load_settings
    from topics.admin import connect

    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    yield _Desk(settings, settings.catalogue(), connect(settings.bootstrap_servers))


def _require_empty(group: ClusterGroup) -> None:
    from pipeline.runtime.positions.mover import require_empty

    require_empty(group, _say)


def _act(action: str, reason: str, by: str | None) -> Any:
    from pipeline.domain.said_text import REASON_LENGTH_MAX, require_text
    from pipeline.runtime.positions.mover import Act

    if not reason.strip():
        raise UserError("Say why with --reason: it stands in the audit beside your name.")
    require_text(reason, "the reason", REASON_LENGTH_MAX)
    return Act(action, who(by), reason.strip())


def _carry_out(
    desk: _Desk,
    group: ClusterGroup,
    moves: Sequence[Move],
    act: Any,
    what: str,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Say what is meant, ask, do it, say what was done."""
    from pipeline.record_codec import record_codec
    from pipeline.runtime.positions.mover import move_positions

    for each in moves:
        typer.echo(f"{each.text} {what}; going on at {each.to}")
    skipped = sum(each.to - each.begin for each in moves)
    offsets = f"{skipped:,} offset{'' if skipped == 1 else 's'}"
    if dry_run:
        typer.echo("nothing was moved (--dry-run)")
        return
    codec = record_codec(desk.catalogue, desk.settings.schema_registry_url)
    _ask(f"group {group.name} will skip {offsets}, which are lost to it", yes=yes)
    entry = move_positions(desk.servers, desk.catalogue, codec, group, moves, act)
    typer.echo(
        f"moved group {group.name} over {offsets} in {len(moves)} "
        f"partition{'' if len(moves) == 1 else 's'}; audit entry {entry.entry_id}"
    )


def _ask(what: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(
            f"{what}, and nobody can be asked here: add --yes, or look first with --dry-run."
        )
    if not typer.confirm(f"{what[0].upper()}{what[1:]}. Go on?"):
        raise UserError("Nothing was moved.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _saying_steps(topic: str, partition: int) -> Callable[[int], None]:
    """A line every two seconds, where one batch after the other cannot be read."""
    import time

    from pipeline.commands.reading_progress import PROGRESS_S

    next_s = time.monotonic() + PROGRESS_S

    def said(offset: int) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + PROGRESS_S
            _say(f"{topic}[{partition}]@{offset} cannot be read either ...")

    return said
