"""The ``paystream`` command from its first line on: Ctrl-C counts while the rest still loads."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command and run it; exit code 130 when it was interrupted before it could say so."""
    try:
        from pipeline.cli import main as run

        run()
    except KeyboardInterrupt:
        print("paystream: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
