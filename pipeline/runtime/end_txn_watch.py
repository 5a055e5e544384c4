"""Reads from the client's own debug log how each EndTxn really ended.

librdkafka retries an EndTxn whose answer was lost and then reports success. The first copy may
still be on its way and end the *next* transaction of the same producer epoch (KIP-890; the client
does not implement it). The only sign is a line of ``debug=eos``: ``EndTxn returned _TRANSPORT in
state ... (may_retry=true)``. This object is given to the producer as its logger.
"""

from __future__ import annotations

import logging
import time

_log = logging.getLogger("paystream.librdkafka")

_FACILITY = "ENDTXN"
_MARK = "EndTxn returned "
# While no broker answers the client says so of each try, once a second for as long as that lasts.
_SAME_AGAIN_S = 60.0


class EndTxnWatch:
    """Counts plain and other ends since the last ``begin``.

    The client's log callbacks are served by ``poll``, so poll the producer after the end before
    asking. ``log`` has the shape that confluent-kafka calls: a level, a format, and its arguments
    (facility, client name, text). What else the client says goes to our log, of each facility and
    broker one line in a minute.
    """

    __slots__ = ("_said_s", "answers", "plain")

    def __init__(self) -> None:
        self.plain = 0
        self.answers: list[str] = []
        # By facility and broker, when the last line was written.
        self._said_s: dict[object, float] = {}

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
            # A text begins with the client's thread, which is named for its broker.
            said = str(args[-1]) if args else message
            about, now_s = (*args[:1], said.partition(" ")[0]), time.monotonic()
            if now_s - self._said_s.get(about, -_SAME_AGAIN_S) >= _SAME_AGAIN_S:
                self._said_s[about] = now_s
                _log.log(level, message, *args)

    @property
    def ended_plainly(self) -> bool:
        """Exactly one EndTxn was answered, without error: nothing of it can still be under way."""
        return self.answers == ["NO_ERROR"]
