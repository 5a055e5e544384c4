"""docs/gateways.md from the tables of codes and of retry safety, and the adapters' profiles.

Regenerate with ``python -m pipeline.gateways.document``; a test holds the document to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipeline.domain.normalisation import (
    GATEWAY_CODES,
    OPERATIONS,
    PHASE_MEANINGS,
    RETRY_SAFETY,
    STANDARD,
    Action,
    Again,
    Phase,
)
from pipeline.gateways.configured import GatewayEntry, adapters, listed

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "gateways.md"

_ACTIONS: Final = {
    Action.RETRY_HERE: "nothing was handled: the same attempt again, after a while",
    Action.OTHER_GATEWAY: "declined for reasons of the gateway's: the next eligible one is tried, "
    "unless this one takes no keys",
    Action.ASK_CUSTOMER: "declined or waiting: only the customer can change it",
    Action.NEVER_AGAIN: "declined for good: this card is not tried again, neither in this payment "
    "nor, [where it is counted](risk.md#caps-on-attempts), in another",
    Action.FAIL: "declined for what was asked: asking the same again will not help",
    Action.INQUIRE: "nothing is certain: ask by our own reference, send nothing",
}

_SETTINGS: Final = {
    "url": "base address; two gateways never share one",
    "adapter": "which contract it speaks: " + listed(adapters()),
    "currencies": "what it takes; left out, everything",
    "merchants": "whom it serves; a gateway that names the merchant goes first",
    "priority": "the lowest number goes first",
    "grace_ms": "how long it may say not found of what it did; left out, `gateway_grace_ms`",
    "key_retention_ms": "how long it remembers a key; left out, `gateway_key_retention_ms`",
    "idempotent": "false: never repeat a call; left out, the adapter's own",
    "authorization_ms": "how long an authorization is good for",
    "fees": "by currency, a table of `basis_points` and `fixed_minor`",
    "concurrency_max": "calls open at a time, of all workers together",
    "rate_per_s": "calls begun a second, of all workers together",
    "api_key": "sent as a bearer token",
    "notice_secrets": "what its notices are signed with; the old and the new one in an exchange",
}

# What a gateway consists of.
_PLACES: Final = {
    "a module in `pipeline/gateways/adapters/`": "its contract from our side: requests, answers, "
    "notices. Its class says `idempotent` (False: what arrives twice is done twice), "
    "`sends_notices` and `notices_by_own_id`; none of them has a default",
    "`ADAPTERS` in `pipeline/gateways/adapters/known.py`": "the class",
    "`GATEWAY_CODES` in `pipeline/domain/normalisation.py`": "its codes",
    "a module in `pipeline/gateways/reports/`": "what reads its settlement reports",
    "`_readers` in `pipeline/gateways/reports/base.py`": "that reader",
    "`_BY_ADAPTER` in `pipeline/gateways/reports/terms.py`": "its reports' time zone, and how many "
    "days they and the bank may take",
    "a module in `pipeline/gateways/simulator/wires/`": "its contract from the gateway's side, "
    "which the suite calls",
    "`PERSONALITIES` in `pipeline/gateways/simulator/personality.py`": "that side, its prices and "
    "its temper",
    "`WRITERS` in `pipeline/gateways/simulator/report_formats.py`": "how it writes its reports",
    "`said` in `tests/unit/test_gateway_normalisation.py`": "the codes that it can say",
    "`KEY_FIELD` in `tests/unit/test_gateway_adapters.py`": "where its answers name our key",
    "`--gateway` in `pipeline/commands/flow.py` and in [docs/simulator.md](simulator.md)": "its "
    "name",
}

_HEAD: Final = """\
# Gateways

Generated from `pipeline/domain/normalisation.py` and `pipeline/gateways/configured.py` by
`python -m pipeline.gateways.document`; do not edit.

The gateway worker knows one port (`pipeline/gateways/port.py`): charge, authorize, capture, void,
refund, inquire. Behind it one transport (`pipeline/gateways/http_adapter.py`) is certain about what
was written and what was not, and an adapter for each contract (`pipeline/gateways/adapters/`) knows
what the bytes mean. Every adapter passes one suite, `tests/integration/test_gateway_contract.py`,
against a real server that plays every trouble with every operation.

## Adding a gateway

It has one name in all of these places. `make check` names a place that was forgotten.

"""

_ADDED: Final = """\
Then run `python -m pipeline.gateways.document`, and the suite: it takes in every adapter, and one
that does not keep what its class says, as by charging twice, fails there.

## Configuration

Without anything, one gateway: `gateway_name` at `gateway_url`. Several are a table:

```toml
[gateways.northbank]
adapter = "northbank"
url = "https://api.northbank.example"
currencies = ["GBP", "EUR"]
priority = 10
fees = { GBP = { basis_points = 95, fixed_minor = 10 } }

[gateways.pacific]
adapter = "pacific"
url = "https://pacific.example"
key_retention_ms = 3600000
```

or the same as JSON in `PAYSTREAM_GATEWAYS`. What cannot be meant is named before anything starts.
`paystream up --gateways all` runs the four simulated ones ([simulator](simulator.md)).

"""

_CODES: Final = """\
`concurrency_max` and `rate_per_s` are shared out among all workers. Breakers are not, nor is what a
gateway says by Retry-After: both are of the worker that met them
([what that means](routing.md#what-workers-do-not-share)).

Retry-After is read in seconds and as a date, which counts from the answer's own `Date`; more than
an hour is taken for an hour. After a 429 nobody calls before it ends. A 503 says nothing of what
became of the request: the payment is asked about no sooner, within a minute all the same, and about
others the breaker decides.

## Codes

Each code of a gateway has one standard code, and each standard code asks for one action. A decline
whose code is not in the table is `card_declined`; any other word is `gateway_error`: nothing is
certain. What an inquiry is refused with says nothing about the operation, whatever the code.

| action | what follows |
|---|---|
"""

_IDS: Final = """\
## Ids

A gateway's own id stands for one movement of money, for good: no two charges, captures or refunds
have one. Only where notices carry our reference, a capture may have its authorization's, and a
refund that of the charge or capture that it gives back. Where they carry nothing but that id
(`pacific`), each operation has its own, also a void: nobody could say which of two a notice is
about, and whatever is told under the id of another one is a contradiction. Where a gateway uses an
id again, its adapter makes it unique, say by our operation's id behind it: in answers, notices and
reports alike. A success under the id of another movement is a contradiction
([evidence](lifecycle.md#evidence-that-does-not-fit)): nothing is booked, and a person who has seen
both in the gateway's books resolves it with `--despite-id`.

"""

_SAFETY: Final = """\
## What may be sent again

How far a call came, and what it was for, decide whether it may be sent once more: *here*, the same
attempt with the same key, and *elsewhere*, a new attempt at another gateway. Elsewhere needs proof,
or a plain no of a gateway with keys (for reasons of its own, `other_gateway`), and only charges and
authorizations can go there: what is about a charge stays where the charge is.

| phase | meaning |
|---|---|
"""

_WITHOUT: Final = """\
A gateway without idempotency takes what arrives twice as two. So nothing that may have been sent to
it is sent again, and that includes what another worker may have sent: after a crash, a rebalance or
an aborted transaction a request comes a second time, and is answered `possibly_sent` (unknown)
instead of being sent. It is then asked about until it is found, or proven not to have happened.
Proven so, a charge goes to another gateway, and anything else has failed: what was owed back
[waits for a person](lifecycle.md#what-comes-too-late).
When a worker takes a partition, requests that already wait in it are treated so, even if in truth
nobody has sent them ([why](adr/0019-unread-requests-count-as-sent.md)). One gap cannot be closed
from our side: a worker that froze, woke up outside its group and reads on before it notices may
send what its successor sends as well, inside the send window. Where that must not be, take a
gateway with keys.
"""


def render() -> str:
    """The document's text."""
    return "\n".join(
        [
            _HEAD + "\n".join(_places()),
            _ADDED + "\n".join(_settings()),
            _CODES + "\n".join(_codes()),
            "\n".join(_safety()),
        ]
    )


def _places() -> Iterator[str]:
    yield "| where | what |"
    yield "|---|---|"
    for where, what in _PLACES.items():
        yield f"| {where} | {what} |"
    yield ""


def _settings() -> Iterator[str]:
    yield "| setting | meaning |"
    yield "|---|---|"
    for name in GatewayEntry.__struct_fields__:
        yield f"| `{name}` | {_SETTINGS[name]} |"
    yield ""


def _codes() -> Iterator[str]:
    for action in Action:
        yield f"| `{action.value}` | {_ACTIONS[action]} |"
    yield ""
    adapters = list(GATEWAY_CODES)
    yield f"| standard code | action | meaning | {' | '.join(adapters)} |"
    yield f"|---|---|---|{'---|' * len(adapters)}"
    for code, standard in STANDARD.items():
        cells = [
            " ".join(f"`{own}`" for own, to in GATEWAY_CODES[adapter].items() if to == code)
            for adapter in adapters
        ]
        yield (
            f"| `{code}` | `{standard.action.value}` | {standard.meaning} | {' | '.join(cells)} |"
        )
    yield ""


def _safety() -> Iterator[str]:
    yield (
        _IDS
        + _SAFETY
        + "\n".join(f"| `{phase.value}` | {meaning} |" for phase, meaning in PHASE_MEANINGS.items())
    )
    yield ""
    for idempotent, title in ((True, "with idempotency keys"), (False, "without")):
        yield f"### A gateway {title}"
        yield ""
        yield f"| phase | {' | '.join(OPERATIONS)} |"
        yield f"|---|{'---|' * len(OPERATIONS)}"
        for phase in Phase:
            cells = [_cell(phase, operation, idempotent) for operation in OPERATIONS]
            yield f"| `{phase.value}` | {' | '.join(cells)} |"
        yield ""
    yield _WITHOUT.rstrip()
    yield ""


def _cell(phase: Phase, operation: str, idempotent: bool) -> str:
    safety = RETRY_SAFETY[phase, operation, idempotent]
    here, elsewhere = safety.here, safety.elsewhere
    if here is Again.NO and elsewhere is Again.NO:
        return "no"
    parts = []
    if here is not Again.NO:
        parts.append(f"here: {here.value}")
    if elsewhere is not Again.NO:
        parts.append(f"elsewhere: {elsewhere.value}")
    return ", ".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
