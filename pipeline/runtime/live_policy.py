"""The policy that a worker goes by now: as configured, as the control topic says, as gateways do.

Three sources, one value. The configured policy is fixed; a control entry lays routes over it, or is
refused and the last good ones stay; the health of gateways follows their results. A decision sees
one policy from its beginning to its end, and what it chose is recorded with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from pipeline.domain.breaker import BreakerRule
from pipeline.domain.health import HealthBook
from pipeline.domain.model import ControlEntry, GatewayResult
from pipeline.domain.policy import Policy
from pipeline.domain.route_rules import ROUTING, RoutesRefused, read_routes, routed
from pipeline.domain.routing import profile_of
from pipeline.observability.metrics import Metrics

_log = logging.getLogger(__name__)


class LivePolicy:
    """``take`` may be called by another thread than the one that decides.

    ``routes`` is the configuration's own document (JSON, empty for none), which an entry replaces
    and which is in force again when the entry is deleted. ``on_change`` is told each new policy.
    """

    def __init__(
        self,
        configured: Policy,
        *,
        routes: str = "",
        metrics: Metrics | None = None,
        on_change: Callable[[Policy], None] | None = None,
    ) -> None:
        self._configured = configured
        self._own = routed(configured, read_routes(routes)) if routes else configured
        self._in_force = self._own
        self._metrics = metrics
        self._on_change = on_change
        self._book = HealthBook(self._breaker_rule)
        self._seen = self._in_force
        self._policy = self._in_force

    @property
    def in_force(self) -> Policy:
        """The policy without the health of the moment."""
        return self._in_force

    def fix(self, **fields: Any) -> None:
        """Set what neither routes nor health change, before anything is decided."""
        self._configured = replace(self._configured, **fields)
        self._own = replace(self._own, **fields)
        self._in_force = replace(self._in_force, **fields)

    def take(self, key: str, entry: ControlEntry | None) -> None:
        """An entry of the control topic, or None when it was deleted."""
        if key != ROUTING:
            return
        try:
            policy = (
                self._own
                if entry is None
                else routed(self._configured, read_routes(entry.value), version=entry.version)
            )
        except RoutesRefused as refused:
            _log.error(
                "version %d of the routes, by %s, is refused and the last good one kept: %s",
                entry.version if entry else 0,
                entry.changed_by if entry else "?",
                refused,
            )
            self._counted("refused")
            return
        self._in_force = policy
        version = policy.routes.version
        _log.info("routes of version %d are in force", version)
        self._counted("applied")
        if self._metrics is not None:
            self._metrics.control_version.labels(ROUTING).set(version)
        if self._on_change is not None:
            self._on_change(policy)

    def left_out(self, key: str, why: str) -> None:
        """A record of the control topic that cannot be read, and may have been the routes."""
        if key in ("", ROUTING):
            self._counted("refused")

    def saw(self, result: GatewayResult, at_ms: int) -> None:
        """Learn from a result; ``at_ms`` is its append time."""
        self._book.saw(
            result.gateway,
            result.kind,
            result.outcome,
            result.code,
            at_ms,
            result.retry_after_ms,
        )

    def at(self, now_ms: int) -> Policy:
        """The policy for a decision at this time."""
        in_force = self._in_force
        health = self._book.health(now_ms)
        if in_force is not self._seen or health is not self._policy.health:
            self._seen = in_force
            self._policy = replace(in_force, health=health)
        return self._policy

    def _breaker_rule(self, gateway: str) -> BreakerRule:
        profile = profile_of(self._in_force, gateway)
        return BreakerRule() if profile is None else profile.breaker

    def _counted(self, result: str) -> None:
        if self._metrics is not None:
            self._metrics.control_entries.labels(ROUTING, result).inc()
