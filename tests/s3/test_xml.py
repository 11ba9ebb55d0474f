from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import MalformedXML
from kvgate.s3.xml import MAX_DEPTH, MAX_ELEMENTS, NAMESPACE, Tag, document, escape, parse

XML_TEXT = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\r&<>'\"")
)


@given(XML_TEXT)
def test_text_that_xml_can_carry_arrives_unchanged(text: str) -> None:
    root = ET.fromstring(document("Root", [("Key", text)]))
    assert root.tag == f"{{{NAMESPACE}}}Root"
    assert (root[0].text or "") == text


def test_text_that_xml_cannot_carry_breaks_a_strict_parser_rather_than_change() -> None:
    for character in "\x00\x01\x0b\x1f\ufffe\ud800":
        assert escape(f"a{character}b") == f"a&#x{ord(character):x};b"
        with pytest.raises(ET.ParseError):
            ET.fromstring(document("Root", [("Key", f"a{character}b")]))


def test_documents_nest() -> None:
    body = document("R", [("A", 1), ("B", True), ("C", [("D", "x"), ("E", [])])], namespace="")
    assert body == b'<?xml version="1.0" encoding="UTF-8"?>\n<R><A>1</A><B>true</B><C><D>x</D><E></E></C></R>'


@given(XML_TEXT)
def test_attributes_arrive_unchanged(value: str) -> None:
    root = ET.fromstring(document("Root", [(Tag("Grantee", {"type": value, "of": "x"}), [("ID", "y")])], namespace=""))
    assert root[0].tag == "Grantee"
    assert root[0].attrib == {"type": value, "of": "x"}
    assert root[0].findtext("ID") == "y"


@pytest.mark.parametrize("attribute", ["", f' xmlns="{NAMESPACE}"', ' xmlns="http://other/"', ' a="1"'])
def test_any_namespace_is_read(attribute: str) -> None:
    root = parse(f"<Delete{attribute}><Object><Key>k</Key></Object></Delete>".encode(), "Delete")
    assert root.findtext("Object/Key") == "k"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<Delete>",
        b"<Delete></Object>",
        b"<Other/>",
        b"<Delete/><Delete/>",
        b"\xff\xfe",
        b"<Delete>\x01</Delete>",
        b'<!DOCTYPE d [<!ENTITY e "x">]><Delete>&e;</Delete>',
        b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><Delete/>',
        b'<?xml version="1.0" encoding="no-such-encoding"?><Delete/>',
        b"<Delete>" + b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH + b"</Delete>",
        b"<Delete>" + b"<a/>" * MAX_ELEMENTS + b"</Delete>",
        b"<Delete>&undefined;</Delete>",
    ],
)
def test_what_is_not_a_bounded_document_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedXML):
        parse(body, "Delete")


@given(st.binary(max_size=200))
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(MalformedXML):
        parse(junk, "Delete")
