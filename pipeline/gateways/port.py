"""The port to payment gateways: what the gateway worker asks, and what every adapter promises.

An adapter makes one call for one request and says what is known afterwards. It never tries again
by itself: whether a request may be sent again is decided over the payments table.

Promises of every adapter (``tests/integration/test_gateway_contract.py`` checks them, and
``tests/unit/test_gateway_adapters.py`` over what only a broken gateway says):

1. ``charge``, ``authorize``, ``capture``, ``void`` and ``refund`` may move money. Each carries
   ``request.idempotency_key``; the same key again moves no more money and gives the first answer.
   A gateway without idempotency is the exception, and its profile says so: nothing that may have
   been sent there is ever sent again.
2. At ``send_before_ms`` (epoch ms) or later nothing is sent any more. The check stands right before
   the request is written to the socket, after any wait for a connection.
3. ``not_sent`` is answered only if nothing can have been moved: no byte was written, or the gateway
   said plainly that it did not handle the request (throttled). All other trouble is ``unknown``.
4. ``inquire`` asks by the same key what became of ``request.operation_kind`` and moves nothing.
   ``not_found`` is the gateway's plain word that it knows no such key.
5. A call ends within the adapter's soft deadline and then answers ``unknown``; calls raise nothing
   but ``asyncio.CancelledError``. A cancelled call may have been sent.
6. ``read_notice`` believes nothing that is not signed by the gateway's scheme, and raises nothing.
7. A ``gateway_reference`` stands for one movement of money at that gateway for good: no two
   charges, captures or refunds have one. Only where notices carry our reference, a capture may have
   its authorization's, and a refund that of the charge or capture that it gives back: their amounts
   alone are believed then. Where notices carry nothing but that id (``notices_by_own_id`` in the
   profile), each operation has its own, a void as well. It is not blank. Where a gateway uses an id
   again, its adapter makes it unique (say, by our operation's id behind it), in answers, notices
   and reports alike, and takes that off in calls. An answer about another key gives no id: that one
   is somebody else's. Where an answer names a key, whatever it says (also "not found" and a
   refusal) is believed of that key alone.

Every code an answer may carry, and what it asks for, is in ``pipeline/domain/normalisation.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest
from pipeline.gateways.notice import Notice, NoticeRefused

__all__ = ["Gateway", "GatewayAnswer", "Notice", "NoticeRefused"]


class Gateway(Protocol):
    """One gateway, as the worker's asyncio thread uses it. Many calls are in flight at once."""

    @property
    def name(self) -> str:
        """The name that ``PaymentRequest.gateway`` uses."""
        ...

    async def open(self) -> None:
        """Get ready inside the running event loop; contacts nobody."""
        ...

    async def close(self) -> None:
        """Give back connections. Calls in flight must have ended; closing twice is fine."""
        ...

    async def charge(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Take ``request.amount_minor`` at once.

        Succeeded, declined, pending, not_sent or unknown, as are the next four. Pending with the
        code ``customer_action_required`` has a ``next_action_url``.
        """
        ...

    async def authorize(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Reserve ``request.amount_minor``; succeeded means authorized."""
        ...

    async def capture(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Take ``request.amount_minor`` of the authorization ``request.parent_reference``."""
        ...

    async def void(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Release the authorization ``request.parent_reference``."""
        ...

    async def refund(self, request: PaymentRequest, *, send_before_ms: int) -> GatewayAnswer:
        """Pay back ``request.amount_minor`` of the charge or captured authorization."""
        ...

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        """Ask what became of the key: succeeded, declined, pending, not_found or unknown.

        An inquiry that could not be sent is ``unknown`` too, with the code that says why. Declined
        with the code ``returned`` says that it had succeeded and the money came back.
        """
        ...

    def read_notice(
        self, headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        """Verify a notice that came in, and read it. ``body`` is raw, ``now_s`` epoch seconds."""
        ...
