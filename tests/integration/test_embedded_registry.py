"""The embedded schema registry, as the client of production sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.embedded.registry import start_registry, stop_registry
from tests.support.leftovers import lives

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def order_schema(*fields: dict[str, object]) -> Schema:
    return Schema(json.dumps({"type": "record", "name": "Order", "fields": list(fields)}), "AVRO")


@pytest.mark.long
def test_a_registry_keeps_schemas_and_refuses_incompatible_ones(tmp_path: Path) -> None:
    """It registers, answers by id, refuses a breaking change, is found running, and stops."""
    handle = start_registry(tmp_path, die_with_parent=True)
    try:
        client = SchemaRegistryClient({"url": handle.url})
        schema_id = client.register_schema("o-value", order_schema({"name": "a", "type": "long"}))
        assert json.loads(client.get_schema(schema_id).schema_str or "")["name"] == "Order"
        client.set_compatibility("o-value", "FULL_TRANSITIVE")
        with pytest.raises(SchemaRegistryError):
            client.register_schema("o-value", order_schema({"name": "b", "type": "long"}))
        again = start_registry(tmp_path)
        assert (again.pid, again.started_here) == (handle.pid, False)
    finally:
        stop_registry(handle)
    assert not lives(handle.pid)
