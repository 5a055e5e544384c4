"""What a process has cost so far: CPU time and memory, from /proc (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True)
class ProcessUse:
    """``cpu_s`` is user plus system time; ``peak_rss_bytes`` the most memory it ever held."""

    cpu_s: float
    rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True)
class ProcessCost:
    """One process over one measurement."""

    name: str
    cpu_s: float
    cpu_us_per_order: float
    rss_mib: float
    peak_rss_mib: float


def process_use(pid: int) -> ProcessUse:
    """FileNotFoundError or ProcessLookupError when there is no such process."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    status = Path(f"/proc/{pid}/status").read_text()
    return parse_use(stat, status, os.sysconf("SC_CLK_TCK"))


def parse_use(stat: str, status: str, ticks_per_s: int) -> ProcessUse:
    """The figures of the two files' text; see proc_pid_stat(5) and proc_pid_status(5)."""
    # The command name may hold blanks and parentheses: count from the last one. Fields 14 and 15.
    user, system = stat.rsplit(")", 1)[1].split()[11:13]
    kib = {
        name: int(value.split()[0])
        for name, _, value in (line.partition(":") for line in status.splitlines())
        if name in ("VmRSS", "VmHWM")
    }
    return ProcessUse(
        cpu_s=(int(user) + int(system)) / ticks_per_s,
        rss_bytes=kib.get("VmRSS", 0) * 1024,
        peak_rss_bytes=kib.get("VmHWM", 0) * 1024,
    )


def cost(name: str, before: ProcessUse, after: ProcessUse, orders: int) -> ProcessCost:
    """What the process spent between the two looks, for each of so many orders."""
    cpu_s = after.cpu_s - before.cpu_s
    return ProcessCost(
        name=name,
        cpu_s=cpu_s,
        cpu_us_per_order=cpu_s / orders * 1e6,
        rss_mib=after.rss_bytes / MIB,
        peak_rss_mib=after.peak_rss_bytes / MIB,
    )


UNSTARTED = ProcessUse(cpu_s=0.0, rss_bytes=0, peak_rss_bytes=0)
