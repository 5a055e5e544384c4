"""The embedded Kafka: data kept over restarts, one cluster for all who ask, a dead broker."""

from __future__ import annotations

import pytest

from tests.support import create_topic, read_all

pytestmark = pytest.mark.integration


def test_the_shared_broker_serves(kafka: str, topic_prefix: str) -> None:
    """What is produced to the tests' own broker is read back."""
    create_topic(kafka, f"{topic_prefix}a", 2)
    assert read_all(kafka, f"{topic_prefix}a") == []
