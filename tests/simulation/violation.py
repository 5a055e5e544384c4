"""What an auditor raises."""

from __future__ import annotations


class Violation(Exception):
    """A promise was broken; ``check`` names it."""

    def __init__(self, check: str, detail: str, order: int | None = None) -> None:
        super().__init__(check, detail, order)
        self.check = check
        self.detail = detail
        self.order = order

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"
