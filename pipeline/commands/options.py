"""Options that several commands have, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        envvar="PAYSTREAM_BOOTSTRAP_SERVERS",
        help="Kafka brokers, host:port[,...].",
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        envvar="PAYSTREAM_TOPIC_PREFIX",
        help="Put before every topic and group name.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
