"""``paystream risk check`` and ``risk replay``: rules before they decide about anybody's order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import AsJson, BootstrapServers, Prefix
from pipeline.commands.reading_progress import saying_progress
from pipeline.errors import UserError, why_unread

if TYPE_CHECKING:
    from pipeline.batches.record_batch import RecordBatch
    from pipeline.config import Settings
    from pipeline.domain.model import Order, Payment
    from pipeline.domain.risk import RiskRules

app = typer.Typer(
    help="Check risk rules, and try them on past orders.",
    epilog="Example: paystream risk check rules.toml",
    no_args_is_help=True,
)


@app.callback()
def _risk() -> None:
    """Check risk rules, and try them on past orders."""


@app.command("check")
def check_command(
    file: Annotated[
        Path | None, typer.Argument(help="Rules as TOML or JSON; default: the setting risk_rules.")
    ] = None,
    rules: Annotated[Path | None, typer.Option("--rules", help="The same as FILE.")] = None,
) -> None:
    """Read rules as a worker would, and say what they are.

    Exit code 0: they are right. 2: they are not; the sentence says which rule, and what is wrong.

    Examples:

    \b
      paystream risk check rules.toml

    \b
      PAYSTREAM_RISK_RULES=rules.toml paystream risk check
    """
    from pipeline.config import load_settings

    path = file or rules
    if path is None:
        path_text = load_settings().risk_rules
        if not path_text:
            raise UserError("no rules are set; name a file, or set PAYSTREAM_RISK_RULES.")
        path = Path(path_text)
    read = _read_rules(path)
    count = len(read.rules)
    typer.echo(f"{path}: {count} rule{'' if count == 1 else 's'}")
    for rule in read.rules:
        shadow = " (in shadow)" if rule.shadow else ""
        merchants = f" for {', '.join(sorted(rule.merchants))}" if rule.merchants else ""
        typer.echo(f"  {rule.name}: {rule.type}, {rule.action}{shadow}{merchants}")


@app.command("replay")
def replay_command(
    rules: Annotated[Path, typer.Argument(metavar="RULES", help="Rules as TOML or JSON.")],
    since: Annotated[
        str, typer.Option("--since", help="Orders appended from then on, as 2026-11-01T00:00Z.")
    ],
    until: Annotated[
        str | None, typer.Option("--until", help="Orders appended before then; default: now.")
    ] = None,
    as_json: AsJson = False,
    bootstrap_servers: BootstrapServers = None,
    prefix: Prefix = None,
) -> None:
    """Say what RULES would have made of past orders, and what stands now.

    Reads the topics orders and payments as a reader that leaves nothing behind; the flow does not
    notice. Windows are full from the beginning: the orders of the longest one before it are counted
    as well, as far as the topic still has them.

    Examples:

    \b
      paystream risk replay rules.toml --since 2026-11-01T00:00Z

    \b
      paystream risk replay rules.toml --since 2026-11-01 --until 2026-11-08 --json
    """
    from pipeline.config import load_settings

    read = _read_rules(rules)
    since_ms = _moment_ms(since, "--since")
    until_ms = int(time.time() * 1000) if until is None else _moment_ms(until, "--until")
    if since_ms >= until_ms:
        raise UserError("--since is not before --until (without --until: now).")
    settings = load_settings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix)
    report = _replay(settings, read, since_ms, until_ms)
    report = {"since": _shown(since_ms), "until": _shown(until_ms), **report}
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        for line in report_lines(report):
            typer.echo(line)


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    orders = report["orders"]
    yield f"orders appended from {report['since']} to {report['until']}"
    if report["first_order"] is not None and report["first_order"] > report["since"]:
        yield f"  the first order that the topic still has is of {report['first_order']}"
    yield (
        f"  {orders['read']:,} read, {orders['assessed']:,} assessed, "
        f"{orders['not_assessed']:,} that no rule is asked about, {orders['repeated']:,} repeated"
    )
    yield ""
    yield "now -> with these rules"
    for change in report["decisions"]:
        same = change["current"] == change["new"]
        arrow = "stays" if same else f"{change['current']} -> {change['new']}"
        name = f"{arrow} {change['new']}" if same else arrow
        yield f"  {name:<24} {_summed(change)}"
        for example in change["examples"]:
            yield (
                f"    {example['order']}  {_money(example['amount_minor'], example['currency'])}  "
                f"{_shown(example['at_ms'])}  now {example['status'] or 'unknown'}"
            )
            yield f"      {example['why']}"
    yield ""
    yield "by rule (an order may meet several)"
    for rule in report["rules"]:
        shadow = ", in shadow" if rule["shadow"] else ""
        yield f"  {rule['rule']:<24} {rule['action']}{shadow}: {_summed(rule)}"


def _replay(settings: Settings, rules: RiskRules, since_ms: int, until_ms: int) -> dict[str, Any]:
    from pipeline.domain.records import order_from_record, payment_from_record
    from pipeline.domain.risk_replay import counted_from_ms, replayed
    from pipeline.record_codec import record_codec
    from pipeline.runtime.topic_reader import TopicReader
    from schemas.errors import DecodeError

    catalogue = settings.catalogue()
    codec = record_codec(catalogue, settings.schema_registry_url)
    decode_payment, decode_order = codec.decoder("payment"), codec.decoder("order")
    say = saying_progress()
    undecodable = 0
    first_ms: int | None = None

    def unreadable(batch: RecordBatch) -> None:
        nonlocal undecodable
        undecodable += batch.records

    reader = TopicReader(settings.bootstrap_servers)
    order_reader = TopicReader(settings.bootstrap_servers, unreadable)

    def payments() -> Iterator[Payment]:
        for done, record in enumerate(reader.by_time(catalogue.name("payments"), None, None)):
            say("payments", done)
            if record.key is None or record.value is None:
                continue
            try:
                yield payment_from_record(decode_payment(record.value))
            except DecodeError:
                continue

    def orders() -> Iterator[tuple[Order, int]]:
        nonlocal first_ms, undecodable
        from_ms = counted_from_ms(rules, since_ms)
        read = order_reader.by_time(catalogue.name("orders"), from_ms, until_ms)
        for done, record in enumerate(read):
            say("orders", done)
            first_ms = record.timestamp_ms if first_ms is None else first_ms
            if record.key is None or record.value is None:
                undecodable += 1
                continue
            try:
                order = order_from_record(decode_order(record.value))
            except DecodeError:
                undecodable += 1
                continue
            yield order, record.timestamp_ms

    replay = replayed(rules, payments(), orders(), since_ms)
    report = replay.report()
    report["orders"]["undecodable"] = undecodable
    return {"first_order": None if first_ms is None else _shown(first_ms), **report}


def _read_rules(path: Path) -> RiskRules:
    from pipeline.domain.risk_rules import read_rules

    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"the risk rules {path} cannot be read: {why_unread(error)}.") from error
    return read_rules(text, str(path))


def _moment_ms(text: str, option: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{option} {text!r} is no moment; write it as 2026-11-01T00:00Z or 2026-11-01."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _shown(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _summed(sums: dict[str, Any]) -> str:
    text = f"{sums['orders']:,} orders"
    for name, said in (
        ("amount_minor", ""),
        ("captured_minor", "captured "),
        ("disputed_minor", "disputed or charged back "),
    ):
        if sums[name]:
            money = ", ".join(_money(amount, code) for code, amount in sums[name].items())
            text += f", {said}{money}"
    if sums["reviews"]:
        text += "; reviews " + ", ".join(f"{n:,} {end}" for end, n in sums["reviews"].items())
    return text


def _money(amount_minor: int, currency: str) -> str:
    from pipeline.domain.money import format_amount

    return format_amount(amount_minor, currency)
