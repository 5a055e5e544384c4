"""The ``paystream`` command without a process: typer's runner, which builds each command once."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest.mock import patch

import typer.testing
from typer.main import get_command

# 30 ms for the whole program, and nothing in what is built changes when it is run.
command_of = cache(get_command)


class CliRunner(typer.testing.CliRunner):
    def invoke(self, *args: Any, **more: Any) -> typer.testing.Result:
        with patch.object(typer.testing, "_get_command", command_of):
            return super().invoke(*args, **more)
