"""Which addresses a merchant's endpoint may have, and that a name is judged when it connects."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from consumers.notifier.address import is_public, url_refusal
from consumers.notifier.endpoints import Endpoint
from consumers.notifier.sender import (
    ADDRESS_REFUSED,
    DELIVERED,
    REFUSED,
    UNREACHABLE,
    Delivery,
    Sender,
)
from tests.support.receiver import SECRET, Receiver


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::",
        "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1",
        "fec0::1", "3fff::1", "192.88.99.1", "192.0.0.9", "2a00::5efe:7f00:1",
        "2a00::200:5efe:7f00:1", "168.63.129.16", "::ffff:168.63.129.16", "100.100.100.200",
        "192.0.0.192", "fd00:ec2::254", "199.36.153.4", "199.36.153.11", "2600:2d00:2:1000::1",
        "2600:2d00:2:2000::1", "161.26.0.7", "166.9.1.1", "192.175.48.1", "192.31.196.1",
        "2001:4:112::1", "2620:4f:8000::1", "192.52.193.1", "2001:3::1",
    ],
)  # fmt: skip
def test_what_only_this_network_reaches_is_not_public(address: str) -> None:
    """Private, loopback, link-local, shared, reserved, addresses that carry one of those, and those
    by which a cloud serves its guests."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "168.63.129.17"],
)
def test_what_everybody_reaches_is_public(address: str) -> None:
    """Ordinary addresses of both families may be called."""
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://shop.example/hooks", "https"),
        ("ftp://shop.example/hooks", "https"),
        ("file:///etc/passwd", "https"),
        ("https:///hooks", "no host"),
        ("https://user:word@shop.example/", "user or password"),
        ("https://shop.example/#part", "fragment"),
        ("https://shop.example:99999/", "cannot be read"),
        ("https://shop.example/a b", "plain characters"),
        ("https://127.0.0.1/hooks", "public"),
        ("https://[::1]/hooks", "public"),
        ("https://localhost/hooks", "public"),
        ("https://api.localhost/hooks", "public"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_in_words(url: str, why: str) -> None:
    """Scheme, host and what else an address must not have, before anything is sent."""
    assert why in (url_refusal(url, allow_http=False, allow_private=False) or "")


def test_an_installation_may_allow_both_for_itself() -> None:
    """A test system reaches http and loopback; a scheme that is neither stays refused."""
    assert url_refusal("http://127.0.0.1:1/x", allow_http=True, allow_private=True) is None
    assert url_refusal("ftp://127.0.0.1:1/x", allow_http=True, allow_private=True) is not None
    assert url_refusal("https://shop.example/x", allow_http=False, allow_private=False) is None


def sent(url: str, *, allow_private: bool, **more: int) -> Delivery:
    endpoint = Endpoint(name="e", merchant="shop", url=url, secrets=(SECRET,), **more)  # type: ignore[arg-type]

    async def once() -> Delivery:
        async with Sender(allow_http=True, allow_private=allow_private) as sender:
            return await sender.send(endpoint, "message-1", b'{"data":{}}')

    return asyncio.run(once())


@contextlib.contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """The address of a server that says this to whoever asks first, and no more until that goes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65_536)
                client.sendall(answer)
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(65_536):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x"
        thread.join(30)


def test_a_name_that_leads_inside_is_refused_at_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name looks public and resolves to loopback: not one byte reaches the server there."""
    resolve = socket.getaddrinfo

    def lying(host: str, *rest: object, **more: object) -> object:
        return resolve("127.0.0.1" if host == "shop.example" else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    with Receiver().listening() as receiver:
        url = receiver.url.replace("127.0.0.1", "shop.example")
        refused = sent(url, allow_private=False)
        assert (refused.outcome, refused.status) == (ADDRESS_REFUSED, None)
        assert "127.0.0.1 is not a public address" in refused.detail
        assert receiver.heard == []
        assert sent(url, allow_private=True).outcome == DELIVERED


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "0"])
def test_odd_spellings_of_loopback_are_judged_by_what_they_lead_to(host: str) -> None:
    """The system's resolver takes them for addresses, so the connection is where to look."""
    with Receiver().listening() as receiver:
        delivery = sent(receiver.url.replace("127.0.0.1", host), allow_private=False)
        assert delivery.outcome != DELIVERED
        assert receiver.heard == []


def test_redirects_are_not_followed() -> None:
    """A receiver cannot send us on to where we would not have gone."""
    with Receiver().listening() as inside:
        turning = Receiver(answer=lambda n, heard: 307, headers={"Location": inside.url})
        with turning.listening():
            delivery = sent(turning.url, allow_private=True)
        assert (delivery.outcome, delivery.status) == (REFUSED, 307)
        assert len(turning.heard) == 1
        assert inside.heard == []


@pytest.mark.parametrize(
    ("informational", "final", "outcome"),
    [(8, b"HTTP/1.1 204 No Content\r\n\r\n", DELIVERED), (9, b"", UNREACHABLE)],
)
def test_informational_answers_end_a_delivery_when_they_do_not_end(
    informational: int, final: bytes, outcome: str
) -> None:
    """Eight may come before the answer; the ninth is a failure, before the delivery's own time."""
    with saying(b"HTTP/1.1 103 Early Hints\r\n\r\n" * informational + final) as url:
        delivery = sent(url, allow_private=True)
    assert delivery.outcome == outcome
    if outcome == UNREACHABLE:
        assert "informational" in delivery.detail


@pytest.mark.parametrize(("status", "outcome"), [(200, DELIVERED), (503, REFUSED)])
def test_a_status_counts_though_its_body_does_not_come_in_time(status: int, outcome: str) -> None:
    """Who answers at once has answered, whatever becomes of a body that nobody reads."""
    head = f"HTTP/1.1 {status} Said\r\nContent-Length: 100\r\nRetry-After: 7\r\n\r\n".encode()
    with saying(head + b"a few of") as url:
        delivery = sent(url, allow_private=True, timeout_ms=500)
    assert (delivery.outcome, delivery.status) == (outcome, status)
    assert delivery.retry_after_s == (None if outcome == DELIVERED else 7)
