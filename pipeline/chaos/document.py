"""The place of a table in a document, between the two markers of the command that writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where the table of ``paystream chaos COMMAND`` stands."""

    command: str

    @property
    def begin(self) -> str:
        return f"<!-- written by paystream chaos {self.command} --write: begin -->"

    @property
    def end(self) -> str:
        return f"<!-- written by paystream chaos {self.command} --write: end -->"

    def require(self, path: Path) -> None:
        """UserError, before anything runs, when the table has no place in the document."""
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        begin, end = self.begin, self.end
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UserError(
                f"{path} does not say where the table goes: put the lines {begin} and {end} into "
                "it."
            )

    def read(self, path: Path) -> str:
        """What stands between the two markers."""
        _, _, rest = path.read_text(encoding="utf-8").partition(self.begin)
        return rest.partition(self.end)[0].strip()

    def write(self, path: Path, table: str) -> None:
        """Replace what stands between the two markers."""
        before, _, rest = path.read_text(encoding="utf-8").partition(self.begin)
        _, _, after = rest.partition(self.end)
        text = f"{before}{self.begin}\n\n{table}\n\n{self.end}{after}"
        path.write_text(text, encoding="utf-8")
