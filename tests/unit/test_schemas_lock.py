"""The lock file: ids are never reused, and no change strands records already written."""

from __future__ import annotations

import builtins
import copy
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.schemas import app
from pipeline.domain.record_fields import differences
from pipeline.errors import UserError
from schemas import files as schema_files
from schemas.codec import SCHEMA_NAMES
from schemas.compatibility import full_incompatibilities
from schemas.files import read_schema
from schemas.ids import fingerprint, locked_ids, parse_lock
from schemas.lock import check, current_schemas, lock, read_lock
from tests.support.cli_runner import CliRunner

Schemas = dict[str, dict[str, Any]]
NAMES = ("order", "settlement")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ids.lock.json"


@pytest.fixture
def schemas() -> Schemas:
    """Two of them: each is compared with all that it was."""
    return {name: schema for name, schema in current_schemas().items() if name in NAMES}


def with_field(schemas: Schemas, field: dict[str, Any]) -> Schemas:
    changed = copy.deepcopy(schemas)
    changed["order"]["fields"].append(field)
    return changed


OPTIONAL = {"name": "added_here", "type": ["null", "string"], "default": None}


@pytest.mark.slow
def test_every_schema_is_locked_and_compatible_as_committed() -> None:
    """The lock in the tree is true; run `paystream schemas lock` after changing an .avsc."""
    assert check() == []


def test_the_names_are_the_files() -> None:
    """Every .avsc beside the code is a known schema, and every known schema has its file."""
    files = {item.name for item in resources.files("schemas").iterdir()}
    assert {f"{name}.avsc" for name in SCHEMA_NAMES} == {f for f in files if f.endswith(".avsc")}


def test_locking_twice_changes_nothing(path: Path, schemas: Schemas) -> None:
    """A first lock numbers every schema, a second one leaves the file as it is."""
    assert len(lock(path, schemas)) == len(NAMES)
    before = path.read_bytes()
    assert lock(path, schemas) == []
    assert path.read_bytes() == before
    assert check(path, schemas) == []


def test_a_compatible_change_gets_a_new_id_and_keeps_the_old(path: Path, schemas: Schemas) -> None:
    """A new optional field is version 2 with an id never used before; version 1 stays."""
    lock(path, schemas)
    first = read_lock(path)
    changed = with_field(schemas, OPTIONAL)
    assert any("differs from its locked version" in problem for problem in check(path, changed))
    assert lock(path, changed) == [f"order: version 2, id {len(NAMES) + 1}"]
    second = read_lock(path)
    assert second["order"][0] == first["order"][0]
    assert [version.id for version in second["order"]] == [
        first["order"][0].id,
        len(NAMES) + 1,
    ]
    assert check(path, changed) == []


def test_taking_a_change_back_gets_an_id_of_its_own(path: Path, schemas: Schemas) -> None:
    """Going back to an earlier text is a third version: ids only ever go up."""
    lock(path, schemas)
    lock(path, with_field(schemas, OPTIONAL))
    lock(path, schemas)
    ids = [version.id for version in read_lock(path)["order"]]
    assert len(ids) == 3
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(
    "change",
    [
        lambda order: order["fields"].append({"name": "added_here", "type": "string"}),
        lambda order: order["fields"].pop(0),
        lambda order: order["fields"][2].update(type="int"),
        lambda order: order["fields"][0].update(name="seller_id"),
        lambda order: order.update(name="Purchase"),
    ],
    ids=["required field", "field removed", "narrower type", "renamed field", "renamed record"],
)
def test_an_incompatible_change_is_refused(path: Path, schemas: Schemas, change: Any) -> None:
    """What old records or old programs could not live with is not locked, and check names it."""
    lock(path, schemas)
    before = path.read_bytes()
    changed = copy.deepcopy(schemas)
    change(changed["order"])
    with pytest.raises(UserError, match=r"(?s)^Nothing was locked.*order: not compatible"):
        lock(path, changed)
    assert path.read_bytes() == before
    assert any("order: not compatible with locked id" in p for p in check(path, changed))


def test_compatibility_reaches_back_to_the_first_version(path: Path, schemas: Schemas) -> None:
    """A change that suits the last version but not an earlier one is refused."""
    note = {"name": "note", "default": None}
    lock(path, with_field(schemas, {**note, "type": ["null", "string"]}))
    lock(path, schemas)
    other = with_field(schemas, {**note, "type": ["null", "long"]})
    assert full_incompatibilities(other["order"], schemas["order"]) == []
    with pytest.raises(UserError, match="not compatible"):
        lock(path, other)


def test_texts_for_people_may_change_freely(path: Path, schemas: Schemas) -> None:
    """A reworded doc is no new version; a changed default is."""
    lock(path, schemas)
    reworded = copy.deepcopy(schemas)
    reworded["order"]["doc"] = "Other words."
    reworded["order"]["fields"][0]["doc"] = "Other words."
    assert check(path, reworded) == []
    assert fingerprint(reworded["order"]) == fingerprint(schemas["order"])
    reworded["order"]["fields"][5]["default"] = "wallet"
    assert check(path, reworded) != []


@pytest.mark.slow
def test_a_schema_file_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By check as a problem beside all others; by whoever needs it in one sentence."""
    for name in SCHEMA_NAMES:
        if name != "settlement":
            (tmp_path / f"{name}.avsc").write_text(schema_files.schema_text(name))
    monkeypatch.setattr(schema_files, "_file", lambda name: tmp_path / f"{name}.avsc")
    schema_files.schema_text.cache_clear()
    try:
        result = CliRunner().invoke(app, ["check"])
        with pytest.raises(UserError, match=r"schemas/settlement\.avsc is missing; restore"):
            schema_files.read_schema("settlement")
        with pytest.raises(UserError, match=r"settlement\.avsc is missing"):
            lock(tmp_path / "lock.json")
    finally:
        schema_files.schema_text.cache_clear()
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "settlement: locked, but there is no schemas/settlement.avsc; its records would be "
        "unreadable"
    ]


def test_a_schema_that_disappears_is_a_problem(path: Path, schemas: Schemas) -> None:
    """Records of a removed schema would be unreadable, and a new one has to be locked."""
    lock(path, schemas)
    gone = {name: schema for name, schema in schemas.items() if name != "settlement"}
    assert [p for p in check(path, gone) if p.startswith("settlement: locked, but")]
    path.unlink()
    assert len(check(path, schemas)) == len(NAMES)


@pytest.mark.parametrize("damage", ["{", "[]", '{"order": [{"id": 1}]}', '{"order": 3}'])
def test_a_damaged_lock_is_one_sentence(damage: str) -> None:
    """A lock that cannot be read says where it is and how to get it back."""
    with pytest.raises(UserError, match=r"ids\.lock\.json cannot be read.* version control"):
        parse_lock(damage)


def test_a_lock_edited_by_hand_is_refused(path: Path, schemas: Schemas) -> None:
    """An id used twice, or a locked text that was changed, is noticed at every start."""
    lock(path, schemas)
    entries = json.loads(path.read_text())
    entries["order"][0]["id"] = entries["settlement"][0]["id"]
    with pytest.raises(UserError, match="uses an id twice"):
        parse_lock(json.dumps(entries))
    entries = json.loads(path.read_text())
    entries["order"][0]["schema"]["fields"].pop()
    with pytest.raises(UserError, match="edited by hand"):
        parse_lock(json.dumps(entries))


def test_a_stale_lock_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose schemas are not the locked ones does not write a single record."""
    changed = read_schema("order")
    changed["fields"].append(OPTIONAL)
    monkeypatch.setattr(
        "schemas.ids.read_schema", lambda name: changed if name == "order" else read_schema(name)
    )
    with pytest.raises(UserError, match=r"order\.avsc differs .* run `paystream schemas lock`"):
        locked_ids()


def test_a_missing_avro_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing versions without its package is a sentence, not an ImportError."""
    real = builtins.__import__

    def without_avro(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "avro":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_avro)
    with pytest.raises(UserError, match=r"install paystream\[dev\]"):
        full_incompatibilities(read_schema("order"), read_schema("order"))


def test_a_field_that_only_the_schema_or_only_the_program_has_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever adds half of a field is told the other half's file: the first record would end in a
    TypeError, and so would each test that writes one."""
    half = with_field(current_schemas(), OPTIONAL)["order"]
    half["fields"] = [field for field in half["fields"] if field["name"] != "country"]
    monkeypatch.setattr(
        "schemas.files.read_schema", lambda name: half if name == "order" else read_schema(name)
    )
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 1
    for said in (
        "order: schemas/order.avsc has the field added_here, and Order in pipeline/domain/model.py "
        "has not; add it there",
        "order: Order in pipeline/domain/model.py has the field country, and schemas/order.avsc "
        "has not; add it there and run `paystream schemas lock`",
    ):
        assert said in result.stderr.splitlines()


def test_the_program_has_the_fields_of_every_schema() -> None:
    """So that each record becomes a Struct of the program, and back."""
    assert differences(current_schemas()) == []


@pytest.mark.parametrize(
    ("name", "field", "kind", "said"),
    [
        ("order", "country", "string", "country is string in .* and null or string in Order in"),
        ("order", "amount_minor", ["null", "long"], "long or null in .* and long in Order in"),
        ("payment", "letters", {"type": "array", "items": "long"}, r"letters\[\] is long in"),
        ("payment", "letters", "string", "letters is string in .* and array in Payment in"),
        (
            "order",
            "lines",
            {"type": "array", "items": {"type": "record", "fields": [OPTIONAL]}},
            r"has the field lines\[\]\.added_here, and OrderLine in pipeline/domain/model.py",
        ),
    ],
)
def test_a_field_that_holds_something_else_in_the_program_is_named(
    name: str, field: str, kind: Any, said: str
) -> None:
    """By its place, also within a list; a whole number of either size is an int."""
    schemas = current_schemas()
    for each in schemas[name]["fields"]:
        if each["name"] == field:
            each["type"] = kind
    found = differences(schemas)
    assert [each for each in found if re.search(said, each)], found


@pytest.mark.parametrize("part", ["name", "type"])
def test_a_field_without_a_part_of_it_is_no_traceback(part: str) -> None:
    """The file is named beside what else is wrong with it."""
    schemas = current_schemas()
    del schemas["order"]["fields"][0][part]
    assert differences(schemas) == [
        "order: schemas/order.avsc is no schema of a record, or a part of it is missing"
    ]


def test_a_schema_without_a_struct_is_named() -> None:
    """A new topic's records are something in the program, or nobody reads them."""
    schemas = {**current_schemas(), "refund-note": read_schema("order")}
    assert [each.split(";")[0] for each in differences(schemas)] == [
        "refund-note: no Struct is made of it"
    ]


@pytest.mark.slow
def test_the_commands_say_what_they_found() -> None:
    """check and lock succeed on the tree as committed; register asks for a registry."""
    run = CliRunner()
    assert run.invoke(app, ["check"]).output.startswith("every schema is locked")
    assert run.invoke(app, ["lock"]).output.startswith("nothing to lock")
    refused = run.invoke(app, ["register"], env={"PAYSTREAM_SCHEMA_REGISTRY_URL": ""})
    assert isinstance(refused.exception, UserError)
    assert "--url" in str(refused.exception)


def test_a_broken_schema_file_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits an .avsc is led to the place, not through a traceback."""
    broken = schema_files.schema_text("order").replace('"record",', '"record"')
    line = next(n for n, x in enumerate(broken.splitlines(), 1) if x.endswith('"record"')) + 1
    monkeypatch.setattr(schema_files, "schema_text", lambda _name: broken)
    with pytest.raises(UserError, match=rf"schemas/order\.avsc is not JSON: .* at line {line},"):
        schema_files.read_schema("order")
    monkeypatch.setattr(schema_files, "schema_text", lambda _name: "[]")
    with pytest.raises(UserError, match="is not a JSON object"):
        schema_files.read_schema("order")
