"""Reads from the client's own debug log how each EndTxn really ended.

librdkafka retries an EndTxn whose answer was lost and then reports success. The first copy may
still be on its way and end the *next* transaction of the same producer epoch (KIP-890; the client
does not implement it). The only sign is a line of ``debug=eos``: ``EndTxn returned _TRANSPORT in
state ... (may_retry=true)``. This object is given to the producer as its logger.
"""

from __future__ import annotations

import logging

_log = logging.getLogger("paystream.librdkafka")

_FACILITY = "ENDTXN"
_MARK = "EndTxn returned "


class EndTxnWatch:
    """Counts plain and other ends since the last ``begin``.

    The client's log callbacks are served by ``poll``, so poll the producer after the end before
    asking. ``log`` has the shape that confluent-kafka calls: a level, a format, and its arguments
    (facility, client name, text).
    """

    __slots__ = ("answers", "plain")

    def __init__(self) -> None:
        self.plain = 0
        self.answers: list[str] = []

    def begin(self) -> None:
        """Forget what was seen of the previous transaction."""
        self.plain = 0
        self.answers.clear()

    def log(self, level: int, message: str, *args: object) -> None:
        if args and args[0] == _FACILITY:
            text = str(args[-1])
            at = text.find(_MARK)
            if at >= 0:
                answer = text[at + len(_MARK) :].split(" ", 1)[0]
                self.answers.append(answer)
                if answer == "NO_ERROR":
                    self.plain += 1
            return
        if level > logging.DEBUG:
            _log.log(level, message, *args)

    @property
    def ended_plainly(self) -> bool:
        """Exactly one EndTxn was answered, without error: nothing of it can still be under way."""
        return self.answers == ["NO_ERROR"]
