"""A measurement that came out wrong is no figure."""

from __future__ import annotations


class WrongRun(Exception):
    """The measured program lost, doubled or changed something, or did not end in time.

    The message is one sentence; the benchmark prints it and exits with 1.
    """
