"""The codec of one installation: ids from its schema registry, else from the committed lock.

Lock and registry number schemas differently, so everything that writes or reads records of one
flow has to take its codec from here: workers, the commands that publish, and the audit.
"""

from __future__ import annotations

from schemas.codec import Codec, default_codec
from topics.catalogue import Catalogue


def record_codec(catalogue: Catalogue, registry_url: str) -> Codec:
    """``registry_url`` may be empty. UserError when the registry is away or lacks a schema."""
    if not registry_url:
        return default_codec()
    from schemas.registry import RegistryIds

    return Codec(
        RegistryIds(
            registry_url,
            {spec.name: spec.schema for spec in catalogue.topics.values() if spec.schema},
        )
    )
