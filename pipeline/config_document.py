"""docs/configuration.md from the settings: generated, committed, and held equal by a test.

Regenerate with ``python -m pipeline.config_document``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic_core import PydanticUndefined

from pipeline.config import Settings

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "configuration.md"

# What belongs together, in the order a reader meets it. A test holds it to be every setting once.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Where things are": (
        "bootstrap_servers",
        "kafka",
        "node_id",
        "gateway_url",
        "gateway_name",
        "gateways",
        "routes_file",
        "webhook_host",
        "webhook_port",
        "ledger_url",
        "schema_registry_url",
        "state_dir",
    ),
    "Topics": (
        "topic_prefix",
        "partitions",
        "replication_factor",
        "min_insync_replicas",
        "retention_ms",
    ),
    "Patience with gateways": (
        "call_timeout_ms",
        "send_within_ms",
        "retry_delay_ms",
        "retry_max",
        "inquiry_delay_ms",
        "inquiry_max",
        "timer_delay_ms",
        "gateway_grace_ms",
        "gateway_key_retention_ms",
        "clock_skew_ms",
    ),
    "Load": (
        "in_flight_max",
        "open_requests_max",
        "batch_records_max",
        "batch_age_ms_max",
        "hot_payments_max",
    ),
    "Risk": ("risk_rules", "attempt_caps", "review_ms"),
    "Reconciliation": ("reconciliation_rules",),
    "Merchants' webhooks": (
        "merchant_endpoints",
        "callbacks_url",
        "callback_retry_ms",
        "callback_tries_max",
        "callback_start",
        "callback_allow_http",
        "callback_allow_private",
    ),
    "Watching": ("metrics_port", "metrics_host", "log_level"),
    "Embedded servers and benchmarks": ("broker_heap_mb", "gateway_in_process"),
}

# Defaults that are found out on each machine, in words.
_FOUND_OUT: Final = {"state_dir": "`$XDG_STATE_HOME/paystream`, else `~/.local/state/paystream`"}

_BEFORE: Final = """\
# Configuration

Generated from `pipeline/config.py` by `python -m pipeline.config_document`; do not edit.

A setting is looked for in this order; the first place that has it wins:

1. the option of a command, where it has one (`--bootstrap-servers`, `--node-id`, ...);
2. the environment, as `PAYSTREAM_` and the name in capitals;
3. a TOML file: the one that `PAYSTREAM_CONFIG` names, else `paystream.toml` in the working
   directory, if there is one. A name it does not know is an error;
4. the flow that `paystream up` runs on this machine (addresses, prefix and partitions only);
5. the default.

An example of the file:

```toml
bootstrap_servers = "kafka-1:9092,kafka-2:9092,kafka-3:9092"
partitions = 48
replication_factor = 3
min_insync_replicas = 2
ledger_url = "postgresql+psycopg://paystream@db-1/paystream"
gateway_url = "http://gateway-1:8400"
```

Everything but `node_id`, `state_dir` and the metrics' address has to be the same for all workers
of a flow: those that decide about a payment must have the same patience. A value that is wrong is
named before anything starts.
"""

_AFTER: Final = """\
## Outside the settings

| variable | meaning |
|---|---|
| `PAYSTREAM_CONFIG` | the TOML file to read |
| `PAYSTREAM_CACHE_DIR` | where Kafka's jars are kept; default `~/.cache/paystream` |

What an installation may decide differently and has no setting yet (how often a charge is sent
again, how old an order may be) stands with its reason in
`pipeline/domain/policy.py`.
"""


def render() -> str:
    """The document's text."""
    return "\n".join([_BEFORE, *_tables(), _AFTER])


def _tables() -> Iterator[str]:
    for title, names in GROUPS.items():
        yield f"## {title}\n"
        yield "| setting | default | allowed | meaning |"
        yield "|---|---|---|---|"
        for name in names:
            yield _row(name)
        yield ""


def _row(name: str) -> str:
    field = Settings.model_fields[name]
    default = _FOUND_OUT.get(name) or _shown(field.default)
    return f"| `{name}` | {default} | {_allowed(field)} | {field.description or ''} |"


def _shown(value: Any) -> str:
    if value == "" or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`"


def _allowed(field: Any) -> str:
    """The bounds of a number or the words of a choice, from the field's own constraints."""
    least = most = None
    for rule in field.metadata:
        least = getattr(rule, "ge", least)
        most = getattr(rule, "le", most)
        if pattern := getattr(rule, "pattern", None):
            bare = str(pattern).strip("^$()")
            return ", ".join(f"`{word}`" for word in bare.split("|"))
    if field.annotation is bool:
        return "true, false"
    if least is not None and most is not None:
        return f"{least} to {most}"
    return f"{least} or more" if least is not None else ""


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
