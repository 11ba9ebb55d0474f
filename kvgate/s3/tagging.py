"""Tags of objects and buckets: the XML document, the header, and how they are stored.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from kvgate.errors import InvalidArgument, InvalidTag
from kvgate.s3.elements import Fields
from kvgate.s3.xml import document, parse

MAX_OBJECT_TAGS = 10
MAX_BUCKET_TAGS = 50
MAX_KEY_CHARS = 128
MAX_VALUE_CHARS = 256
MAX_BODY_NBYTES = 256 << 10
"""Room for 50 tags, each byte of them escaped."""

_RESERVED = "aws:"
_PUNCTUATION = "_.:/=+-@"
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_tagging(body: bytes, most: int = MAX_OBJECT_TAGS) -> dict[str, str]:
    """The tags of a Tagging document. Raises MalformedXML, or InvalidTag naming the tag and the rule."""
    root = Fields(parse(body, "Tagging"), once=["TagSet"])
    tags = [Fields(tag, once=["Key", "Value"]) for tag in Fields(root.one("TagSet"), many=["Tag"]).all("Tag")]
    return checked_tags([(tag.text("Key"), tag.text("Value")) for tag in tags], most)


def parse_tagging_header(value: str, most: int = MAX_OBJECT_TAGS) -> dict[str, str]:
    """The tags of an `x-amz-tagging` header: a query, percent-encoded, "+" a space, in which a "=" may be left out.

    Raises InvalidArgument for what is not a query in UTF-8, or InvalidTag naming the tag and the rule.
    """
    if not value:
        return {}
    parts = [part.partition("=") for part in value.split("&")]
    return checked_tags([(_decode(key), _decode(text)) for key, _, text in parts], most)


def checked_tags(tags: Sequence[tuple[str, str]], most: int = MAX_OBJECT_TAGS) -> dict[str, str]:
    """The tags by key. Raises InvalidTag naming the tag and the rule of S3 that it breaks."""
    if len(tags) > most:
        raise InvalidTag(f"at most {most} tags are accepted, not {len(tags)}")
    found: dict[str, str] = {}
    for key, value in tags:
        if not 1 <= len(key) <= MAX_KEY_CHARS:
            raise InvalidTag(f"the key of a tag has 1 to {MAX_KEY_CHARS} characters; {key[:64]!r} has {len(key)}")
        if len(value) > MAX_VALUE_CHARS:
            raise InvalidTag(f"the value of the tag {key!r} has {len(value)} characters; at most {MAX_VALUE_CHARS}")
        if key.lower().startswith(_RESERVED):
            raise InvalidTag(f"the key of the tag {key!r} begins with {_RESERVED!r}, which is reserved")
        for text in (key, value):
            if not all(map(_is_allowed, text)):
                raise InvalidTag(f"the tag {key!r} may hold letters, digits, spaces and {' '.join(_PUNCTUATION)} only")
        if key in found:
            raise InvalidTag(f"the tag {key!r} is given twice")
        found[key] = value
    return found


def render_tagging(tags: Mapping[str, str]) -> bytes:
    """The Tagging document of tags."""
    return document("Tagging", [("TagSet", [("Tag", [("Key", key), ("Value", value)]) for key, value in tags.items()])])


def encode_tags(tags: Mapping[str, str]) -> str:
    """Tags as one line of ASCII, the same for the same tags; "" for none."""
    return urlencode(sorted(tags.items()), quote_via=quote, safe="")


def decode_tags(text: str) -> dict[str, str]:
    """The tags that `encode_tags` was given, in the order of their keys."""
    return dict(parse_qsl(text, keep_blank_values=True))


def _is_allowed(character: str) -> bool:
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LNZ"


def _decode(text: str) -> str:
    if _BROKEN_ESCAPE.search(text):
        raise InvalidArgument("x-amz-tagging has a '%' that is not followed by two hex digits")
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError:
        raise InvalidArgument("x-amz-tagging is not UTF-8 when percent-decoded") from None
