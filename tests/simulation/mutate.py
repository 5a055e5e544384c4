"""``make mutate-guarantees``: take each defence out in turn and see that something notices.

Each mutation is made in a copy of the tree. It is caught by the seeds or tests that it names, else
by one of the next seeds; one that nothing catches, or whose text is not there any more, fails.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.simulation.mutations import MUTATIONS, Mutation

TOP = Path(__file__).parents[2]
PARTS = ("pipeline", "topics", "schemas", "consumers", "producers", "tests", "benchmarks")
FILES = ("pyproject.toml", "Makefile", "ARCHITECTURE.md", "README.md")
# Further seeds that are tried when none is named that catches it.
SEEDS_MAX = 20
TIMEOUT_S = 900


def missing_texts() -> list[str]:
    """Mutations whose text is not found exactly once: the defence was moved or is gone."""
    return [f"{m.name}: {m.file}" for m in MUTATIONS if not _is_there(m)]


def _is_there(mutation: Mutation) -> bool:
    return (TOP / mutation.file).read_text().count(mutation.text) == 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make mutate-guarantees", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name holds this text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="leave out so many of them")
    options = parser.parse_args(argv)
    missing = missing_texts()
    for each in missing:
        print(f"NOT FOUND  {each}")
    wanted = [m for m in MUTATIONS if options.only in m.name and _is_there(m)][options.first :]
    began_s = time.monotonic()
    survived = 0
    with ThreadPoolExecutor(options.processes) as pool:
        made = {pool.submit(_caught_by, mutation): mutation for mutation in wanted}
        for done in as_completed(made):
            mutation, caught = made[done], done.result()
            survived += caught is None
            print(f"{'SURVIVED' if caught is None else 'caught':9} {mutation.name}", flush=True)
            print(f"          {mutation.file}" + (f": {caught}" if caught else ""), flush=True)
    print(
        f"{len(wanted)} defences taken out in {time.monotonic() - began_s:.0f} s: "
        f"{survived} survived, {len(missing)} not found"
    )
    return 1 if survived or missing else 0


def _caught_by(mutation: Mutation) -> str | None:
    directory = Path(tempfile.mkdtemp(prefix="paystream-mutation-"))
    try:
        for part in PARTS:
            shutil.copytree(
                TOP / part, directory / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in FILES:
            shutil.copy(TOP / name, directory / name)
        place = directory / mutation.file
        place.write_text(place.read_text().replace(mutation.text, mutation.instead))
        return _noticed(directory, mutation)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _noticed(directory: Path, mutation: Mutation) -> str | None:
    tests = [each for each in mutation.by if isinstance(each, str)]
    seeds = [each for each in mutation.by if isinstance(each, int)]
    if seeds:
        found = _seeds_notice(directory, seeds)
        if found:
            return found
    for test in tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
        done = _run([*command, test], directory)
        if done.returncode == 1:
            failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
            return failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else test
    return _seeds_notice(directory, [seed for seed in range(SEEDS_MAX) if seed not in seeds])


def _seeds_notice(directory: Path, seeds: list[int]) -> str | None:
    done = _run(
        [sys.executable, "-m", "tests.simulation.first_failure", *map(str, seeds)], directory
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 1 and lines:
        return lines[-1]
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{done.stdout}\n{done.stderr}")
    if done.returncode == 1:
        raise RuntimeError(done.stderr[-2_000:])
    return None


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
