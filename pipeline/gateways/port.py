"""The port to payment gateways: what the gateway worker asks, and what every adapter promises.

An adapter makes one call for one request and says what is known afterwards. It never tries again
by itself: whether a request may be sent again is decided over the payments table.

Promises of every adapter (``tests/integration/test_gateway_contract.py`` checks them):

1. ``charge`` carries ``request.idempotency_key``; the same key again moves no more money and gives
   the first answer.
2. At ``send_before_ms`` (epoch ms) or later nothing is sent any more. The check stands right before
   the request is written to the socket, after any wait for a connection.
3. ``not_sent`` is answered only if nothing can have been moved: no byte was written, or the gateway
   said plainly that it did not handle the request (throttled). All other trouble is ``unknown``.
4. ``inquire`` asks by the same key and moves nothing. ``not_found`` is the gateway's plain word
   that it knows no such key.
5. A call ends within the adapter's soft deadline and then answers ``unknown``; calls raise nothing
   but ``asyncio.CancelledError``. A cancelled call may have been sent.

Normalised codes that adapters give besides the decline codes of ``decline_codes``:

====================== ============  ==========================================================
code                   outcome       meaning
====================== ============  ==========================================================
send_before_passed     not_sent      the request was too old when it could have been written
connection_refused     not_sent      nobody listens there, or the name does not resolve
connect_timeout        not_sent      no connection in time
pool_timeout           not_sent      no free connection in time
rate_limited           not_sent      the gateway turned it away unhandled; see retry_after_ms
invalid_request        declined      the gateway will never take this request
broken_connection      not_sent      the connection broke before the first byte was written
timeout                unknown       no answer within the soft deadline
connection_lost        unknown       the connection broke after the first byte was written
gateway_error          unknown       the gateway answered 5xx or something not in its contract
in_progress            unknown       the gateway is still busy with the same key
undecodable_answer     unknown       the answer could not be read
mismatched_answer      unknown       the answer is about another key, amount or currency
idempotency_key_reused unknown       the gateway has the key with another content
====================== ============  ==========================================================
"""

from __future__ import annotations

from typing import Protocol

from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.model import PaymentRequest

__all__ = ["Gateway", "GatewayAnswer"]


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
        """Ask for ``request.amount_minor``: succeeded, declined, pending, not_sent or unknown."""
        ...

    async def inquire(self, request: PaymentRequest) -> GatewayAnswer:
        """Ask what became of the key: succeeded, declined, pending, not_found or unknown.

        An inquiry that could not be sent is ``unknown`` too, with the code that says why.
        """
        ...
