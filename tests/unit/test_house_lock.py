"""The lock files: complete, by hash, and free of any host."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house import TOP, pyproject

LOCKS = ("requirements.lock", "requirements-image.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_host_and_every_file_by_hash(name: str) -> None:
    """Whoever installs chooses where from; what arrives must be what was locked."""
    text = (TOP / name).read_text()
    assert "://" not in text
    for option in ("index-url", "find-links", "trusted-host"):
        assert option not in text
    entries = text.replace("\\\n", " ").strip().splitlines()
    assert entries
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:60]


def test_the_lock_satisfies_pyproject() -> None:
    """A dependency that was added or raised without a new lock is found here, not by a user."""
    project = pyproject()
    pinned = locked_versions(TOP / "requirements.lock")
    wanted = direct_requirements("dev") + [
        Requirement(text) for text in project["build-system"]["requires"]
    ]
    assert unsatisfied(wanted, pinned) == []


def test_the_image_lock_satisfies_what_runs_and_differs_in_no_version() -> None:
    """What the image runs with is what the tests ran with."""
    pinned = locked_versions(TOP / "requirements-image.lock")
    build = [Requirement(text) for text in pyproject()["build-system"]["requires"]]
    assert unsatisfied(direct_requirements("image") + build, pinned) == []
    full = locked_versions(TOP / "requirements.lock")
    assert {name: version for name, version in pinned.items() if full.get(name) != version} == {}
    assert "pytest" not in pinned


@pytest.mark.slow
def test_what_the_dependencies_need_is_locked_too() -> None:
    """pip --require-hashes refuses a lock with a gap, so none may be left for a user to find."""
    pinned = locked_versions(TOP / "requirements.lock")
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = direct_requirements("dev")
    missing: set[str] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        if name not in pinned:
            missing.add(name)
            continue
        extras = ("", *requirement.extras)
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(needed)
    assert missing == set()


def test_an_unsatisfied_requirement_is_noticed() -> None:
    """The comparison above can fail: by a missing name and by an old version."""
    pinned = {"typer": Version("0.1")}
    wanted = [Requirement("typer>=0.29"), Requirement("fastavro")]
    assert unsatisfied(wanted, pinned) == ["typer>=0.29", "fastavro"]


def locked_versions(path: Path) -> dict[str, Version]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", path.read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in found}


def direct_requirements(extra: str) -> list[Requirement]:
    """What pyproject asks for by name, with one extra and the extras that one includes."""
    project = pyproject()["project"]
    result = [Requirement(text) for text in project["dependencies"]]
    extras = [extra]
    while extras:
        for text in project["optional-dependencies"][extras.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                extras.extend(requirement.extras)
            else:
                result.append(requirement)
    return result


def unsatisfied(wanted: list[Requirement], pinned: dict[str, Version]) -> list[str]:
    return [
        str(requirement)
        for requirement in wanted
        if (version := pinned.get(canonicalize_name(requirement.name))) is None
        or version not in requirement.specifier
    ]
