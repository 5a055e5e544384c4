"""``make mutate-guarantees``: take each defence out in turn and see that something notices.

A process that has the libraries loaded forks one for each defence, which imports the program with
the one file changed in memory; nothing is copied or written. The first test or seed that notices
ends it: those that the defence names, the seed that noticed it last (the table tells), then one
seed after another, each with the rich mix of orders. One that nothing notices, or whose text is not
there any more, fails; so does a seed that breaks a promise with every defence in its place.

``--properties`` asks the property tests alone about defences of their own list.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.property_mutations import PROPERTY_MUTATIONS

TOP = Path(__file__).parents[2]
# Seeds that are tried where nothing that is named notices.
SEEDS_MAX = 24
# Whatever orders a seed has in other runs: with these it comes to most of what is defended.
SEEDS_MIX = "rich"
TIMEOUT_S = 900.0
PROPERTIES = "tests/property/"
# Without these a forked process would load them once more, for longer than a seed takes.
LIBRARIES = (
    "asyncio", "confluent_kafka", "confluent_kafka.admin", "fastavro", "greenlet", "msgspec",
    "pytest", "sqlalchemy", "sqlalchemy.dialects.sqlite",
)  # fmt: skip
BEGIN = "<!-- written by make mutate-guarantees: begin -->"
END = "<!-- written by make mutate-guarantees: end -->"


@dataclass(frozen=True)
class Found:
    """What noticed that a defence was gone, and by which word."""

    by: str
    word: str = ""

    def __str__(self) -> str:
        return f"{self.by}: {self.word}" if self.word else self.by


def missing_texts() -> list[str]:
    """Mutations whose text is not found exactly once: the defence was moved or is gone."""
    every = (*MUTATIONS, *PROPERTY_MUTATIONS)
    return [f"{m.name}: {m.file}" for m in every if not _is_there(m)]


def _is_there(mutation: Mutation) -> bool:
    return (TOP / mutation.file).read_text().count(mutation.text) == 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make mutate-guarantees", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name or file holds this text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="leave out so many of them")
    parser.add_argument("--seeds-alone", action="store_true", help="run no tests, only seeds")
    parser.add_argument("--properties", action="store_true", help="the property tests' own list")
    parser.add_argument("--write", help="the document whose table of defences is written anew")
    options = parser.parse_args(argv)
    missing = missing_texts()
    for each in missing:
        print(f"NOT FOUND  {each}")
    every = PROPERTY_MUTATIONS if options.properties else MUTATIONS
    wanted = [
        each for each in every if options.only in f"{each.name} {each.file}" and _is_there(each)
    ][options.first :]
    if options.seeds_alone:
        wanted = [replace(each, by=()) for each in wanted]
    began_s = time.monotonic()
    found: dict[str, Found | None] = {}
    hints = hints_of(Path(options.write).read_text() if options.write else "")
    for mutation, noticed in _tried(wanted, options.processes, hints):
        found[mutation.name] = noticed
        word = "SURVIVED" if noticed is None else "noticed"
        print(f"{len(found):3}/{len(wanted)} {word:8} {mutation.name}", flush=True)
        print(f"{'':17}{mutation.file}" + (f": {noticed}" if noticed else ""), flush=True)
    false = _alone(found.values())
    if false is not None:
        print(f"FALSE     {false} with every defence in its place: what it noticed is not known")
    seconds = time.monotonic() - began_s
    survived = sum(each is None for each in found.values())
    print(
        f"{len(wanted)} defences taken out in {seconds:.0f} s: {survived} survived, "
        f"{len(missing)} not found"
    )
    whole = len(wanted) == len(every) and not (options.seeds_alone or options.properties)
    if options.write and whole:
        place = Path(options.write)
        place.write_text(with_table(place.read_text(), found, seconds))
    return 1 if survived or missing or false else 0


def _tried(
    wanted: list[Mutation], processes: int, hints: dict[str, int]
) -> Iterator[tuple[Mutation, Found | None]]:
    context = get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    with ThreadPoolExecutor(processes) as pool:
        made = {
            pool.submit(_in_a_process, context, each, hints.get(each.name)): each for each in wanted
        }
        for done in as_completed(made):
            yield made[done], done.result()


def _alone(found: Iterable[Found | None]) -> Found | None:
    """The first of the seeds that noticed something which does so with every defence in place."""
    seeds = {int(each.by.removeprefix("seed ")) for each in found if each and "seed " in each.by}
    nothing = Mutation("nothing", "pipeline/__init__.py", "", "", tuple(sorted(seeds)))
    return next((noticed for _, noticed in _tried([nothing], 1, {})), None) if seeds else None


def _in_a_process(context: Any, mutation: Mutation, hint: int | None) -> Found | None:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(mutation, hint, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            return Found("nothing ended", f"within {TIMEOUT_S:.0f} s")
        said: Found | str | None = ours.recv()
    except EOFError:
        # The process is gone: what holds a worker's life together was taken out.
        said = Found("the process", "was ended")
    finally:
        process.kill()
        process.join()
    if isinstance(said, str):
        raise RuntimeError(f"{mutation.name}: {said}")
    return said


# In the process of one defence ------------------------------------------------------------------


def _try(mutation: Mutation, hint: int | None, told: Connection) -> None:
    os.chdir(TOP)
    sys.path.insert(0, str(TOP))
    text = (TOP / mutation.file).read_text().replace(mutation.text, mutation.instead)
    instead_of(TOP / mutation.file, text)
    try:
        told.send(_noticed(mutation, hint))
    except BaseException as error:
        told.send(f"{type(error).__name__}: {error}")
    told.close()
    # No thread or exit handler of what was broken holds this up.
    os._exit(0)


def instead_of(path: Path, text: str) -> None:
    """From now on the module of a file is imported from another text."""
    real = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> Any:
        if Path(self.path) == path:
            return compile(text, str(path), "exec", dont_inherit=True)
        return real(self, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def _noticed(mutation: Mutation, hint: int | None) -> Found | None:
    tests = [each for each in mutation.by if isinstance(each, str)]
    seeds = [each for each in mutation.by if isinstance(each, int)]
    if hint is not None:
        seeds.insert(0, hint)
    for test in () if seeds else tests:
        failed = _test_notices(test)
        if failed:
            return failed
    # Where nothing is taken out only the seeds that are named are wanted, and none where it is
    # asked what the property tests notice.
    properties = bool(tests) and all(each.startswith(PROPERTIES) for each in tests)
    more = range(SEEDS_MAX if mutation.text and not properties else 0)
    for seed in dict.fromkeys((*seeds, *more)):
        from tests.simulation.plan import draw
        from tests.simulation.run import run_plan

        violation = run_plan(draw(seed, SEEDS_MIX)).violation
        if violation is not None:
            return Found(f"seed {seed}", violation.check)
    for test in tests if seeds else ():
        failed = _test_notices(test)
        if failed:
            return failed
    return None


def _test_notices(test: str) -> Found | None:
    import pytest

    said = io.StringIO()
    profile = ["--hypothesis-profile", "thorough"] if test.startswith(PROPERTIES) else []
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *profile, test])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"{test} was not run: {said.getvalue()[-500:]}")
    if code == pytest.ExitCode.OK:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", said.getvalue(), re.MULTILINE)
    # A property says what was broken.
    broken = re.findall(r"^E +AssertionError: (.{1,100})", said.getvalue(), re.MULTILINE)
    word = broken[-1] if profile and broken else ""
    return Found(failed.group(1).removeprefix("tests/") if failed else test, word)


# The table --------------------------------------------------------------------------------------


def with_table(text: str, found: dict[str, Found | None], seconds: float) -> str:
    """The document with its table of defences as this run found them."""
    lines = [
        BEGIN,
        "",
        f"- command: make mutate-guarantees ARGS='--write docs/mutations.md' ({len(found)} "
        f"defences, {sum(each is None for each in found.values())} survived, {seconds:.0f} s)",
        f"- date: {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        "",
        "| defence | where | noticed by |",
        "|---|---|---|",
    ]
    for mutation in MUTATIONS:
        noticed = found[mutation.name]
        by = "**nothing**" if noticed is None else str(noticed)
        where = mutation.file.removeprefix("pipeline/")
        lines.append(f"| {mutation.name} | `{where}` | {by} |")
    before, _, rest = text.partition(BEGIN)
    return before + "\n".join([*lines, "", END]) + rest.partition(END)[2]


def hints_of(text: str) -> dict[str, int]:
    """By defence, the seed that noticed it in the run that the table is of."""
    rows = re.findall(r"^\| (.+?) \| `.*?` \| seed (\d+):", text, re.MULTILINE)
    return {name: int(seed) for name, seed in rows}


if __name__ == "__main__":
    sys.exit(main())
