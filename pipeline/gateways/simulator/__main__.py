"""``python -m pipeline.gateways.simulator``: the simulated gateway as a process."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.gateways.simulator.faults import FaultPlan
from pipeline.gateways.simulator.process import DEFAULT_GATEWAY, SECRETS_VARIABLE
from pipeline.gateways.simulator.server import SimulatorSettings, notice_secrets, serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM; returns the exit code (2 with one sentence for a wrong setting)."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.gateways.simulator")
    parser.add_argument("--books", type=Path, required=True, help="SQLite file of the books")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--faults", default="default", help="default, none, or a JSON file")
    parser.add_argument("--ready-file", type=Path, help="gets the port once it is listened on")
    parser.add_argument("--gateway", default=DEFAULT_GATEWAY, help="which gateway it is")
    parser.add_argument("--key-retention-ms", type=int, help="default: the gateway's own")
    parser.add_argument("--authorization-ms", type=int, help="default: the gateway's own")
    parser.add_argument(
        "--notice-url", help=f"address of this machine; secrets in {SECRETS_VARIABLE}"
    )
    parser.add_argument("--parent-pid", type=int, help="stop when this parent process ends")
    given = parser.parse_args(arguments)
    try:
        settings = SimulatorSettings(
            books=given.books,
            plan=FaultPlan.named(given.faults),
            seed=given.seed,
            port=given.port,
            ready_file=given.ready_file,
            gateway=given.gateway,
            key_retention_ms=given.key_retention_ms,
            authorization_ms=given.authorization_ms,
            notice_url=given.notice_url,
            notice_secrets=notice_secrets(),
            parent_pid=given.parent_pid,
        )
        asyncio.run(serve(settings))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
