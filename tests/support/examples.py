"""How much of a property's world a run looks at: all of it, or the part that seconds allow.

``make test`` names the profile ``thorough``; every other run takes ``fast``, a tenth of it.
"""

from __future__ import annotations

import hypothesis

FAST, THOROUGH = "fast", "thorough"
_SHARE = {FAST: 10, THOROUGH: 100}


def register_profiles() -> None:
    """Known to ``--hypothesis-profile``; ``fast`` counts until that names another."""
    for name, share in _SHARE.items():
        # No deadline: a machine that does other things as well must not fail a property by being
        # slow. Drawn from the test's own text: what one run has passed the next one passes, and
        # what a change breaks is found by whoever makes it.
        hypothesis.settings.register_profile(
            name, deadline=None, max_examples=share, derandomize=True
        )
    hypothesis.settings.load_profile(FAST)


def share_of(thorough: int) -> int:
    """Examples, or seeds, for this run where a thorough one looks at so many.

    Asked when a test module is imported, which is after the profile was chosen.
    """
    return max(1, thorough * hypothesis.settings().max_examples // _SHARE[THOROUGH])
