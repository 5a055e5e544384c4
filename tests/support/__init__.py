"""What many tests need: waiting for conditions, reading topics whole, free ports."""

from tests.support.ports import free_port
from tests.support.topics import create_topic, read_all
from tests.support.waiting import wait_until

__all__ = ["create_topic", "free_port", "read_all", "wait_until"]
