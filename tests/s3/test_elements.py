from __future__ import annotations

import pytest

from kvgate.errors import MalformedXML, UnsupportedOperation
from kvgate.s3.elements import Fields
from kvgate.s3.xml import parse


def fields(inside: str) -> Fields:
    root = parse(f"<Rule>{inside}</Rule>".encode(), "Rule")
    return Fields(root, once=["ID", "Status"], many=["Tag"], unsupported=["Transition"])


def test_children_are_found_by_tag() -> None:
    found = fields("\n <ID> a b </ID>\n<Tag>1</Tag> <Tag/>\n")
    assert "ID" in found
    assert "Status" not in found
    assert len(found) == 2
    assert found.text("ID") == " a b "
    assert found.word("ID") == "a b"
    assert [tag.text for tag in found.all("Tag")] == ["1", None]
    assert found.all("Status") == []
    assert found.text("Tag") == "1"


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("<Other/>", "<Other> is not an element of <Rule>, which may hold <ID>, <Status>, <Tag>"),
        ("<id/>", "<id>"),
        ("<ID/><ID/>", "<ID> comes twice"),
        ("text<ID/>", "holds text"),
        ("<ID/>text", "holds text"),
        ("text", "holds text"),
    ],
)
def test_other_children_are_refused_by_name(inside: str, named: str) -> None:
    with pytest.raises(MalformedXML, match=named):
        fields(inside)


def test_what_is_of_s3_and_not_offered_is_told_apart() -> None:
    with pytest.raises(UnsupportedOperation, match="<Transition> in <Rule>"):
        fields("<Transition><Days>1</Days></Transition>")


def test_what_is_missing_or_not_a_text_is_refused() -> None:
    with pytest.raises(MalformedXML, match="<Rule> needs a <Status>"):
        fields("<ID/>").text("Status")
    with pytest.raises(MalformedXML, match="<ID> holds <b>"):
        fields("<ID>a<b/></ID>").text("ID")
