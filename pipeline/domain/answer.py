"""What is known after one call to a gateway."""

from __future__ import annotations

from msgspec import Struct


class GatewayAnswer(Struct, frozen=True, kw_only=True, gc=False):
    """The outcome of one call, in the words of ``gateway-result``.

    ``outcome``: succeeded, declined, pending, unknown, not_sent or not_found. Only ``succeeded``
    moved money (``amount_minor`` of the request's currency); ``not_sent`` and ``declined`` are
    certain to have moved none; ``unknown`` may have.
    ``code`` is the normalised reason, ``gateway_code`` the gateway's own word for it.
    ``retry_after_ms``: how long the gateway asked us to wait.
    """

    outcome: str
    amount_minor: int = 0
    gateway_reference: str | None = None
    code: str | None = None
    gateway_code: str | None = None
    retry_after_ms: int | None = None
