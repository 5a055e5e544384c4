"""Errors that a person reads: one sentence, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong: a file, a setting, a server that is away.

    The message is one sentence that says what was wrong, where, and what to do next. The command
    line prints it and exits with ``exit_code``.
    """

    exit_code = 2


def why_unread(error: OSError | ValueError) -> str:
    """Why a file cannot be read, in words for a sentence that names it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).rstrip(".")
