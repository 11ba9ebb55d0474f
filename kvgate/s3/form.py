"""A POST form as it arrives: its fields are read first, and then its file is a body like any other.

RFC 7578 as S3 has it: `file` is the last field that is read, and whatever comes after it is ignored.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html
"""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kvgate.errors import FormTooLarge, InvalidArgument, MalformedForm
from kvgate.messages import Request

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS_NBYTES = 20 << 10
"""Of everything before the content of the file, boundaries and all."""

_FILE = "file"
_FILENAME = "${filename}"
_BUFFER_NBYTES = 64 << 10
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every malformed form that is sent


class Form:
    """One form. `read_fields` comes first; the form is then the RequestBody of its file.

    fields:   by lower-case name, `${filename}` replaced in every value
    filename: what the browser says of the file, without folders
    """

    def __init__(self, request: Request) -> None:
        """Raises MalformedForm for a body that is not multipart/form-data."""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._receive_header_name,
            "on_header_value": self._receive_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._receive_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        self._parser = MultipartParser(_boundary(request.headers.get("content-type")), callbacks)
        self._body = request.body
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))
        self._header_name, self._header_value = b"", b""
        self._disposition = b""
        self._name = ""
        self._content = bytearray()
        self._pieces: deque[memoryview] = deque()
        self._in_file, self._ended = False, False
        self.fields: dict[str, str] = {}
        self.filename = ""

    async def read_fields(self) -> None:
        """Read as far as the content of the file begins.

        Raises MalformedForm, FormTooLarge, InvalidArgument for a field that is given twice, IncompleteBody.
        """
        left = MAX_FIELDS_NBYTES
        while not self._in_file:
            if not left:
                raise FormTooLarge(f"the fields before the file are over {MAX_FIELDS_NBYTES} bytes")
            left -= await self._receive(left)
        if sum(value.count(_FILENAME) for value in self.fields.values()) * len(self.filename) > MAX_FIELDS_NBYTES:
            raise FormTooLarge(f"the fields are over {MAX_FIELDS_NBYTES} bytes with {_FILENAME} replaced")
        self.fields = {name: value.replace(_FILENAME, self.filename) for name, value in self.fields.items()}

    async def readinto(self, view: memoryview) -> int:
        """The next bytes of the file: see RequestBody. Raises also MalformedForm when no boundary ends it."""
        while not self._pieces:
            if self._ended:
                return 0
            await self._receive(len(self._buffer))
        piece = self._pieces.popleft()
        count = min(len(piece), len(view))
        view[:count] = piece[:count]
        if count < len(piece):
            self._pieces.appendleft(piece[count:])
        return count

    async def _receive(self, most: int) -> int:
        """Parse the next bytes of the body, at most `most`, and return how many (≥ 1)."""
        received = await self._body.readinto(self._buffer[:most])
        if not received:
            raise MalformedForm("the form ends without the boundary that ends its last field")
        try:
            self._parser.write(bytes(self._buffer[:received]))
        except _FileEnded:
            self._ended = True
        except FormParserError as error:
            raise MalformedForm(f"the body is not well-formed multipart/form-data: {error}") from None
        return received

    # --- what the parser finds ----------------------------------------------------------------------------------------

    def _begin_part(self) -> None:
        self._disposition = b""
        self._content = bytearray()

    def _receive_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _receive_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name, self._header_value = b"", b""

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise MalformedForm("a part of the form has no Content-Disposition: form-data with a name")
        self._name = _decode(options[b"name"]).lower()
        if self._name == _FILE:
            self._in_file = True
            self.filename = re.split(r"[/\\]", _decode(options.get(b"filename", b"")))[-1]

    def _receive_content(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(memoryview(data)[start:end])
        else:
            self._content += data[start:end]

    def _end_part(self) -> None:
        if self._in_file:
            raise _FileEnded
        if self._name in self.fields:
            raise InvalidArgument(f"the form field {self._name[:64]!r} is given twice")
        self.fields[self._name] = _decode(bytes(self._content))

    def _end(self) -> None:
        raise InvalidArgument("POST requires exactly one file upload per request: the form has no field named 'file'")


class _FileEnded(Exception):
    """The boundary behind the file has been parsed. What follows it is not."""


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type) if content_type.isascii() else (b"", {})
    if kind != b"multipart/form-data":
        raise MalformedForm("Bucket POST must be of the enclosure-type multipart/form-data")
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise MalformedForm("the Content-Type of a form must name its boundary, of 1 to 70 characters")
    return boundary


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedForm("a field of the form is not UTF-8") from None
