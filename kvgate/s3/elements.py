"""Elements of the XML documents that configure buckets and objects, read strictly.

What is not understood is refused by its name, never passed over: a rule that loses an element says something else.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection

from kvgate.errors import MalformedXML, UnsupportedOperation


class Fields:
    """The children of one element, by tag."""

    def __init__(
        self,
        element: ET.Element,
        *,
        once: Collection[str] = (),
        many: Collection[str] = (),
        unsupported: Collection[str] = (),
    ) -> None:
        """`once` and `many` are the tags that a child may have.

        Raises MalformedXML for any other, for one of `once` that comes again and for text between the children;
        UnsupportedOperation for one of `unsupported`, which are of S3 but not offered.
        """
        self._parent = element.tag
        self._children: dict[str, list[ET.Element]] = {}
        if (element.text or "").strip() or any((child.tail or "").strip() for child in element):
            raise MalformedXML(f"<{element.tag}> holds text where only elements may be")
        for child in element:
            tag = child.tag
            if tag in unsupported:
                raise UnsupportedOperation(f"<{tag}> in <{element.tag}> is not offered")
            if tag not in once and tag not in many:
                accepted = ", ".join(f"<{name}>" for name in (*once, *many))
                raise MalformedXML(f"<{tag[:64]}> is not an element of <{element.tag}>, which may hold {accepted}")
            if tag in once and tag in self._children:
                raise MalformedXML(f"<{tag}> comes twice in one <{element.tag}>")
            self._children.setdefault(tag, []).append(child)

    def __contains__(self, tag: str) -> bool:
        return tag in self._children

    def __len__(self) -> int:
        return len(self._children)

    def all(self, tag: str) -> list[ET.Element]:
        """Every child of this tag, in order."""
        return self._children.get(tag, [])

    def one(self, tag: str) -> ET.Element:
        """The child of this tag. Raises MalformedXML where there is none."""
        if tag not in self._children:
            raise MalformedXML(f"<{self._parent}> needs a <{tag}>")
        return self._children[tag][0]

    def text(self, tag: str) -> str:
        """The text of the child of this tag, spaces and all. Raises MalformedXML where there is none."""
        return text_of(self.one(tag))

    def word(self, tag: str) -> str:
        """As `text`, for what spaces around it are no part of."""
        return self.text(tag).strip()


def text_of(element: ET.Element) -> str:
    """The text of an element. Raises MalformedXML where it holds elements."""
    if len(element):
        raise MalformedXML(f"<{element.tag}> holds <{element[0].tag[:64]}> where only text may be")
    return element.text or ""
