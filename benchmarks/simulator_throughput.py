"""How many charges a second the gateway simulator answers, each durable before its answer.

    python -m benchmarks.simulator_throughput --charges 20000 --connections 64

The client is several bare keep-alive sockets in this process, so that the simulator, not an HTTP
client, is what is measured; it still shares the machine's cores with it. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from pipeline.gateways.simulator import start_simulator, stop_simulator


async def _charge_all(port: int, charges: int, connections: int) -> list[float]:
    numbers = iter(range(charges))
    latencies_ms: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            body = (
                f'{{"reference":"bench:{number}","amount_minor":1234,"currency":"GBP",'
                f'"instrument_token":"tok_ok","merchant_id":"m","order_id":"{number}"}}'
            )
            started = time.perf_counter()
            writer.write(
                (
                    "POST /v1/charges HTTP/1.1\r\nHost: localhost\r\n"
                    f"Idempotency-Key: bench:{number}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n{body}"
                ).encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 201"):
                raise RuntimeError(f"charge {number} was answered {head.splitlines()[0]!r}")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            latencies_ms.append((time.perf_counter() - started) * 1_000)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(connections)))
    return latencies_ms


def _cpu_s(pid: int) -> float:
    """CPU seconds the process has used so far (Linux)."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Start a simulator, charge, check its books, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--charges", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        simulator = start_simulator(Path(folder) / "books.db", faults="none")
        try:
            cpu_before_s = _cpu_s(simulator.pid)
            started = time.perf_counter()
            latencies_ms = asyncio.run(
                _charge_all(simulator.port, given.charges, given.connections)
            )
            elapsed_s = time.perf_counter() - started
            cpu_s = _cpu_s(simulator.pid) - cpu_before_s
            with urllib.request.urlopen(f"{simulator.url}/v1/books/summary") as answer:
                booked = json.load(answer)["charges"]
        finally:
            stop_simulator(simulator)
    if booked != given.charges:
        sys.exit(f"{given.charges} charges were answered and {booked} are in the books.")
    latencies_ms.sort()
    print(
        json.dumps(
            {
                "charges": given.charges,
                "connections": given.connections,
                "charges_per_s": round(given.charges / elapsed_s),
                "latency_ms_p50": round(latencies_ms[len(latencies_ms) // 2], 2),
                "latency_ms_p99": round(latencies_ms[len(latencies_ms) * 99 // 100], 2),
                "simulator_cpu_us_per_charge": round(cpu_s / given.charges * 1e6),
                "simulator_cores": round(cpu_s / elapsed_s, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
