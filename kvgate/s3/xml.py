"""XML as S3 writes and reads it: a small writer, and a bounded parser that knows no entities and no namespaces."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from kvgate.errors import MalformedXML

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
MAX_ELEMENTS = 8192
MAX_DEPTH = 8


class Tag(NamedTuple):
    """The tag of an element that has attributes."""

    name: str
    attributes: Mapping[str, str]


Children = Iterable["tuple[str | Tag, str | int | bool | Children]"]
"""Tags with the text, or the children, of each."""

_UNCARRIED = "\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff"
_SPECIAL = re.compile(f"[&<>\r{_UNCARRIED}]")
_ILLEGIBLE = re.compile(f"[{_UNCARRIED}]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape(text: str) -> str:
    """Text for an element.

    A character that XML 1.0 cannot carry becomes a numeric reference, as with S3: a strict parser then refuses the
    document rather than see another key. Listings avoid this with `encoding-type=url`.
    """
    return _SPECIAL.sub(lambda match: _ENTITIES.get(match[0]) or f"&#x{ord(match[0]):x};", text)


def legible(text: str) -> str:
    """Text for people, which no program compares: U+FFFD stands for every character that XML 1.0 cannot carry."""
    return _ILLEGIBLE.sub("\ufffd", text)


def document(root: str, children: Children | str, namespace: str = NAMESPACE) -> bytes:
    """A whole document in UTF-8. Without a `namespace` the root has none, as in S3's error documents."""
    attribute = f' xmlns="{namespace}"' if namespace else ""
    content = escape(children) if isinstance(children, str) else _render(children)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}{attribute}>{content}</{root}>'.encode()


def _render(children: Children) -> str:
    parts = []
    for tag, content in children:
        if isinstance(content, str):
            text = escape(content)
        elif isinstance(content, bool):
            text = "true" if content else "false"
        elif isinstance(content, int):
            text = str(content)
        else:
            text = _render(content)
        name, attributes = tag if isinstance(tag, Tag) else (tag, {})
        quoted = "".join(f' {attribute}="{_quote(value)}"' for attribute, value in attributes.items())
        parts.append(f"<{name}{quoted}>{text}</{name}>")
    return "".join(parts)


def _quote(value: str) -> str:
    return escape(value).replace('"', "&quot;").replace("\n", "&#xa;").replace("\t", "&#x9;")


def parse(body: bytes, root: str, max_elements: int = MAX_ELEMENTS) -> ET.Element:
    """The root element of a document, namespaces dropped from every tag.

    Raises MalformedXML: not well-formed, a DTD, another root, over `max_elements` or MAX_DEPTH levels.
    """
    parser = DefusedXMLParser(target=_BoundedBuilder(max_elements), forbid_dtd=True)
    try:
        parser.feed(body)
        element: ET.Element = parser.close()
    except (ET.ParseError, DefusedXmlException, ValueError, LookupError) as error:
        if isinstance(error, MalformedXML):
            raise
        raise MalformedXML(f"the body is not well-formed XML: {type(error).__name__}") from None
    if element.tag != root:
        raise MalformedXML(f"expected an XML document <{root}>, got <{element.tag[:64]}>")
    return element


class _BoundedBuilder(ET.TreeBuilder):
    def __init__(self, max_elements: int) -> None:
        super().__init__()
        self._max_elements = max_elements
        self._count = 0
        self._depth = 0

    def start(self, tag: str, attrs: dict[Any, Any], /) -> ET.Element:
        self._count += 1
        self._depth += 1
        if self._count > self._max_elements or self._depth > MAX_DEPTH:
            raise MalformedXML(f"the XML has over {self._max_elements} elements or {MAX_DEPTH} levels")
        return super().start(tag.rpartition("}")[2], {})

    def end(self, tag: str, /) -> ET.Element:
        self._depth -= 1
        return super().end(tag.rpartition("}")[2])
