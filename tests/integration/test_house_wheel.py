"""The wheel as a user installs it: what is in it, and that its five names are its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.house import PACKAGES, TOP

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# Run inside the environment that has the wheel; the answer is printed as JSON.
LOOK = """
import importlib.metadata, importlib.util, json, sys
from schemas.codec import default_codec
names = sys.argv[1].split(",")
owners = importlib.metadata.packages_distributions()
default_codec()
print(json.dumps({
    "origins": {name: importlib.util.find_spec(name).origin for name in names},
    "owners": {name: sorted(set(owners.get(name, []))) for name in names},
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, as the documents say: the backend is one of the locked
    dependencies."""
    directory = tmp_path_factory.mktemp("wheel")
    (line,) = re.findall(r"^    \.venv/bin/python (.*?) dist +#", installing(), re.MULTILINE)
    run(sys.executable, *line.split(), str(directory))
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel, beside the libraries of this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"),
        *("--python", str(python), "install", "--no-deps", "--no-index", str(wheel)),
    )
    # Only now do the libraries come into sight: before, pip would have found this checkout's own
    # installation among them and removed it. A path file on that path is not followed, so the
    # checkout itself stays out of sight.
    (own,) = (place / "lib").glob("python*/site-packages")
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_who_installs_it_is_told_its_names() -> None:
    """Whoever has a package of one of them learns of it before Python imports the wrong one."""
    (names,) = re.findall(r"the top-level packages (.*?)\.", installing())
    assert re.findall(r"`(\w+)`", names) == [*PACKAGES]


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel: Path) -> None:
    """Tests, benchmarks and sample data stay out; schemas and their lock go in."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)
    for schema in (TOP / "schemas").glob("*.avsc"):
        assert f"schemas/{schema.name}" in names
    assert "schemas/ids.lock.json" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert [name for name in names if name.endswith(".pyc")] == []


def test_every_module_of_the_checkout_is_in_the_wheel(wheel: Path) -> None:
    """Nothing works only because it was run from a checkout."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(TOP)) for package in PACKAGES for path in (TOP / package).rglob("*.py")
    }
    assert modules - names == set()


def test_each_name_is_this_distribution_and_no_other(installed: Path) -> None:
    """Five such common names can belong to another package too; here none does."""
    seen = json.loads(run(str(installed), "-I", "-c", LOOK, ",".join(PACKAGES)))
    place = installed.parent.parent.resolve()
    for name, origin in seen["origins"].items():
        assert Path(origin).resolve().is_relative_to(place), f"{name} comes from {origin}"
    assert seen["owners"] == {name: ["paystream"] for name in PACKAGES}


def test_the_command_of_the_wheel_runs(installed: Path) -> None:
    """paystream is on the path after an installation, and says what it can do."""
    shown = run(str(installed.with_name("paystream")), "--help")
    for command in ("demo", "run", "topics", "schemas"):
        assert command in shown


def installing() -> str:
    """What the documents say of it."""
    text = (TOP / "docs/clients.md").read_text(encoding="utf-8")
    return text.split("## Install it in your own project")[1].split("\n## ")[0]


def run(*command: str) -> str:
    """Standard output of a command run in the checkout; its failure is the test's failure."""
    result = subprocess.run(
        command, cwd=TOP, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout
