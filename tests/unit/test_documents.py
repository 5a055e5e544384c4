"""What the documents say is there: links, commands, settings, metrics, files and tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from pipeline import config_document
from pipeline.chaos.flow.anomalies import ANOMALIES
from pipeline.config import Settings
from pipeline.observability import document as metrics_document
from tests.house import TOP
from tests.support.cli_runner import command_of
from tests.support.waiting import WAIT_S

DOCUMENTS = sorted(
    path
    for path in [*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"), *TOP.glob("data/*.md")]
    if path.is_file()
)
# First parts of paths that are the project's own.
OWN = ("pipeline", "topics", "schemas", "consumers", "producers", "tests", "docs", "deploy", "data")


def named(path: Path) -> str:
    return str(path.relative_to(TOP))


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=named)


@each_document
def test_links_lead_to_files_and_headings(path: Path) -> None:
    """Whoever follows a link arrives, at the heading it names."""
    assert broken_links(path.read_text(encoding="utf-8"), path) == []


@each_document
def test_commands_parse(path: Path) -> None:
    """A command copied from a document is one that the program takes."""
    wrong = []
    for line, is_mention in command_lines(path.read_text(encoding="utf-8")):
        try:
            parse(line, is_mention)
        except Exception as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


@pytest.mark.slow
def test_each_rule_of_the_engine_names_a_test_that_is_there() -> None:
    """By its file, or as the row above; behind a colon by its words, up to where they are left
    out. The files' names may be left out at their end as well; of those that stand in two folders
    the folder follows."""
    paths = [*(TOP / "tests").rglob("*.py")]
    files = [(path.stem, path.read_text()) for path in paths]
    twice = {stem for stem, count in Counter(path.stem for path in paths).items() if count > 1}
    # What one contract asks of several is there.
    shared = "".join(text for name, text in files if not name.startswith("test_"))
    text = (TOP / "docs/engine.md").read_text(encoding="utf-8")
    rows = text[text.index("| rule |") : text.index("## Not promised")].splitlines()[2:]
    wrong = []
    for row in filter(None, rows):
        told = row.strip("| ").split(" | ")[2]
        named = re.findall(r"`(test_\w+)`([^`]*)", told)
        if not named and not told.startswith("the same"):
            wrong.append(f"no file: {row}")
        for name, rest in named:
            if name in twice and not re.match(r" \((unit|component|integration)\)", rest):
                wrong.append(f"{name}: which of them?")
            there = "".join(text for file, text in files if file.startswith(name))
            tests = [_letters(each) for each in re.findall(r"def test_(\w+)", there + shared)]
            words = re.sub(r"\(.*?\)|\[.*?\]", "", rest.partition(":")[2])
            for part in map(_letters, re.split("[;…]", words)):
                if not there or not any(part in test for test in tests):
                    wrong.append(f"{name}: {part}")
    assert len(rows) > 70
    assert wrong == []


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


@each_document
def test_make_targets_exist(path: Path) -> None:
    """What a document tells to make can be made."""
    targets = set(re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), flags=re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    told = re.findall(r"(?:^ {4}|`)make ([\w-]+)", text, flags=re.MULTILINE)
    assert set(told) - targets == set()


@each_document
def test_metrics_exist(path: Path) -> None:
    """A metric named in a document is one that the program serves."""
    known = {series for metric in metrics_document.described() for series in metric.series}
    told = set(re.findall(r"\bpaystream_[a-z_]+\b", path.read_text(encoding="utf-8")))
    assert told - known == set()


@each_document
def test_settings_exist(path: Path) -> None:
    """A variable named in a document is read by the program."""
    known = {f"PAYSTREAM_{name.upper()}" for name in Settings.model_fields}
    known |= {"PAYSTREAM_CONFIG", "PAYSTREAM_CACHE_DIR"}
    told = set(re.findall(r"\bPAYSTREAM_[A-Z_]+\b", path.read_text(encoding="utf-8")))
    assert told - known - {"PAYSTREAM_"} == set()


@each_document
def test_files_and_tests_exist(path: Path) -> None:
    """A path in backticks is a file of the project, and a test behind it is in that file."""
    assert missing_paths(path.read_text(encoding="utf-8")) == []


@pytest.mark.slow
def test_every_test_behind_a_promise_runs_as_it_is_written() -> None:
    """The line of the README, with a test's id from its table or that of the page on reliability,
    runs that test."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    promises = "".join(cell for _, _, cell, _ in promised())
    told = re.findall(r"`(tests/[\w/.]+::[\w:]+)`", text + promises)
    (line,) = re.findall(r"`\.venv/bin/python (-m pytest .*) TEST`", text)
    words = [sys.executable, *shlex.split(line), "--collect-only", "-q", *told]
    done = subprocess.run(words, cwd=TOP, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each.partition("[")[0] for each in done.stdout.splitlines()}
    assert set(told) - found == set()
    assert len(told) >= 13


def test_each_promise_has_a_mechanism_a_test_and_a_figure() -> None:
    """The eight of the page on reliability. A figure's command is named, and each of its numbers
    stands where one of its links leads: what is renewed there is renewed here."""
    wrong = []
    for promise, mechanism, tests, figure in promised():
        if "](" not in mechanism or "`tests/" not in tests:
            wrong.append(f"no link or no test: {promise}")
        if not re.search("`(make|paystream|python) ", figure):
            wrong.append(f"no command: {promise}")
        told = re.sub(r"`(make|paystream|python) .*?`|\]\(.*?\)", "", figure)
        there = "".join(map(linked, re.findall(r"\]\((.*?)\)", figure)))
        for number in re.findall(r"\d[\d,]*\b", told):
            if not re.search(rf"(?<![\d,.]){number}(?![\d,.]*\d)", there):
                wrong.append(f"{number} is not where the link leads: {promise}")
    assert len(promised()) == 8
    assert wrong == []


def test_the_long_chaos_run_is_as_large_as_it_has_to_be_and_found_nothing() -> None:
    """The committed report: twenty minutes, at least 300,000 orders and 60 faults, each anomaly
    looked for and none found, and the recovery of each kind of fault that happened."""
    assert wrong_of_the_report((TOP / "docs/chaos-20-minutes.md").read_text(encoding="utf-8")) == []


def wrong_of_the_report(text: str) -> list[str]:
    """What a report of ``paystream chaos run`` does not show, of what the long one has to."""
    counted = re.search(
        r"^- ([\d,]+) orders in .*, ([\d,]+) acknowledged; (\d+) faults of (\d+) kinds",
        text,
        re.MULTILINE,
    )
    orders, acknowledged, faults, kinds = (
        (int(number.replace(",", "")) for number in counted.groups()) if counted else (0, -1, 0, -1)
    )
    found = dict(re.findall(r"^\| ([^|]+) \| (\d+) \| \D", text, re.MULTILINE))
    recovered = re.findall(r"^\| ([a-z][\w-]*) \| (\d+) \| [\d.]+ \| [\d.]+ ", text, re.MULTILINE)
    rows = {kind: int(times) for kind, times in recovered if kind != "all"}
    shown = {
        "twenty minutes": "paystream chaos run --minutes 20 " in text,
        "the verdict": "\n- verdict: whole\n" in text,
        "300,000 orders": orders >= 300_000,
        "each order acknowledged": acknowledged == orders,
        "60 faults": faults >= 60,
        "what was looked at": bool(
            re.search(r"^- looked at: .* [\d,]{9,} records committed", text, re.MULTILINE)
        ),
        "30 kinds": kinds >= 30,
        "each kind's recovery": len(rows) == kinds and sum(rows.values()) == faults,
        "each anomaly looked for": set(found) == set(ANOMALIES),
        "none found": set(found.values()) == {"0"},
    }
    return [what for what, is_shown in shown.items() if not is_shown]


def promised() -> list[list[str]]:
    """The cells of the table of promises."""
    rows = linked("#what-is-promised").splitlines()
    return [row.strip("| ").split(" | ") for row in rows if row.startswith("| **")]


def linked(link: str) -> str:
    """What a link of the page on reliability leads to: a document, or one of its sections."""
    place, _, anchor = link.partition("#")
    path = (TOP / "docs" / (place or "reliability.md")).resolve()
    text = path.read_text(encoding="utf-8")
    # What a section holds ends with the next heading that is no smaller.
    found = re.split(r"^(#+) (.+)$", text, flags=re.MULTILINE)[1:]
    parts = list(zip(found[::3], found[1::3], found[2::3], strict=True))
    for at, (marks, title, _) in enumerate(parts):
        if anchor == slug(title):
            rest = parts[at + 1 :]
            inner = takewhile(lambda part, marks=marks: len(part[0]) > len(marks), rest)
            return parts[at][2] + "".join(body for _, _, body in inner)
    assert not anchor, f"{link} leads nowhere"
    return text


def test_the_file_map_is_the_tree() -> None:
    """Every file and module of ARCHITECTURE's map is where the map says."""
    assert missing_of_the_map((TOP / "ARCHITECTURE.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", [config_document, metrics_document])
def test_a_generated_document_is_what_the_code_says(module: Any) -> None:
    """The committed lists of settings and metrics change with the code they come from."""
    told = module.DOCUMENT.read_text(encoding="utf-8")
    assert told == module.render(), f"run: python -m {module.__name__}"


def test_every_setting_is_listed_once_and_explained() -> None:
    """No setting is left out of the groups that the document shows, nor its meaning."""
    listed = [name for names in config_document.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(Settings.model_fields), "see pipeline/config_document.py GROUPS"
    assert [n for n, field in Settings.model_fields.items() if not field.description] == []


def test_every_alert_has_its_line_for_whoever_is_woken() -> None:
    """The operations guide says of each alert what it means and where to begin."""
    text = (TOP / "docs/operations.md").read_text(encoding="utf-8")
    alerts = re.findall(
        r"- alert: (\w+)[\s\S]*?severity: (\w+)",
        (TOP / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"),
    )
    assert alerts
    for alert, severity in alerts:
        assert f"| {alert} | {severity} |" in text


def test_python_examples_compile_and_import_what_exists() -> None:
    """An example copied from a document does not stop at its imports."""
    examples = [
        example
        for path in DOCUMENTS
        for example in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    ]
    assert len(examples) >= 4
    for example in examples:
        compile(example, "example", "exec")
        imports = re.findall(r"^(?:from|import) .*$", example, re.MULTILINE)
        exec("\n".join(imports), {})


def test_what_is_wrong_is_noticed() -> None:
    """The checks above can fail."""
    here = TOP / "README.md"
    assert broken_links("[a](docs/nowhere.md) [b](docs/topics.md#nowhere)", here) == [
        "docs/nowhere.md",
        "docs/topics.md#nowhere",
    ]
    assert missing_paths("`pipeline/nowhere.py`, `tests/house.py::test_nothing`") == [
        "pipeline/nowhere.py",
        "tests/house.py::test_nothing",
    ]
    assert missing_of_the_map("## File map\n| `pipeline/domain/` | `nowhere` |\n") == [
        "pipeline/domain/nowhere"
    ]
    long_run = (TOP / "docs/chaos-20-minutes.md").read_text(encoding="utf-8")
    assert wrong_of_the_report(long_run.replace("| lost | 0 |", "| lost | 1 |")) == ["none found"]
    assert "60 faults" in wrong_of_the_report(re.sub(r"\d+ faults of", "59 faults of", long_run))
    assert len(wrong_of_the_report("")) == 10
    for line in ("paystream nonsense", "paystream run paiments", "paystream verify --misspelt"):
        with pytest.raises(Exception, match=r"(?i)no such|paiments"):
            parse(line, is_mention=True)
    post = "paystream ledger post a=1:GBP b=-1:GBP --reason x"
    parse(post, is_mention=True)
    with pytest.raises(Exception, match="date"):
        parse(post, is_mention=False)
    assert list(command_lines("    paystream up  # it\nso `paystream\n  verify`, `paystream`")) == [
        ("paystream up  # it", False),
        ("paystream verify", True),
    ]


def broken_links(text: str, path: Path) -> list[str]:
    """The targets of links, other than web addresses, that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in headings(file)):
            broken.append(target)
    return broken


@cache
def headings(path: Path) -> frozenset[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", without_code(path.read_text("utf-8")), flags=re.MULTILINE)
    return frozenset(map(slug, found))


def slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def command_lines(text: str) -> Iterator[tuple[str, bool]]:
    """Every ``paystream ...`` of a document, and whether it is a mention: lines of code are to be
    typed as they stand, words in backticks may only name a command."""
    for line in re.findall(r"^(?: {4}|\$ )?((?:\.venv/bin/)?paystream .*)$", text, re.MULTILINE):
        yield line.removeprefix(".venv/bin/"), False
    for words in re.findall(r"`(paystream\s+[a-z][^`]*)`", text):
        yield " ".join(words.split()), True


def parse(line: str, is_mention: bool) -> None:
    """Parse a command line down to its last sub-command without running it.

    Words in capitals stand for values. A mere mention (``paystream order submit``) may leave out
    what the command needs; what it gives has to be right.
    """
    from pipeline.cli import app

    words = [word for word in shlex.split(line, comments=True)[1:] if word != "--help"]
    rest = ["1" if word == "SECONDS" else word for word in words]
    command: Any = command_of(app)
    context: Any = None
    name = "paystream"
    while True:
        try:
            context = command.make_context(name, rest, parent=context)
        except Exception as error:
            if is_mention and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
                return
            raise
        if not hasattr(command, "resolve_command"):
            return
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )


def missing_paths(text: str) -> list[str]:
    """Paths of the project in backticks, with or without a test's name, that do not exist."""
    missing = []
    for told in re.findall(r"`([\w.*-]+/[\w./*-]*(?:::\w+)*)`", text):
        name, test, *_ = [*told.split("::"), ""]
        if name.split("/")[0] not in OWN:
            continue
        files = [path for path in TOP.glob(name.rstrip("/")) if path.exists()]
        there = re.compile(rf"^ *(async def|def|class) {test}\b", re.MULTILINE)
        if not files or (test and not there.search(files[0].read_text(encoding="utf-8"))):
            missing.append(told)
    return missing


def missing_of_the_map(text: str) -> list[str]:
    """Names in the file map's rows that are neither there nor in the folder the row is about."""
    missing = []
    for row in re.findall(r"^\| (`.*?) \| (.*) \|$", text.split("## File map")[1], re.MULTILINE):
        folder = TOP
        for place, cell in enumerate(row):
            for name in re.findall(r"`([\w./]+)`", cell):
                if name.startswith("."):
                    continue
                found = [folder / name, folder / f"{name}.py", TOP / name]
                hit = next((path for path in found if path.exists()), None)
                if hit is None:
                    missing.append(str((folder / name).relative_to(TOP)))
                elif place == 0 and folder == TOP:
                    folder = hit if hit.is_dir() else hit.parent
    return missing
