"""What is committed speaks of the project alone."""

from __future__ import annotations

import hashlib
import re
import subprocess

import pytest

from tests.house import TOP

# Written in pieces, or this file would find itself. Each begins with letters, which are found many
# times as fast as a place between two characters: what may not stand before them is asked behind.
FORBIDDEN = {
    "a path of one machine": [r"/wo" r"rk/", r"/tmp/" r"plan", r"/ro" r"ot/", r"/home/" r"\w+/"],
    "the host of a package registry": [
        r"py" r"pi\.org",
        r"python" r"hosted\.org",
        r"repo1?\." r"maven",
        r"maven\." r"(org|google)",
        r"registry\." r"npmjs",
        r"proxy\." r"golang",
    ],
    "notes that are not in the repository": [
        *(rf"{name}\.md" for name in ("DESIGN", "FACTS", "STYLE", "CONTRACT")),
        r"shar" r"ed/(?<![\w/].{7})",
    ],
    "who or what wrote it": [
        r"A" r"I\b(?<!\w.{2})",
        r"LL" r"M\b(?<!\w.{3})",
        r"(?i)clau" r"de",
        r"(?i)anthro" r"pic",
    ],
}


@pytest.mark.slow
def test_no_file_names_a_machine_a_registry_or_its_author() -> None:
    """A clone means the same on every machine, and installs from wherever its user chooses."""
    found = [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group()}"
        for path, text in committed_text().items()
        for what, patterns in FORBIDDEN.items()
        for pattern in patterns
        for match in re.finditer(pattern, text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "pieces",
    [("see /wo", "rk/main/x"), ("https://py", "pi.org/simple"), ("by an A", "I")],
)
def test_a_forbidden_line_is_noticed(pieces: tuple[str, str]) -> None:
    """The patterns above match what they are meant to."""
    line = "".join(pieces)
    assert any(re.search(p, line) for patterns in FORBIDDEN.values() for p in patterns)


def test_the_sample_data_is_whole_and_keeps_its_notice() -> None:
    """The licence of the data asks for its notice, and the demo counts on every byte of it."""
    data = TOP / "data" / "online-retail-2010-12-01-to-03.csv"
    assert len(data.read_bytes().splitlines()) == 7_420
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert digest == "9ddbf5f8cee0885e57982d2180c027b2d66290d01f7465290be43c46d053f95d"
    notice = (TOP / "data" / "ATTRIBUTION.md").read_text()
    assert "CC BY 4.0" in notice
    assert "10.24432/C5BW33" in notice
    assert data.name in notice


def committed_text() -> dict[str, str]:
    """Path to content of every text file git knows."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, timeout=30, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so nothing says which files belong to the project")
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        path = TOP / name
        if path.suffix == ".lock" or not path.is_file():
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return texts
