"""How the clients of this process reach the brokers: TLS and SASL, beside the address.

A process speaks to one cluster. What that cluster asks of its clients is said once, at start
(``use_access``), and every client that is made by ``reaching`` has it. Names and values are those
of librdkafka (`security.protocol`, `sasl.mechanisms`, `ssl.ca.location`, ...); only those that say
how a cluster is reached are taken, since the others are the engine's own and guarantee something.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of librdkafka's properties, by how they begin.
_TAKEN = (
    "security.protocol", "sasl.", "ssl.", "enable.ssl.certificate.verification",
    "enable.sasl.oauthbearer.unsecure.jwt", "https.ca.", "broker.address.family",
    "client.dns.lookup", "client.rack", "socket.keepalive.enable",
)  # fmt: skip
# Written into a file of their own: what a container engine hands over as a secret.
_FROM_FILE = ".file"
_SECRET_FILES = ("sasl.password", "sasl.oauthbearer.client.secret", "ssl.key.password")

_in_use: dict[str, str] = {}


def read_access(given: Mapping[str, Any]) -> dict[str, str]:
    """The properties as librdkafka takes them; ValueError names what is wrong, and no value.

    ``sasl.password.file`` (likewise ``sasl.oauthbearer.client.secret.file`` and
    ``ssl.key.password.file``) names a file that holds the value, without the end of its line.
    """
    properties = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            # What TOML makes of `security.protocol = "SSL"`: the dot begins a table of its own.
            begun = f"{name}.{next(iter(value), '...')}"
            raise ValueError(f'{name} is a table: in TOML the name is quoted, "{begun}" = "..."')
        if isinstance(value, bool):
            value = str(value).lower()
        if not isinstance(value, str | int) or value == "":
            raise ValueError(f"{name} has no value")
        plain = name.removesuffix(_FROM_FILE)
        if name != plain and plain in _SECRET_FILES:
            properties[plain] = _content(name, str(value))
        elif name.startswith(_TAKEN):
            properties[name] = str(value)
        else:
            raise ValueError(
                f"{name} is not among the properties that say how brokers are reached "
                "(security.protocol, sasl.*, ssl.* and a few more); the others are the program's"
            )
    if properties and "security.protocol" not in properties:
        raise ValueError("security.protocol is missing (SSL, SASL_SSL, SASL_PLAINTEXT)")
    return properties


def _content(name: str, path: str) -> str:
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"{name}: {path} cannot be read: {why}") from None
    if not content:
        raise ValueError(f"{name}: {path} is empty")
    return content


def access_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a client's settings those that say how brokers are reached."""
    return {name: value for name, value in config.items() if name.startswith(_TAKEN)}


def use_access(properties: Mapping[str, str]) -> None:
    """From now on every client of this process reaches its brokers so."""
    _in_use.clear()
    _in_use.update(properties)


def reaching(bootstrap_servers: str, access: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What every client's settings begin with: the address, and how it is reached. ``access``: of
    one that has its own (``access_of``)."""
    return {"bootstrap.servers": bootstrap_servers, **(_in_use if access is None else access)}
