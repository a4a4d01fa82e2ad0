"""The CHAI Applied Model Card (docs/model-card.xml) as headings and text, for a person to read.

Free text that gates nothing. No DTD, no entities, no references to other files: a card with
one is refused, not expanded.
"""

from __future__ import annotations

from typing import Final
from xml.parsers import expat

from models.errors import PackageError

__all__ = ["MAX_CARD", "read"]

MAX_CARD: Final = 1024**2
"""Bytes of the largest card that is read."""
_MAX_LINES: Final = 500
_MAX_DEPTH: Final = 32
_MAX_TEXT: Final = 2000


class _Refused(Exception):
    """What a card may not hold; expat hands it through."""


def read(data: bytes, name: str) -> list[tuple[str, str]]:
    """Give (path of elements, text) for each element with text, in order; `name` is the file's.

    Raises PackageError for what is no XML, holds a DTD or an entity, or is too large.
    """
    if len(data) > MAX_CARD:
        raise PackageError(name, "", "is too large", "A model card has a few kilobytes.")
    found: list[tuple[str, str]] = []
    path: list[str] = []
    text: list[list[str]] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(path) >= _MAX_DEPTH:
            raise _Refused("nests too deeply")
        path.append(_short(tag))
        text.append([])
        del attributes

    def end(tag: str) -> None:
        words = " ".join("".join(text.pop()).split())[:_MAX_TEXT]
        if words and len(found) < _MAX_LINES:
            found.append((" / ".join(path[1:]) or path[0], words))
        path.pop()
        del tag

    def doctype(*_words: object) -> None:
        raise _Refused("holds a document type definition")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda words: text[-1].append(words)
    parser.StartDoctypeDeclHandler = doctype
    parser.EntityDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except _Refused as refused:
        raise PackageError(name, "", str(refused), "Write plain elements and text.") from None
    except expat.ExpatError as error:
        raise PackageError(
            name, f"line {error.lineno}", "is not XML", "Write it by the CHAI Applied Model Card."
        ) from None
    return found


def _short(tag: str) -> str:
    """Leave out the prefix of a namespace, and anything a terminal would obey."""
    return "".join(c for c in tag.rpartition(":")[2] if c.isprintable())[:64]
