"""URLs opened without the proxy of the environment where the server is on this machine.

``http_proxy`` without a ``no_proxy`` sends even 127.0.0.1 to the proxy, which knows another one.
A server elsewhere is asked as the environment says.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from functools import cache
from typing import Any
from urllib.parse import urlsplit


def open_url(asked: str | urllib.request.Request, timeout: float) -> Any:
    """As ``urllib.request.urlopen``, with its errors."""
    url = asked if isinstance(asked, str) else asked.full_url
    if _on_this_machine(url):
        return _direct().open(asked, timeout=timeout)
    return urllib.request.urlopen(asked, timeout=timeout)


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
