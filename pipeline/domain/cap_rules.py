"""Reading caps on attempts: TOML or JSON in, ``CapRules`` out, or one sentence about what is wrong.

::

    never_again_days = 30

    [[cap]]
    name = "visa"
    scheme = "visa"
    declines_max = 15
    window_s = 2592000

A file replaces the networks' caps whole. A cap has ``name``, ``declines_max`` and ``window_s``, and
may have ``scheme`` (a card network) and ``gateway``.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from pipeline.domain.attempt_caps import BAR_MS, NETWORK_CAPS
from pipeline.domain.card_attempts import CAP_DECLINES_MAX
from pipeline.domain.model import AttemptCap
from pipeline.domain.risk_velocity import WINDOW_MS_MAX
from pipeline.errors import UserError

# What the setting may say instead of naming a file: the networks' caps, or that nothing is counted
# across payments.
NETWORKS: Final = "networks"
OFF: Final = "off"

# Two or three a network, and some for a gateway; each is held against every attempt.
CAPS_MAX: Final = 32
_DAY_S: Final = 86_400
_WINDOW_S_MAX: Final = WINDOW_MS_MAX // 1000
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_KINDS: Final[Mapping[str, tuple[type, str]]] = {
    "name": (str, "a text"),
    "declines_max": (int, "a whole number"),
    "window_s": (int, "a whole number of seconds"),
    "scheme": (str, "a text"),
    "gateway": (str, "a text"),
}
_NEEDED: Final = ("name", "declines_max", "window_s")


class CapRules(Struct, frozen=True):
    """The caps of an installation, and how long a decline that says never again bars a card."""

    caps: tuple[AttemptCap, ...] = NETWORK_CAPS
    bar_ms: int = BAR_MS


def read_caps(text: str, where: str) -> CapRules:
    """The caps of a file's text. ``where`` names the file; JSON is told by its first character.

    Raises UserError: one sentence that says which cap is wrong, in what, and what would be right.
    """
    try:
        given = json.loads(text) if text.lstrip()[:1] == "{" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the caps on attempts in {where} are neither TOML nor JSON: {str(error)[:200]}."
        ) from None
    if not isinstance(given, dict) or not set(given) <= {"cap", "never_again_days"}:
        raise UserError(
            f"the caps on attempts in {where} may have never_again_days and a list named cap, and "
            'nothing else: [[cap]] before each cap in TOML, {"cap": [...]} in JSON.'
        )
    days = given.get("never_again_days", BAR_MS // (_DAY_S * 1000))
    if type(days) is not int or not 1 <= days <= _WINDOW_S_MAX // _DAY_S:
        raise UserError(
            f"never_again_days in {where} must be a whole number from 1 to "
            f"{_WINDOW_S_MAX // _DAY_S}: longer than that nothing is remembered of a card."
        )
    caps = given.get("cap", [])
    if not isinstance(caps, list) or len(caps) > CAPS_MAX:
        raise UserError(
            f"cap in {where} must be a list of at most {CAPS_MAX}: [[cap]] before each."
        )
    read: list[AttemptCap] = []
    for number, cap in enumerate(caps, start=1):
        problem = _problem(cap, [earlier.name for earlier in read])
        if problem is not None:
            raise UserError(f"cap {_called(cap, number)} in {where}: {problem}.")
        read.append(
            AttemptCap(
                name=cap["name"],
                declines_max=cap["declines_max"],
                window_ms=cap["window_s"] * 1000,
                scheme=cap.get("scheme", "").strip().lower(),
                gateway=cap.get("gateway", ""),
            )
        )
    return CapRules(tuple(read), days * _DAY_S * 1000)


def _called(cap: Any, number: int) -> str:
    name = cap.get("name") if isinstance(cap, dict) else None
    return repr(name[:40]) if isinstance(name, str) and name else f"number {number}"


def _problem(cap: Any, names: list[str]) -> str | None:
    """What is wrong with a cap, as the end of a sentence."""
    if not isinstance(cap, dict):
        return "it must be a table of fields"
    for name, value in cap.items():
        if name not in _KINDS:
            return f"it has no field {str(name)[:40]!r}; known are {', '.join(_KINDS)}"
        kind, said = _KINDS[name]
        if type(value) is not kind:
            return f"{name} must be {said}"
    for name in _NEEDED:
        if name not in cap:
            return f"{name} is missing"
    if not _NAME.fullmatch(cap["name"]):
        return "its name must be 1 to 60 of a-z 0-9 _, a letter first"
    if cap["name"] in names:
        return "another cap has that name"
    if not 1 <= cap["declines_max"] <= CAP_DECLINES_MAX:
        return f"declines_max must be 1 to {CAP_DECLINES_MAX}"
    if not 1 <= cap["window_s"] <= _WINDOW_S_MAX:
        return f"window_s must be 1 to {_WINDOW_S_MAX} (31 days)"
    return None
