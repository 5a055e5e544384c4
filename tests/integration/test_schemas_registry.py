"""Schema ids from a real registry: register, decode elsewhere, refuse, and be away."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any
from urllib.parse import urlsplit

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from pipeline.errors import UserError
from schemas import registry as registry_module
from schemas.codec import Codec, Decoder, Record, wire_header
from schemas.compatibility import full_incompatibilities
from schemas.errors import DecodeError, RegistryUnavailable
from schemas.files import read_schema
from schemas.registry import COMPATIBILITY, RegistryIds, client, register
from tests.support.forwarder import forwarded
from tests.support.waiting import wait_until
from topics.catalogue import TopicSettings, build_catalogue

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DUE = {
    "merchant_id": "m", "order_id": "o", "payment_id": "p", "operation_id": "o", "attempt": 1,
    "try_number": 1, "purpose": "retry", "reason": None,
    "due_at_ms": None,
    "tier": 1,
}  # fmt: skip


@pytest.fixture
def subjects(topic_prefix: str) -> dict[str, str]:
    catalogue = build_catalogue(TopicSettings(prefix=topic_prefix))
    return {spec.name: spec.schema for spec in catalogue.topics.values() if spec.schema}


def patiently(decode: Decoder) -> Decoder:
    """As the flow does: a registry that did not answer in time is asked again."""

    def one_answer(value: bytes) -> Record | None:
        with contextlib.suppress(RegistryUnavailable):
            return decode(value)
        return None

    return lambda value: wait_until(lambda: one_answer(value), 60, "the registry has answered")


def test_one_client_registers_and_another_reads(
    registry_url: str, subjects: dict[str, str], topic_prefix: str
) -> None:
    """Every topic's subject is FULL_TRANSITIVE, registering again changes no id, others read us."""
    ids = register(registry_url, subjects)
    assert set(ids) == {f"{topic}-value" for topic in subjects}
    assert register(registry_url, subjects) == ids
    orders = f"{topic_prefix}orders-value"
    assert client(registry_url, 30).get_compatibility(orders) == COMPATIBILITY

    written = Codec(RegistryIds(registry_url, subjects)).encoder("payment-due")(DUE)
    topic = f"{topic_prefix}payment-retry-1"
    assert written[:5] == wire_header(ids[f"{topic}-value"])
    assert Codec(RegistryIds(registry_url, subjects)).decoder("payment-due")(written) == DUE
    foreign = AvroDeserializer(client(registry_url, 30))
    assert foreign(written, SerializationContext(topic, MessageField.VALUE)) == DUE


def test_a_record_of_a_later_version_reads_as_ours(
    registry_url: str, subjects: dict[str, str], topic_prefix: str
) -> None:
    """A producer that is a version ahead is understood: its new field is dropped."""
    register(registry_url, subjects)
    ahead = read_schema("payment-due")
    ahead["fields"].append({"name": "channel", "type": ["null", "string"], "default": None})
    new_id = client(registry_url, 30).register_schema(
        f"{topic_prefix}payment-retry-1-value", Schema(json.dumps(ahead), "AVRO")
    )
    decode = patiently(Codec(RegistryIds(registry_url, subjects)).decoder("payment-due"))
    body = Codec(RegistryIds(registry_url, subjects)).encoder("payment-due")(DUE)[5:]
    assert fastavro.parse_schema(ahead)
    assert decode(wire_header(new_id) + body + b"\x02\x06web") == DUE


@pytest.mark.parametrize("change", ["required field", "narrower type"])
def test_the_registry_and_our_check_refuse_alike(
    registry_url: str, subjects: dict[str, str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What the registry would refuse in production is refused before it is committed."""
    register(registry_url, subjects)
    bad = read_schema("order")
    if change == "required field":
        bad["fields"].append({"name": "channel", "type": "string"})
    else:
        bad["fields"][2]["type"] = "int"
    assert full_incompatibilities(bad, read_schema("order"))

    def changed(name: str) -> dict[str, Any]:
        return copy.deepcopy(bad) if name == "order" else read_schema(name)

    monkeypatch.setattr(registry_module, "read_schema", changed)
    with pytest.raises(UserError, match=r"refuses the schema order .* FULL_TRANSITIVE"):
        register(registry_url, subjects)
    with pytest.raises(UserError, match=r"order .* is not registered .* schemas register"):
        RegistryIds(registry_url, subjects)


def test_unknown_and_foreign_ids_are_told_apart(
    registry_url: str, subjects: dict[str, str], topic_prefix: str
) -> None:
    """An id the registry does not know, another record's, and a schema that is no record."""
    ids = register(registry_url, subjects)
    decode = patiently(Codec(RegistryIds(registry_url, subjects)).decoder("order"))
    bare = client(registry_url, 30).register_schema(
        f"{topic_prefix}bare", Schema('"string"', "AVRO")
    )
    for schema_id, kind in (
        (2_000_000, "unknown_schema_id"),
        (ids[f"{topic_prefix}settlements-value"], "wrong_schema"),
        (bare, "wrong_schema"),
    ):
        with pytest.raises(DecodeError) as caught:
            decode(wire_header(schema_id) + b"\x02x")
        assert caught.value.kind == kind


def test_a_registry_that_goes_away_is_not_an_unknown_id(
    registry_url: str, subjects: dict[str, str]
) -> None:
    """What is known goes on; what would have to be asked pauses the flow; a start is refused."""
    real = urlsplit(registry_url)
    assert real.hostname is not None
    assert real.port is not None
    with forwarded(real.hostname, real.port) as forwarder:
        url = registry_url.replace(f":{real.port}", f":{forwarder.port}")
        register(url, subjects)
        codec = Codec(RegistryIds(url, subjects))
        encode, decode = codec.encoder("payment-due"), codec.decoder("payment-due")
        written = encode(DUE)
    assert decode(encode(DUE)) == DUE
    with pytest.raises(RegistryUnavailable):
        decode(wire_header(2_000_000) + written[5:])
    with pytest.raises(UserError, match=r"^No schema registry answers at"):
        RegistryIds(url, subjects)


def test_the_real_registry_forbids_what_the_test_relies_on(
    registry_url: str, subjects: dict[str, str], topic_prefix: str
) -> None:
    """The registry itself, not our client, is what refuses an incompatible schema."""
    register(registry_url, subjects)
    bad = read_schema("order")
    bad["fields"].append({"name": "channel", "type": "string"})
    with pytest.raises(SchemaRegistryError) as caught:
        client(registry_url, 30).register_schema(
            f"{topic_prefix}orders-value", Schema(json.dumps(bad), "AVRO")
        )
    assert caught.value.http_status_code == 409
