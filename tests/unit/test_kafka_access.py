"""How brokers are reached is said once, by properties that cannot undo a guarantee."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pipeline import secured
from pipeline.config import load_settings
from pipeline.errors import UserError
from pipeline.kafka_access import reaching, read_access, use_access
from pipeline.local import worker_specs
from pipeline.runtime.cluster import consumer_config
from pipeline.runtime.lane import producer_config
from pipeline.runtime.worker_spec import decode_spec, encode_spec

SCRAM = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanisms": "SCRAM-SHA-256",
    "sasl.username": "user",
    "sasl.password": "pencil",
}


@pytest.fixture(autouse=True)
def _none_afterwards() -> object:
    yield
    use_access({})


def test_every_client_has_them_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYSTREAM_KAFKA", str(SCRAM).replace("'", '"'))
    load_settings()
    for config in (
        consumer_config("b:1", group_id="g", instance_id="i"),
        producer_config("b:1", "t"),
    ):
        assert SCRAM.items() <= config.items()
        assert config["bootstrap.servers"] == "b:1"
    monkeypatch.delenv("PAYSTREAM_KAFKA")
    load_settings()
    assert reaching("b:1") == {"bootstrap.servers": "b:1"}


def test_a_worker_is_told_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAYSTREAM_KAFKA", str(SCRAM).replace("'", '"'))
    settings = load_settings(state_dir=tmp_path)
    (spec,) = worker_specs(settings, {"payments": 1}, node_id="n")
    assert decode_spec(encode_spec(spec)).options["kafka"] == SCRAM
    assert "pencil" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"enable.idempotence": "false"}, "enable.idempotence is not among"),
        ({"isolation.level": "read_uncommitted"}, "isolation.level is not among"),
        ({"bootstrap.servers": "b:1"}, "bootstrap.servers is not among"),
        ({"sasl.username": "u", "sasl.password": "pencil"}, "security.protocol is missing"),
        ({**SCRAM, "sasl.password": ""}, "sasl.password has no value"),
        ({**SCRAM, "sasl.password.file": "/nowhere"}, "/nowhere cannot be read"),
        # As TOML reads a name that is not quoted.
        ({"security": {"protocol": "SSL"}}, '"security.protocol" = "..."'),
        ({**SCRAM, "sasl.username.file": "/nowhere"}, None),
    ],
)
def test_what_cannot_be_meant_is_named(given: dict[str, Any], said: str | None) -> None:
    if said is None:
        # Only secrets are read from files; the client itself knows no such property.
        use_access(read_access(given))
        with pytest.raises(UserError, match=r"sasl\.username\.file"):
            __import__("pipeline.kafka_refusal").kafka_refusal.usable_access()
        return
    with pytest.raises(ValueError, match=said) as told:
        read_access(given)
    assert "pencil" not in str(told.value)


def test_the_sentence_of_a_wrong_setting_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (
        '{"sasl.password": "pencil"}',
        '"pencil"',
        "pencil",
        '{"security.protocol": "SASL_SSL", "sasl.password": "pencil", "acks": 1}',
        '{"security.protocol": "SSL", "ssl.ca.location": "/nowhere", "ssl.key.password": "pencil"}',
    ):
        monkeypatch.setenv("PAYSTREAM_KAFKA", wrong)
        with pytest.raises(UserError, match="the setting kafka") as told:
            load_settings()
        assert "pencil" not in str(told.value)


def test_a_password_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pencil\n")
    given = {**SCRAM, "sasl.password.file": str(tmp_path / "secret")}
    del given["sasl.password"]
    assert read_access(given) == SCRAM
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_access(given)


def test_scram_is_that_of_its_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange of RFC 7677, section 3; a broker that cannot prove itself is not believed."""
    use_access(SCRAM)
    nonce = "rOprNGfwEbeRWgbNEkqO"
    monkeypatch.setattr(secured, "new_nonce", lambda: nonce)
    server = (
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    proof = (
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    sent: list[str] = []
    answers = [server, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="]

    def exchange(message: bytes) -> bytes:
        sent.append(message.decode())
        return answers[len(sent) - 1].encode()

    secured.authenticate("SCRAM-SHA-256", exchange)
    assert sent == [f"n,,n=user,r={nonce}", proof]
    sent.clear()
    answers[1] = "v=" + base64.b64encode(bytes(32)).decode()
    with pytest.raises(secured.NotAuthenticated, match="does not know the password"):
        secured.authenticate("SCRAM-SHA-256", exchange)


def test_a_mechanism_that_is_not_spoken_is_told() -> None:
    use_access({"security.protocol": "SASL_SSL", "sasl.mechanisms": "GSSAPI"})
    with pytest.raises(UserError, match="GSSAPI"):
        secured.mechanism()
