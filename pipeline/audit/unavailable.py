"""The audit could not be made: a server is away, or a topic is not there."""

from __future__ import annotations

from pipeline.errors import UserError


class AuditUnavailable(UserError):
    """Nothing can be said about the flow. Its exit code is none of the three verdicts (0, 1, 2)."""

    exit_code = 3
