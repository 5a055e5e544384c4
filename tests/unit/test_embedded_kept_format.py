"""What formatting a broker's folder writes is kept for the next one, and not for another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.embedded.kept_format import CHECKPOINT, META, KeptFormat, kafka_uuid

JARS = ("a.jar", "b.jar")


def kept(folder: Path, features: dict[str, int] | None = None) -> KeptFormat:
    return KeptFormat([folder / jar for jar in JARS], features or {})


def formatted(folder: Path) -> Path:
    """As the program of Kafka leaves it."""
    folder.mkdir()
    (folder / CHECKPOINT).write_bytes(b"levels")
    (folder / META).write_text("cluster.id=first\n")
    return folder


def test_the_next_brokers_folder_is_made_of_it_and_is_its_own(tmp_path: Path) -> None:
    """The levels of the features are the same, and whose it is is another's: each folder has an id
    by which a broker knows it."""
    made = kept(tmp_path)
    assert not made.is_there()
    made.keep(formatted(tmp_path / "first"))
    assert made.is_there()
    said = []
    for node_id in (2, 3):
        log_dir = tmp_path / f"node-{node_id}"
        made.put(log_dir, cluster_id="second", node_id=node_id)
        assert (log_dir / CHECKPOINT).read_bytes() == b"levels"
        lines = (log_dir / META).read_text().splitlines()
        said.append(dict(line.split("=", 1) for line in lines))
    assert [each.pop("node.id") for each in said] == ["2", "3"]
    assert len({each.pop("directory.id") for each in said}) == 2
    assert said == [{"version": "1", "cluster.id": "second"}] * 2


def test_other_levels_and_other_jars_have_another(tmp_path: Path) -> None:
    """A cluster that is to be of an older level, or an upgrade of Kafka, is formatted anew."""
    kept(tmp_path).keep(formatted(tmp_path / "first"))
    assert not kept(tmp_path, {"transaction.version": 1}).is_there()
    assert not KeptFormat([tmp_path / "c.jar"], {}).is_there()


@pytest.mark.parametrize("left", [b"", b"lEvels"])
def test_one_that_has_lost_its_bytes_is_made_anew(tmp_path: Path, left: bytes) -> None:
    """As a machine without power or a bad disk leaves it; no half of one is ever left beside it."""
    made = kept(tmp_path)
    first = formatted(tmp_path / "first")
    made.keep(first)
    made.path.write_bytes(left)
    assert not made.is_there()
    made.keep(first)
    assert made.is_there()
    assert made.path.read_bytes() == b"levels"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "first",
        made.path.name,
        f"{made.path.name}.sha256",
    ]


def test_one_that_cannot_be_kept_costs_that_and_no_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in its place, or no checkpoint to keep: each is said in one line."""
    made = kept(tmp_path)
    made.path.mkdir()
    made.keep(formatted(tmp_path / "first"))
    kept(tmp_path, {"x": 1}).keep(tmp_path / "missing")
    assert not made.is_there()
    assert [" is not kept, and " in each for each in caplog.messages] == [True, True]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"first", made.path.name, f"{made.path.name}.sha256"}


def test_an_id_never_reads_as_an_option() -> None:
    """It is given on a command line: 128 bits in letters, the first of them no dash."""
    ids = {kafka_uuid() for _ in range(500)}
    assert len(ids) == 500
    assert {len(each) for each in ids} == {22}
    assert not any(each.startswith("-") for each in ids)
