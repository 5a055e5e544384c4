"""A broker that asks its clients for TLS and for a user, beside its own plain listener."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from tests.support.ports import free_port

USER, PASSWORD = "paystream", "a secret, with = and ,"
# Of the topics and groups that the user may use.
PREFIX = "shop."


@dataclass(frozen=True)
class SecuredKafka:
    """``address`` takes SASL over TLS, ``certified`` TLS with a client's certificate."""

    address: str
    certified: str
    plain: str
    authority: Path
    certificate: Path
    key: Path

    def scram(self, password: str = PASSWORD) -> dict[str, str]:
        return self._sasl("SCRAM-SHA-512", password)

    def plain_sasl(self) -> dict[str, str]:
        return self._sasl("PLAIN", PASSWORD)

    def _sasl(self, mechanism: str, password: str) -> dict[str, str]:
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.authority),
            "sasl.mechanisms": mechanism,
            "sasl.username": USER,
            "sasl.password": password,
        }

    def by_certificate(self) -> dict[str, str]:
        return {
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.authority),
            "ssl.certificate.location": str(self.certificate),
            "ssl.key.location": str(self.key),
        }


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Started twice: where it listens is known, and kept, once it has run."""
    authority, server, certificate, key = _certificates(folder)
    data = folder / "kafka"
    first = start_kafka(data, die_with_parent=True, jvm_flags=SHORT_LIVED)
    plain, controller = _listeners(data)
    stop_kafka(first)
    sasl, tls = free_port(), free_port()
    login = "org.apache.kafka.common.security"
    listeners = f"PLAINTEXT://{plain},SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{tls}"
    handle = start_kafka(
        data,
        die_with_parent=True,
        jvm_flags=SHORT_LIVED,
        extra_config={
            "listeners": f"{listeners},CONTROLLER://{controller}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
            "SASL_SSL:SASL_SSL,SSL:SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(server),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(authority),
            "listener.name.ssl.ssl.client.auth": "required",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Who comes by the plain listener or with a certificate may do everything.
            "super.users": "User:ANONYMOUS;User:CN=client",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule "
            f'required user_{USER}="{PASSWORD}";',
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{login}.scram."
            "ScramLoginModule required;",
        },
    )
    try:
        admin = AdminClient({"bootstrap.servers": plain})
        wanted = UserScramCredentialUpsertion(
            USER, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), PASSWORD.encode()
        )
        for done in admin.alter_user_scram_credentials([wanted]).values():
            done.result(timeout=30)
        for granted in admin.create_acls(_granted()).values():
            granted.result(timeout=30)
        yield SecuredKafka(
            f"127.0.0.1:{sasl}", f"127.0.0.1:{tls}", plain, authority, certificate, key
        )
    finally:
        stop_kafka(handle)


def _granted() -> list[AclBinding]:
    """What docs/operations.md says that a flow's user needs."""
    kinds, operations = ResourceType, AclOperation
    wanted = [
        (kinds.TOPIC, PREFIX, operation)
        for operation in (
            operations.READ,
            operations.WRITE,
            operations.DESCRIBE_CONFIGS,
            operations.CREATE,
            operations.ALTER_CONFIGS,
        )
    ]
    wanted += [(kinds.GROUP, name, operations.READ) for name in (PREFIX, "paystream-")]
    wanted += [(kinds.TRANSACTIONAL_ID, "paystream/", operations.WRITE)]
    return [
        AclBinding(
            kind,
            name,
            ResourcePatternType.PREFIXED,
            f"User:{USER}",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for kind, name, operation in wanted
    ]


def _listeners(data: Path) -> tuple[str, str]:
    """Of clients and of the controller, from what the broker was told."""
    (told,) = data.glob("broker-*/server.properties")
    line = next(t for t in told.read_text().splitlines() if t.startswith("listeners="))
    plain, controller = (part.split("://")[1] for part in line.split("=", 1)[1].split(","))
    return plain, controller


def _certificates(folder: Path) -> tuple[Path, Path, Path, Path]:
    """An authority's certificate, the broker's key and chain, a client's certificate and key."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _signed("authority", authority_key, "authority", authority_key, root=True)
    paths = [folder / f"{name}.pem" for name in ("authority", "broker", "client", "client-key")]
    server_key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    server = _signed("broker", server_key, "authority", authority_key)
    client = _signed("client", client_key, "authority", authority_key)
    contents = (
        _text(authority),
        _key_text(server_key) + _text(server) + _text(authority),
        _text(client),
        _key_text(client_key),
    )
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths[0], paths[1], paths[2], paths[3]


def _signed(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    root: bool = False,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(loopback, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _text(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The one form of a private key that Kafka reads."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
