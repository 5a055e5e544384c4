"""Runs the fast tests: a pytest of its own for each core, over its share of the files.

With pytest-xdist every process imports and collects all the tests, and one more process hears six
messages of each. The fast tests are thousands, of milliseconds each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO

from tests.house import TOP

UNIT = TOP / "tests" / "unit"
OPTIONS = ("-q", "-m", "not slow")
# What pytest says where none of a share's tests was asked for, as with `-k`.
NONE_CHOSEN = 5


def main(arguments: Sequence[str]) -> int:
    """Run them with further options of pytest's, and return its exit code."""
    return run(sorted(UNIT.glob("test_*.py")), [*OPTIONS, *arguments], cores())


def cores() -> int:
    """How many processes this one may keep busy."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shares(files: Sequence[Path], count: int) -> list[list[Path]]:
    """Each file in one of so many shares, which take about as long as each other: a file's length
    stands for its time."""
    made: list[list[Path]] = [[] for _ in range(count)]
    lengths = [0] * count
    for file in sorted(files, key=lambda file: (-file.stat().st_size, file)):
        least = lengths.index(min(lengths))
        made[least].append(file)
        lengths[least] += file.stat().st_size
    return [sorted(share) for share in made if share]


def run(files: Sequence[Path], options: Sequence[str], count: int) -> int:
    """Run the files with these options; the exit code of a share that failed, if one did.

    The first share's output is shown as it comes, the others' behind it.
    """
    with ExitStack() as opened:
        begun: list[tuple[subprocess.Popen[bytes], IO[bytes] | None]] = []
        for number, share in enumerate(shares(files, count)):
            output = opened.enter_context(tempfile.TemporaryFile()) if number else None
            # With one cache for all, `--last-failed` would know what failed in the last share.
            cache = f"cache_dir=.pytest_cache/fast-{number}"
            line = [sys.executable, "-m", "pytest", "-o", cache, *options, *map(str, share)]
            process = subprocess.Popen(line, cwd=TOP, stdout=output, stderr=output)
            begun.append((process, output))

        def pass_on(number: int, _frame: FrameType | None) -> None:
            for process, _ in begun:
                process.send_signal(number)

        # A terminal sends Ctrl-C to all of them; each cleans up and ends, which is waited for.
        for number, heard in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, pass_on)):
            opened.callback(signal.signal, number, signal.signal(number, heard))
        codes = []
        for process, output in begun:
            codes.append(process.wait())
            if output is not None:
                output.seek(0)
                print(output.read().decode(errors="replace"), end="", flush=True)
    return verdict(codes)


def verdict(codes: Sequence[int]) -> int:
    """A failure if one share failed; that none was chosen only if that is so of every share."""
    return next((code for code in codes if code not in (0, NONE_CHOSEN)), min(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
