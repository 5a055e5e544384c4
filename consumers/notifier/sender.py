"""One delivery: a signed POST to a merchant's endpoint, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Final, Self

import aiohttp
from msgspec import Struct

from consumers.notifier.address import guarded_socket, url_refusal, was_refused
from consumers.notifier.connector import Connector
from consumers.notifier.endpoints import Endpoint
from consumers.notifier.lookups import Lookups
from consumers.notifier.patience import retry_after_s
from pipeline.gateways.webhook_signature import signed_headers

# Outcomes of a delivery, as the log and the metrics have them.
DELIVERED: Final = "delivered"
REFUSED: Final = "refused"  # any answer but 2xx; redirects are not followed
GONE: Final = "gone"  # 410: the receiver wants no more of it
TIMED_OUT: Final = "timed_out"
UNREACHABLE: Final = "unreachable"
ADDRESS_REFUSED: Final = "address_refused"
OUTCOMES: Final = (DELIVERED, REFUSED, GONE, TIMED_OUT, UNREACHABLE, ADDRESS_REFUSED)

USER_AGENT: Final = "paystream-webhooks/1"
# An answer with a longer body costs its connection.
ANSWER_BYTES_MAX = 4_096
ANSWER_BODY_S = 1.0
DETAIL_CHARACTERS_MAX = 200


class Delivery(Struct, frozen=True, kw_only=True):
    """What came of one POST. ``status`` is None where nothing was answered."""

    outcome: str
    at_ms: int
    took_ms: int
    status: int | None = None
    detail: str = ""
    retry_after_s: int | None = None


class Sender:
    """Use as an async context manager, in one event loop."""

    def __init__(
        self, *, allow_http: bool = False, allow_private: bool = False, open_max: int = 1_000
    ) -> None:
        self._allow_http = allow_http
        self._allow_private = allow_private
        self._open_max = open_max

    async def __aenter__(self) -> Self:
        self._lookups = Lookups(self._open_max)
        self._session = aiohttp.ClientSession(
            connector=Connector(
                limit=self._open_max,
                # A name is looked up for every connection: what it says now is what is judged.
                use_dns_cache=False,
                resolver=self._lookups,
                socket_factory=None if self._allow_private else guarded_socket,
            ),
            # Neither cookies nor proxies of the environment nor compressed surprises.
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            # Each endpoint has a time of its own, see send().
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()
        await self._lookups.close()

    async def send(self, endpoint: Endpoint, message_id: str, body: bytes) -> Delivery:
        """POST a message once. Never raises for what the endpoint or the network does."""
        at_ms, began_s = int(time.time() * 1000), time.monotonic()

        def ended(outcome: str, status: int | None = None, detail: str = "",
                  retry: int | None = None) -> Delivery:  # fmt: skip
            return Delivery(
                outcome=outcome,
                at_ms=at_ms,
                took_ms=int((time.monotonic() - began_s) * 1000),
                status=status,
                detail=detail[:DETAIL_CHARACTERS_MAX],
                retry_after_s=retry,
            )

        # Again, since it is what the rules of today say that counts.
        refused = url_refusal(
            endpoint.url, allow_http=self._allow_http, allow_private=self._allow_private
        )
        if refused is not None:
            return ended(ADDRESS_REFUSED, detail=refused)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            **signed_headers(endpoint.secrets, message_id, at_ms // 1000, body),
        }
        status, asked = None, None
        try:
            async with (
                asyncio.timeout(endpoint.timeout_ms / 1000),
                self._session.post(
                    endpoint.url, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                status = answer.status
                asked = retry_after_s(answer.headers.get("Retry-After"))
                await _read_on(answer)
        except TimeoutError:
            # With a status the time ran out in what follows it, which is nobody's.
            if status is None:
                return ended(TIMED_OUT, detail=f"no answer within {endpoint.timeout_ms} ms")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if status is None:
                outcome = ADDRESS_REFUSED if was_refused(error) else UNREACHABLE
                return ended(outcome, detail=f"{type(error).__name__}: {error}")
        if 200 <= status < 300:
            return ended(DELIVERED, status)
        if status == 410:
            return ended(GONE, status)
        return ended(REFUSED, status, "redirects are not followed" if 300 <= status < 400 else "",
                     asked)  # fmt: skip


async def _read_on(answer: aiohttp.ClientResponse) -> None:
    """Read a short answer to its end, so that its connection can be used again.

    The status has decided by now; what happens to the body changes nothing.
    """
    if answer.content_length is None or answer.content_length > ANSWER_BYTES_MAX:
        return
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(ANSWER_BODY_S):
            await answer.read()
