"""Reading a bank's XML message (ISO 20022), which comes from outside.

No document type is allowed, which leaves no entity to expand and nothing to load.
"""

from __future__ import annotations

from typing import Final
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

_DEPTH_MAX: Final = 64


class Malformed(Exception):
    """What is wrong, in words."""


def parse(content: bytes, schema: str, *, called: str, bytes_max: int) -> Element:
    """The document, its elements named without their namespace, which has to begin with
    ``schema``'s. Malformed where it is another, too large or deep, or no XML."""
    if len(content) > bytes_max:
        raise Malformed(f"it has more than {bytes_max} bytes")
    builder = TreeBuilder()
    depth = 0

    def refuse(*_: object) -> None:
        raise Malformed("it has a document type, which no bank sends")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        space, _, local = name.rpartition(" ")
        if not space.startswith(schema):
            raise Malformed(f"element {local} is not of {called}")
        if depth > _DEPTH_MAX:
            raise Malformed("its elements are nested too deep")
        builder.start(local, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name.rpartition(" ")[2])

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        # The latter two: an encoding that nobody knows, or that expat does not read.
        raise Malformed(f"it is no XML ({error})") from error
    return builder.close()
