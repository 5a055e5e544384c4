"""What a flow on one machine is configured with, and what it remembers between two runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import Settings, load_settings
from pipeline.errors import UserError
from pipeline.gateways.adapters.known import ADAPTERS
from pipeline.gateways.simulator.personality import PERSONALITIES
from pipeline.local import (
    _partitions_file,
    simulated,
    with_kept_partitions,
)


def test_all_simulated_gateways_with_webhooks_are_a_configuration(tmp_path: Path) -> None:
    """What `up --gateways all` gives its workers is accepted: also the one that sends no notices,
    which takes no secret."""
    handles = {
        name: SimpleNamespace(url=f"http://127.0.0.1:{port}")
        for port, name in enumerate(PERSONALITIES, 1)
    }
    secret = f"whsec_{'a' * 32}"
    entries = simulated(handles, secret)
    load_settings(gateways=entries, state_dir=tmp_path)
    without = [name for name, entry in entries.items() if "notice_secrets" not in entry]
    assert without == [name for name in handles if not ADAPTERS[name].sends_notices]


def kept(tmp_path: Path, partitions: int) -> Settings:
    settings = load_settings(state_dir=tmp_path)
    _partitions_file(settings).parent.mkdir(exist_ok=True)
    _partitions_file(settings).write_text(f"{partitions}\n")
    return settings


def test_the_partition_count_of_before_is_used_when_none_is_given(tmp_path: Path) -> None:
    """The next `up` need not repeat the option of the first."""
    assert with_kept_partitions(load_settings(state_dir=tmp_path)).partitions == 12
    assert with_kept_partitions(kept(tmp_path, 4)).partitions == 4


def test_another_partition_count_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """One sentence, with both counts and the way out."""
    kept(tmp_path, 4)
    same = load_settings(state_dir=tmp_path, partitions=4)
    assert with_kept_partitions(same).partitions == 4
    with pytest.raises(UserError, match="have 4 partitions, not 6"):
        with_kept_partitions(load_settings(state_dir=tmp_path, partitions=6))
