"""How long a broker that does not serve yet is waited for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.embedded import broker as broker_module
from pipeline.embedded.broker import (
    GETS_ON_S,
    START_TIMEOUT_S,
    STARTING_S_MAX,
    BrokerProcess,
    wait_until_serving,
)
from pipeline.embedded.kafka_config import BrokerPorts
from pipeline.errors import UserError
from tests.support.ports import free_port


class Clock:
    """Each pause lasts a second."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.began_s + self.now_s

    def sleep(self, _s: float) -> None:
        self.now_s += 1.0


class Starting(BrokerProcess):
    """Runs and never serves; its log grows until that time, if it has one."""

    clock: Clock
    grows_until_s: float

    def is_running(self) -> bool:
        if self.clock.now_s <= self.grows_until_s:
            log = self.log_files[1]
            log.touch()
            os.utime(log, times=(self.clock.time(),) * 2)
        return True


@pytest.mark.parametrize(
    ("grows_until_s", "given_up_s"),
    [
        (-1.0, START_TIMEOUT_S),
        (START_TIMEOUT_S - GETS_ON_S - 5, START_TIMEOUT_S),
        (150.0, 150.0 + GETS_ON_S),
        (10_000.0, STARTING_S_MAX),
    ],
    ids=["no log", "stands still", "stands still later", "grows for ever"],
)
def test_a_broker_whose_log_grows_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows_until_s: float, given_up_s: float
) -> None:
    """On a busy machine it may take minutes; one that stands still is given up as ever."""
    clock: Any = Clock()
    monkeypatch.setattr(broker_module, "time", clock)
    ports = BrokerPorts(1, free_port(), free_port())
    broker = Starting(ports, "c", tmp_path, (), False, None, lambda: None)
    broker.clock, broker.grows_until_s = clock, grows_until_s
    with pytest.raises(UserError, match=r"did not serve within"):
        wait_until_serving([broker], START_TIMEOUT_S)
    assert given_up_s <= clock.now_s <= given_up_s + 1.0
