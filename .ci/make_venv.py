"""Bring .venv in line with requirements.lock and pyproject.toml; do nothing if it is already.

Run by the Makefile with whatever Python the machine has, so it is written for old ones too and
uses the standard library only. Every file pip may take is named by hash in requirements.lock, the
build backend included; the project itself is then installed in place without any download.

Safe to run twice at once: the second waits for the first. Safe to interrupt: what was begun and
not finished is built anew next time.
"""

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys

PYTHON_MIN = (3, 11)
TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(TOP, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "paystream-stamp")
LOCK = os.path.join(TOP, "requirements.lock")
PROJECT = os.path.join(TOP, "pyproject.toml")
# The lock is held on a file beside .venv (inside it, rebuilding would delete it). The kernel lets
# go of it when its holder ends, however it ends, so a crash leaves no stale lock.
GUARD = os.path.join(TOP, ".venv.lock")
BUILDING = "building"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="build .venv anew in any case")
    fresh = parser.parse_args().fresh
    if sys.version_info < PYTHON_MIN:
        return fail(
            "paystream needs Python %d.%d or newer, and %s is %d.%d. "
            "Name a newer one: make PYTHON=python3.12"
            % (PYTHON_MIN + (sys.executable,) + tuple(sys.version_info[:2]))
        )
    guard = open(GUARD, "a")
    try:
        take(guard)
        return bring_up_to_date(fresh)
    finally:
        guard.close()


def take(guard):
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say("waiting for another make that is preparing .venv ...")
        fcntl.flock(guard, fcntl.LOCK_EX)


def bring_up_to_date(fresh):
    wanted = {"place": TOP, "lock": digest(LOCK), "project": digest(PROJECT)}
    found = read_stamp()
    usable = not fresh and found != BUILDING and works(VENV_PYTHON)
    if usable and found == wanted:
        return 0
    # A moved checkout keeps scripts that point to its old place: those must be written again.
    usable = usable and (not found or found.get("place") == TOP)
    if not usable:
        say("creating .venv ...")
        if run([sys.executable, "-m", "venv", "--clear", VENV]):
            return fail(
                "Python could not create .venv. On Debian and Ubuntu: apt install python3-venv"
            )
        found = None
    write_stamp(BUILDING)
    if not found or found.get("lock") != wanted["lock"]:
        say("installing the locked dependencies (about a minute the first time) ...")
        if run(pip("install", "--require-hashes", "-r", LOCK)):
            return fail(
                "the dependencies could not be installed (see above). "
                "If the network was away, run the same make again."
            )
    if run(pip("install", "--no-deps", "--no-index", "--no-build-isolation", "-e", TOP)):
        return fail("the project itself could not be installed from %s (see above)." % TOP)
    write_stamp(wanted)
    return 0


def pip(*arguments):
    # -I: neither PYTHONPATH nor the user's own site-packages may leak into what is installed.
    return [VENV_PYTHON, "-I", "-m", "pip", "--quiet", "--no-input"] + list(arguments)


def run(command):
    """The exit status; waits for the child even when Ctrl-C arrives, so that none is left."""
    environment = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    for name in ("PIP_TARGET", "PIP_PREFIX", "PYTHONHOME"):
        environment.pop(name, None)
    child = subprocess.Popen(command, env=environment)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            # The terminal sent the same signal to the child: it is on its way out.
            child.wait()
            raise


def works(python):
    # sys.version_info of the venv counts, not ours: it may have been made by another Python.
    check = "import sys; sys.exit(sys.version_info < (%d, %d))" % PYTHON_MIN
    try:
        return subprocess.call([python, "-I", "-c", check], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def read_stamp():
    try:
        with open(STAMP) as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    if lines == [BUILDING]:
        return BUILDING
    return dict(line.split(" ", 1) for line in lines if " " in line)


def write_stamp(content):
    lines = (
        [BUILDING]
        if content == BUILDING
        else ["%s %s" % (name, content[name]) for name in sorted(content)]
    )
    with open(STAMP + ".new", "w") as file:
        file.write("\n".join(lines) + "\n")
    os.replace(STAMP + ".new", STAMP)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def say(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(text):
    say(text)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
