"""Which gateway gets a charge: eligibility first, then the merchant's own, then priority."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.domain.policy import GatewayProfile, Policy


def choose_gateway(
    policy: Policy, merchant_id: str, currency: str, tried: Collection[str] = ()
) -> GatewayProfile | None:
    """The gateway for the next attempt, or None when no eligible one is left untried.

    Ties are broken by name, so the choice is the same wherever it is made.
    """
    best: GatewayProfile | None = None
    best_rank: tuple[bool, int, str] | None = None
    for profile in policy.gateways:
        if profile.currencies is not None and currency not in profile.currencies:
            continue
        if profile.merchants is not None and merchant_id not in profile.merchants:
            continue
        if profile.name in tried:
            continue
        rank = (profile.merchants is None, profile.priority, profile.name)
        if best_rank is None or rank < best_rank:
            best, best_rank = profile, rank
    return best


def profile_of(policy: Policy, gateway: str) -> GatewayProfile | None:
    """The profile of a gateway by its name, or None when it was taken out of the policy."""
    for profile in policy.gateways:
        if profile.name == gateway:
            return profile
    return None
