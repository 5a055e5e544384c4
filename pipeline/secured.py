"""A connection to one broker as ``kafka_access`` says it is reached: TLS, then SASL, or neither.
``access`` is of a client that has its own.

For requests that the client library has none of. PLAIN and SCRAM (RFC 5802 and 7677, as Kafka uses
them: no channel binding) are spoken; whoever comes by Kerberos or a token is told so.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.kafka_access import reaching

# What a request has and its answer, both without their frame: the two of SASL.
Exchange = Callable[[bytes], bytes]
_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
_ITERATIONS_MAX = 1_000_000
_KNOWN = {
    "ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location", "ssl.key.location",
    "ssl.key.password", "ssl.endpoint.identification.algorithm",
}  # fmt: skip


class NotAuthenticated(UserError):
    """The broker does not take what it was given, or is not the one that knows the password."""


def protocol_of(access: Mapping[str, object]) -> str:
    return str(access.get("security.protocol", "plaintext")).upper()


def secured_socket(
    host: str, port: int, timeout_s: float, access: Mapping[str, Any] | None = None
) -> socket.socket:
    """Connected, with TLS where it is asked for. OSError when the broker is away."""
    access = reaching("", access)
    plain = socket.create_connection((host, port), timeout=timeout_s)
    if not protocol_of(access).endswith("SSL"):
        return plain
    try:
        return _context(access).wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _context(access: Mapping[str, str]) -> ssl.SSLContext:
    unknown = sorted(name for name in access if name.startswith("ssl.") and name not in _KNOWN)
    if unknown:
        raise UserError(
            f"what the client library has no request for cannot be asked with {unknown[0]}: of "
            f"TLS {', '.join(sorted(_KNOWN))} are known here. Give certificates as PEM files."
        )
    location = access.get("ssl.ca.location")
    given = None if location in (None, "probe") else location
    folder = given is not None and os.path.isdir(given)
    context = ssl.create_default_context(
        cafile=None if folder else given,
        capath=given if folder else None,
        cadata=access.get("ssl.ca.pem"),
    )
    if access.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    # A program of its own may give a bool.
    if str(access.get("enable.ssl.certificate.verification")).lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := access.get("ssl.certificate.location"):
        context.load_cert_chain(
            certificate, access.get("ssl.key.location"), access.get("ssl.key.password")
        )
    return context


def mechanism(access: Mapping[str, Any] | None = None) -> str | None:
    """The SASL mechanism to speak; None where the brokers ask for none. UserError for others."""
    access = reaching("", access)
    if not protocol_of(access).startswith("SASL"):
        return None
    wanted = str(access.get("sasl.mechanisms") or access.get("sasl.mechanism") or "GSSAPI").upper()
    if wanted != "PLAIN" and wanted not in _HASHES:
        raise UserError(
            f"what the client library has no request for cannot be asked by {wanted}: PLAIN and "
            "SCRAM are spoken here. Give a user of one of them; transactions that hang are ended "
            "by Kafka's own kafka-transactions.sh as well."
        )
    return wanted


def authenticate(wanted: str, exchange: Exchange, access: Mapping[str, Any] | None = None) -> None:
    """Say who we are; ``exchange`` carries one message there and one back."""
    access = reaching("", access)
    user, password = str(access.get("sasl.username", "")), str(access.get("sasl.password", ""))
    if wanted == "PLAIN":
        exchange(f"\0{user}\0{password}".encode())
    else:
        _scram(_HASHES[wanted], user, password, exchange)


def new_nonce() -> str:
    return base64.b64encode(secrets.token_bytes(24)).decode()


def _scram(hash_name: str, user: str, password: str, exchange: Exchange) -> None:
    nonce = new_nonce()
    name = user.replace("=", "=3D").replace(",", "=2C")
    first = f"n={name},r={nonce}"
    answer = exchange(f"n,,{first}".encode()).decode()
    said = dict(part.split("=", 1) for part in answer.split(",") if "=" in part)
    rounds = int(said.get("i", "0"))
    if not said.get("r", "").startswith(nonce) or not 0 < rounds <= _ITERATIONS_MAX:
        raise NotAuthenticated("the broker does not answer to SCRAM as it should.")
    salt = base64.b64decode(said["s"])
    salted = hashlib.pbkdf2_hmac(hash_name, password.encode(), salt, rounds)
    without_proof = f"c=biws,r={said['r']}"
    covered = f"{first},{answer},{without_proof}".encode()
    key = hmac.digest(salted, b"Client Key", hash_name)
    signature = hmac.digest(hashlib.new(hash_name, key).digest(), covered, hash_name)
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
    last = exchange(f"{without_proof},p={proof}".encode()).decode()
    server_key = hmac.digest(salted, b"Server Key", hash_name)
    theirs = base64.b64encode(hmac.digest(server_key, covered, hash_name)).decode()
    if not hmac.compare_digest(last.split(",")[0], f"v={theirs}"):
        raise NotAuthenticated("the broker does not know the password it was asked to prove.")
