"""What a figure was measured on: without it the figure means nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import confluent_kafka
import fastavro

from pipeline.embedded.java import find_java
from pipeline.embedded.kafka import JAVA_MAJOR_MIN, LOCK_FILE
from pipeline.errors import UserError

# A machine that is this busy before the first measurement measures its other work as well.
BUSY_LOAD_PER_CORE = 0.5
# Steps of plain Python, of which the quickest of some goes counts: machines with the same cores by
# name differ by a factor of two, and so does one machine with its neighbours.
_STEPS = 500_000
_GOES = 5


@dataclass(frozen=True)
class Machine:
    """``load_1_min`` is the load average before anything was started, ``steps_per_s`` how much
    plain Python one core does: figures of two machines are compared by it."""

    cores: int
    cpu: str
    memory_gib: float
    kernel: str
    python: str
    librdkafka: str
    confluent_kafka: str
    fastavro: str
    kafka: str
    java: str
    steps_per_s: float
    load_1_min: float

    @property
    def busy(self) -> bool:
        """Whether other work was under way, so that the figures are too low."""
        return self.load_1_min > BUSY_LOAD_PER_CORE * self.cores

    def lines(self) -> list[tuple[str, str]]:
        """Label and value, for people."""
        return [
            ("cores", f"{self.cores} ({self.cpu})"),
            ("one core", f"{self.steps_per_s / 1e6:.1f} million steps of plain Python a second"),
            ("memory", f"{self.memory_gib:.1f} GiB"),
            ("kernel", self.kernel),
            ("python", self.python),
            ("librdkafka", f"{self.librdkafka} (confluent-kafka {self.confluent_kafka})"),
            ("fastavro", self.fastavro),
            ("kafka", f"{self.kafka} on Java {self.java}"),
            ("load before", f"{self.load_1_min:.2f}" + (" (busy!)" if self.busy else "")),
        ]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def describe_machine() -> Machine:
    """The machine, and the versions that the measured programs run on. Takes a second at most."""
    load_1_min = os.getloadavg()[0]
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        cpu=_cpu_model(Path("/proc/cpuinfo").read_text()),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        kernel=platform.release(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        librdkafka=str(confluent_kafka.libversion()[0]),
        confluent_kafka=str(confluent_kafka.__version__),
        fastavro=str(fastavro.__version__),
        kafka=str(json.loads(LOCK_FILE.read_text())["version"]),
        java=_java_version(),
        steps_per_s=_steps_per_s(),
        load_1_min=load_1_min,
    )


def _steps_per_s() -> float:
    return _STEPS / min(_go_s() for _ in range(_GOES))


def _go_s() -> float:
    began_s = time.perf_counter()
    state = 1
    for _ in range(_STEPS):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
    return time.perf_counter() - began_s


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _java_version() -> str:
    try:
        java = str(find_java(JAVA_MAJOR_MIN))
    except UserError:
        return "none"  # the codec needs no broker; the others say it themselves
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30)
    first = (said.stderr or said.stdout).splitlines()[:1]
    return first[0].split('"')[1] if first and '"' in first[0] else "unknown"
