"""From settings to the policy that workers begin with; checked before a worker starts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.domain.cap_rules import NETWORKS, OFF, CapRules, read_caps
from pipeline.domain.policy import Policy
from pipeline.domain.risk_rules import read_rules
from pipeline.domain.route_rules import RoutesRefused, read_routes, routed
from pipeline.errors import UserError
from pipeline.gateways.configured import profiles_of


def policy_of(options: Mapping[str, Any]) -> Policy:
    """The policy of a worker's options (``Settings.worker_options``), without routes."""
    gateways = profiles_of(options)
    caps = _caps(options.get("attempt_caps", NETWORKS), [profile.name for profile in gateways])
    return Policy(
        gateways=gateways,
        attempt_caps=caps.caps,
        card_bar_ms=caps.bar_ms,
        count_cards=options.get("attempt_caps", NETWORKS) != OFF,
        retry_max=options["retry_max"],
        inquiry_max=options["inquiry_max"],
        send_within_ms=options["send_within_ms"],
        clock_skew_ms=options["clock_skew_ms"],
        review_ms=options["review_ms"],
        risk=(
            read_rules(options["risk_rules"], "the risk rules")
            if options.get("risk_rules")
            else None
        ),
    )


def _caps(given: str, gateways: list[str]) -> CapRules:
    """The caps that an installation's word or file says; UserError for a gateway that is none."""
    if given in (NETWORKS, OFF):
        return CapRules()
    rules = read_caps(given, "the caps on attempts")
    for cap in rules.caps:
        if cap.gateway and cap.gateway not in gateways:
            raise UserError(
                f"the cap {cap.name!r} on attempts is of {cap.gateway!r}, which is no gateway; "
                f"configured are {', '.join(sorted(gateways))}."
            )
    return rules


def read_routes_file(path: Path) -> str:
    """A routing document as JSON; TOML by its ending. UserError when it cannot be read."""
    try:
        raw = path.expanduser().read_bytes()
        if path.suffix.lower() == ".toml":
            return msgspec.json.encode(tomllib.loads(raw.decode())).decode()
        return raw.decode()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the routing rules in {path} cannot be read: {error}.") from error


def check_routes(policy: Policy, text: str, where: str) -> Policy:
    """The policy with the document laid over it; UserError says everything that is wrong."""
    try:
        return routed(policy, read_routes(text))
    except RoutesRefused as refused:
        problems = "".join(f"\n  {problem}" for problem in refused.problems)
        raise UserError(f"the routing rules in {where} cannot be used:{problems}") from refused
