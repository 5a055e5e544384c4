"""A process that charges through the real HTTP client, to be frozen in the middle of it.

Its gateway has one connection. A slow charge takes it; a second one, whose time is short, has
passed every check but the last and waits behind. Prints a line when it does, and then both answers,
as JSON. Arguments: the gateway's address, and how long the second charge may be sent (ms).
"""

from __future__ import annotations

import asyncio
import json
import sys

from msgspec.structs import asdict

from pipeline.domain.model import PaymentRequest
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.in_process import wall_clock_ms


def request(order_id: str, token: str) -> PaymentRequest:
    return PaymentRequest(
        merchant_id="shop",
        order_id=order_id,
        payment_id=f"p-{order_id}",
        operation_id=order_id,
        kind="charge",
        gateway="simulator",
        amount_minor=500,
        currency="GBP",
        instrument_token=token,
        idempotency_key=f"p-{order_id}:{order_id}:simulator:1",
        attempt=1,
        try_number=1,
        send_within_ms=60_000,
        ordered_at_ms=wall_clock_ms(),
    )


async def main(url: str, send_within_ms: int) -> None:
    gateway = HttpGateway("simulator", url, connections_max=1, connect_timeout_s=60, deadline_s=60)
    await gateway.open()
    try:
        long_ms = wall_clock_ms() + 60_000
        slow = asyncio.create_task(
            gateway.charge(request("slow", "tok_slow"), send_before_ms=long_ms)
        )
        await asyncio.sleep(0.1)  # its connection is made
        until_ms = wall_clock_ms() + send_within_ms
        short = asyncio.create_task(
            gateway.charge(request("short", "tok_ok"), send_before_ms=until_ms)
        )
        await asyncio.sleep(0.05)  # it has been let in, and waits for the connection
        print(json.dumps({"waiting": not short.done(), "until_ms": until_ms}), flush=True)
        print(json.dumps([asdict(await slow), asdict(await short)]), flush=True)
    finally:
        await gateway.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
