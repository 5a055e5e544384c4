"""The notices a gateway sends about its operations: at least once, in no order that counts."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from pipeline.errors import UserError
from pipeline.gateways.simulator import faults
from pipeline.gateways.simulator.books import Books, BooksReader, Notice
from pipeline.gateways.simulator.faults import FaultKind, FaultPlan
from pipeline.gateways.simulator.group_commit import GroupCommit
from pipeline.gateways.simulator.tokens import Forced, forced_by
from pipeline.gateways.simulator.wires.base import GatewayWire
from pipeline.gateways.webhook_signature import decoded_secret

_log = logging.getLogger(__name__)

# How often it is looked whether something is due: a tenth of the shortest sensible delay.
LOOK_S = 0.025
# Notices under way at once.
BATCH_MAX = 64
# A receiver stores and answers; one that takes longer is busy, and gets the notice again.
ANSWER_TIMEOUT_S = 5.0
# 0.5 s, 1 s, 2 s ... up to a minute: 20 tries are about a quarter of an hour.
TRIES_MAX = 20
RETRY_MS_MAX = 60_000


# A name without a dot is no host of the internet: a container beside this one, or this machine. It
# begins with a letter, since a number is an address of anywhere.
_NEIGHBOUR = re.compile(r"[a-z][a-z0-9-]*")


def checked_address(url: str, secrets: tuple[str, ...]) -> None:
    """Raise UserError unless notices may go there: a simulator's never leave its machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        near = ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = _NEIGHBOUR.fullmatch(host) is not None
    if parts.scheme != "http" or not near:
        raise UserError(
            f"notices cannot be sent to {url!r}; give an http address of this machine, such as "
            "http://127.0.0.1:8500/webhooks/simulator, or of a container beside this one, by its "
            "name."
        )
    if not 1 <= len(secrets) <= 2:
        raise UserError("notices need one secret, or two while they are exchanged.")
    for secret in secrets:
        try:
            decoded_secret(secret)
        except ValueError as error:
            raise UserError(f"the secret of the notices cannot be used: {error}.") from None


class Notices:
    """Sends what waits in the books to one address."""

    def __init__(
        self,
        books: Books,
        reader: BooksReader,
        writer: GroupCommit,
        wire: GatewayWire,
        *,
        clock_ms: Callable[[], int],
        seed: int,
    ) -> None:
        self._books = books
        self._reader = reader
        self._writer = writer
        self._wire = wire
        self._clock_ms = clock_ms
        self._seed = seed
        self._url: str | None = None
        self._secrets: tuple[str, ...] = ()
        self._session: aiohttp.ClientSession | None = None
        self._sending: set[int] = set()

    @property
    def url(self) -> str | None:
        return self._url

    def address(self, url: str | None, secrets: tuple[str, ...]) -> None:
        """Where notices go from now on; None sends none. Raises UserError."""
        if url is not None:
            checked_address(url, secrets)
        self._url, self._secrets = url, secrets
        self._books.tells = url is not None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send_due(self, plan: FaultPlan) -> int:
        """Send what is due now, each once; returns how many were sent."""
        if self._url is None:
            return 0
        waiting = self._reader.waiting_notices(self._clock_ms(), BATCH_MAX)
        return await self._send_all(waiting, plan)

    async def send_about(self, subject_id: str, plan: FaultPlan) -> None:
        """Send a subject's notices at once, before its answer goes out."""
        if self._url is not None:
            waiting = self._reader.waiting_notices(0, BATCH_MAX, subject_id)
            await self._send_all(waiting, plan)

    def fault_of(self, key: str, forced: Forced | None, plan: FaultPlan) -> FaultKind | None:
        """What goes wrong with the notices of an operation."""
        if forced is not None:
            return forced.notice
        return faults.notice_fault(plan, self._seed, key)

    async def _send_all(self, waiting: list[Notice], plan: FaultPlan) -> int:
        fresh = [notice for notice in waiting if notice.seq not in self._sending]
        self._sending.update(notice.seq for notice in fresh)
        try:
            await asyncio.gather(*(self._send(notice, plan) for notice in fresh))
        finally:
            self._sending.difference_update(notice.seq for notice in fresh)
        return len(fresh)

    async def _send(self, notice: Notice, plan: FaultPlan) -> None:
        fault = self.fault_of(notice.fault_key, forced_by(notice.forced_token), plan)
        bad = fault is FaultKind.NOTICE_BAD_SIGNATURE and notice.tries == 0
        taken = await self._post(notice, bad=bad)
        if fault is FaultKind.NOTICE_DUPLICATE and taken:
            await self._post(notice, bad=False)
        if fault is not None and notice.tries == 0:
            told: FaultKind = fault
            await self._writer.submit(lambda: self._books.count_fault(told))
        next_at_ms = None
        if not taken and notice.tries + 1 < TRIES_MAX:
            delay_ms = min(RETRY_MS_MAX, plan.notice_retry_ms << min(notice.tries, 20))
            next_at_ms = self._clock_ms() + delay_ms
        await self._writer.submit(
            lambda: self._books.notice_tried(notice, taken=taken, next_at_ms=next_at_ms)
        )

    async def _post(self, notice: Notice, *, bad: bool) -> bool:
        """Whether the receiver took it (2xx)."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
            )
        # What is signed is the moment of sending: a repetition is fresh again.
        headers = self._wire.notice_headers(
            self._secrets, notice.id, int(time.time()), notice.body + (b"?" if bad else b"")
        )
        try:
            async with self._session.post(
                self._url or "",
                data=notice.body,
                headers={"Content-Type": "application/json", **headers},
                allow_redirects=False,
            ) as response:
                return 200 <= response.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
