"""Writes the committed locks anew: ``python -m pipeline.embedded.relock`` (needs a network)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.embedded.artifacts import sha256_of
from pipeline.embedded.maven import maven_artifact

if TYPE_CHECKING:
    from jgo.maven import Artifact

HERE = Path(__file__).parent
KAFKA_VERSION = "4.3.1"
# Kafka's published dependencies leave the choice of a log backend open, and without one it logs
# nothing at all; this is the one that Kafka's own distribution carries.
KAFKA = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
)
REGISTRY_VERSION = "3.3.3"
REGISTRY = f"io.apicurio:apicurio-registry-app:{REGISTRY_VERSION}:all:tar.gz"


def main() -> None:
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(repo_cache=Path(folder))
        first, second = (context.create_dependency(name) for name in KAFKA)
        inputs, transitive = context.resolver.resolve([first])
        # Tests' and optional dependencies are no part of a running broker.
        wanted = [*inputs, *(d for d in transitive if d.scope in ("compile", "runtime", None))]
        kafka = {str(d.artifact.component): d.artifact for d in [*wanted, second]}
        _write("kafka", KAFKA_VERSION, kafka)
        registry = maven_artifact(context, REGISTRY)
        _write("registry", REGISTRY_VERSION, {REGISTRY: registry})


def _write(name: str, version: str, artifacts: dict[str, Artifact]) -> None:
    entries = []
    for coordinate, artifact in sorted(artifacts.items()):
        path = Path(artifact.resolve())
        entries.append(
            {
                "coordinate": coordinate,
                "file": path.name,
                "size_bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
        )
    lock = {"name": name, "version": version, "artifacts": entries}
    (HERE / f"{name}.lock.json").write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
