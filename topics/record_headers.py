"""The headers of a consumed record, whatever they are called.

A header's name may be any bytes on the wire. The client takes each for UTF-8: ``headers()`` of a
message with another raises SystemError, and called once more on that message it hands out a list
with holes that end the process. So it is called here and nowhere else, and the message is told
what it holds instead.
"""

from __future__ import annotations

from operator import methodcaller
from typing import Any, Final

Headers = tuple[tuple[str, bytes | None], ...]

# Instead of headers that cannot be read; known by identity, for anybody can write this name.
UNREADABLE: Final[Headers] = (("unreadable", b"the name of a header is not UTF-8"),)

# Written out, the call would lose the interpreter's check for an error beside a result as soon as
# it has been made a few times: the specialised instruction looks at the result alone.
_headers = methodcaller("headers")


def record_headers(message: Any) -> Headers:
    """A message's headers in their order, or UNREADABLE. Never raises; may be asked again."""
    try:
        found = _headers(message)
    except SystemError:
        message.set_headers(UNREADABLE)
        return UNREADABLE
    return UNREADABLE if found is UNREADABLE else tuple(found or ())
