"""Which addresses a merchant's endpoint may have.

Merchants choose them, so they must not reach what only this network reaches: its own machines, a
cloud's metadata service. A name is resolved for every connection and the address it gave is judged
right before the socket connects to that very address, so that a name which changes in between
gains nothing. Redirects are not followed and no proxy is used.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

URL_CHARACTERS_MAX = 2_048

# Addresses that carry another one within them, which a translator on the way would reach.
_CARRIERS: Final = tuple(
    map(
        ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")
    )
)
# Interface identifiers of ISATAP (RFC 5214): an IPv4 address follows them, in any network.
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
# Reserved since the standard library's tables were made, or called global by them: site-local
# (RFC 3879), documentation (RFC 9637), relays of 6to4 (RFC 7526), the protocols' own (RFC 6890).
_RESERVED: Final = tuple(
    map(
        ipaddress.ip_network,
        ("fec0::/10", "3fff::/20", "192.88.99.0/24", "192.0.0.0/24"),
    )
)
# Public by their number and answered within one network alone: a cloud's own services to its guests
# (Azure's wire server; Google's private and restricted APIs; IBM's infrastructure and service
# endpoints), and what the nearest network answers (AS112, RFC 7534 and 7535; AMT, RFC 7450).
_OF_ONE_NETWORK: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",
            "199.36.153.4/30", "199.36.153.8/30", "2600:2d00:2:1000::/56", "2600:2d00:2:2000::/56",
            "161.26.0.0/16", "166.8.0.0/14",
            "192.31.196.0/24", "192.175.48.0/24", "2001:4:112::/48", "2620:4f:8000::/48",
            "192.52.193.0/24", "2001:3::/32",
        ),
    )
)  # fmt: skip
# What stands in the text of a refused connection, which the client wraps in errors of its own.
_REFUSED: Final = "not a public address"

SocketFactory = Callable[[Any], socket.socket]


class AddressRefused(OSError):
    """The endpoint's name leads to an address that must not be connected to."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"{address} is {_REFUSED}")


def is_public(address: str) -> bool:
    """Whether everybody can reach it: not private, loopback, link-local, shared or reserved, and
    no address by which a cloud serves its guests alone."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _CARRIERS):
            return False
        if int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP:
            return False
    if any(ip in network for network in (*_RESERVED, *_OF_ONE_NETWORK)):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def url_refusal(url: str, *, allow_http: bool, allow_private: bool) -> str | None:
    """Why an address will never be called, in words; None when it may be tried."""
    if len(url) > URL_CHARACTERS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        return f"url is not up to {URL_CHARACTERS_MAX} plain characters"
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "url cannot be read"
    if parts.scheme != "https" and not (allow_http and parts.scheme == "http"):
        return "url must begin with https://"
    if not host:
        return "url names no host"
    if parts.username is not None or parts.password is not None:
        return "url must hold no user or password"
    if parts.fragment:
        return "url must hold no fragment"
    if allow_private:
        return None
    if host == "localhost" or host.endswith(".localhost"):
        return f"{host} is {_REFUSED}"
    try:
        public = is_public(host)
    except ValueError:
        return None  # a name: judged when it is resolved
    return None if public else f"{host} is {_REFUSED}"


def guarded_socket(info: Any) -> socket.socket:
    """Makes the socket for one resolved address, or refuses it: the last step before connect."""
    family, kind, protocol, _name, address = info
    if not is_public(str(address[0])):
        raise AddressRefused(str(address[0]))
    return socket.socket(family, kind, protocol)


def was_refused(error: BaseException) -> bool:
    """Whether a failed connection was refused here and never tried."""
    return _REFUSED in str(error)
