"""From settings to the policy that workers begin with; checked before a worker starts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.domain.policy import GatewayProfile, Policy
from pipeline.domain.route_rules import RoutesRefused, read_routes, routed
from pipeline.errors import UserError


def policy_of(options: Mapping[str, Any]) -> Policy:
    """The policy of a worker's options (``Settings.worker_options``), without routes."""
    return Policy(
        gateways=tuple(
            GatewayProfile(
                name=name,
                grace_ms=options["gateway_grace_ms"],
                key_retention_ms=options["gateway_key_retention_ms"],
            )
            for name in gateway_urls(options)
        ),
        retry_max=options["retry_max"],
        inquiry_max=options["inquiry_max"],
        send_within_ms=options["send_within_ms"],
        clock_skew_ms=options["clock_skew_ms"],
    )


def gateway_urls(options: Mapping[str, Any]) -> dict[str, str]:
    """The base URL of each gateway by its name."""
    return dict(options["gateways"] or {options["gateway_name"]: options["gateway_url"]})


def read_routes_file(path: Path) -> str:
    """A routing document as JSON; TOML by its ending. UserError when it cannot be read."""
    try:
        raw = path.expanduser().read_bytes()
        if path.suffix.lower() == ".toml":
            return msgspec.json.encode(tomllib.loads(raw.decode())).decode()
        return raw.decode()
    except (OSError, ValueError) as error:
        raise UserError(f"the routing rules in {path} cannot be read: {error}.") from error


def check_routes(policy: Policy, text: str, where: str) -> Policy:
    """The policy with the document laid over it; UserError says everything that is wrong."""
    try:
        return routed(policy, read_routes(text))
    except RoutesRefused as refused:
        problems = "".join(f"\n  {problem}" for problem in refused.problems)
        raise UserError(f"the routing rules in {where} cannot be used:{problems}") from refused
