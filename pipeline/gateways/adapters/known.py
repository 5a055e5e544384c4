"""Every adapter, by the name that the configuration and the tables of codes use.

What the rest has to know of an adapter (whether its gateway knows keys, what its notices carry) it
asks the class, so that a new one is never taken for another kind than it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.gateways.adapters.base import Adapter
from pipeline.gateways.adapters.legacy import LegacyAdapter
from pipeline.gateways.adapters.northbank import NorthbankAdapter
from pipeline.gateways.adapters.pacific import PacificAdapter
from pipeline.gateways.adapters.simulator import SimulatorAdapter

ADAPTERS: Final[Mapping[str, type[Adapter]]] = {
    "simulator": SimulatorAdapter,
    "northbank": NorthbankAdapter,
    "pacific": PacificAdapter,
    "legacy": LegacyAdapter,
}
