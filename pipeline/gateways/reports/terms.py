"""What each contract says about its reports' time: the defaults of reconciliation's rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipeline.domain.reconciliation_rules import ReconciliationRules, read_rules
from pipeline.errors import UserError

# Of the contracts in docs/simulator.md. A row may be a day late, so one more for it; a batch is at
# the bank one to three days after the report, and one more until the statement is here.
_BY_ADAPTER: Final[Mapping[str, Mapping[str, Any]]] = {
    "simulator": {"time_zone": "UTC", "report_days": 2, "bank_days": 2},
    "northbank": {"time_zone": "Europe/London", "report_days": 2, "bank_days": 2},
    "pacific": {"time_zone": "America/Los_Angeles", "report_days": 2, "bank_days": 3},
    "legacy": {"time_zone": "America/New_York", "report_days": 2, "bank_days": 4},
}


def rules_of(adapters: Mapping[str, str], document: Mapping[str, Any]) -> ReconciliationRules:
    """The rules of the configured gateways (name to adapter), where a document says nothing else.

    UserError for a document that cannot be meant.
    """
    said = document.get("gateways", {})
    read_rules(document)
    unknown = sorted(set(said) - set(adapters))
    if unknown:
        raise UserError(
            f"reconciliation rules: there is no gateway {unknown[0]!r}; configured are "
            f"{', '.join(adapters)}."
        )
    tables = {}
    for name, adapter in adapters.items():
        own = {**_BY_ADAPTER.get(adapter, {}), "bank_names": [adapter, name]}
        tables[name] = {**own, **said.get(name, {})}
    return read_rules({**document, "gateways": tables})
