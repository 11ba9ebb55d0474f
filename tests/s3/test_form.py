from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import FormTooLarge, InvalidArgument, InvalidRequest, MalformedForm
from kvgate.messages import Headers, Request
from kvgate.s3.form import MAX_FIELDS_NBYTES, Form
from tests.s3.forms import BOUNDARY, end, form, part

CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def form_of(wire_body: Any, pieces: Sequence[bytes] | bytes, content_type: str = CONTENT_TYPE) -> Form:
    body = wire_body([pieces] if isinstance(pieces, bytes) else pieces)
    return Form(Request("POST", "/b", headers=Headers([("content-type", content_type)]), body=body))


async def read_file(opened: Form, view_nbytes: int = 65536) -> bytes:
    content, view = bytearray(), memoryview(bytearray(view_nbytes))
    while received := await opened.readinto(view):
        content += view[:received]
    assert await opened.readinto(view) == 0
    return bytes(content)


async def read(opened: Form) -> tuple[dict[str, str], str, bytes]:
    await opened.read_fields()
    return opened.fields, opened.filename, await read_file(opened)


def split(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    return [body[begin:end] for begin, end in itertools.pairwise(edges)]


# --- what is read -----------------------------------------------------------------------------------------------------


async def test_fields_come_before_the_file(wire_body: Any) -> None:
    body = form({"Key": "a/b", "x-amz-meta-ü": "漢字", "empty": "", "lines": "a\r\nb\n"}, b"content", "photo.png")
    fields, filename, content = await read(form_of(wire_body, body))
    assert fields == {"key": "a/b", "x-amz-meta-ü": "漢字", "empty": "", "lines": "a\r\nb\n"}
    assert (filename, content) == ("photo.png", b"content")


async def test_the_file_is_not_read_before_it_is_asked_for(wire_body: Any) -> None:
    body = wire_body([form({"key": "k"}, bytes(1 << 20))])
    opened = Form(Request("POST", "/b", headers=Headers([("content-type", CONTENT_TYPE)]), body=body))
    await opened.read_fields()
    assert sum(map(len, body.pieces)) > (1 << 20) - MAX_FIELDS_NBYTES
    assert await read_file(opened) == bytes(1 << 20)


async def test_what_comes_after_the_file_is_ignored(wire_body: Any) -> None:
    file = form({"key": "k"}, b"content").removesuffix(end())
    for after in (end(), end() + b"epilogue", part("key", "other") + end(), part("file", "other", "f") + end()):
        assert (await read(form_of(wire_body, file + after)))[0::2] == ({"key": "k"}, b"content")
    for cut in (b"", b"--" + BOUNDARY.encode() + b"\r\n@@@\r\n", part("x", bytes(200_000))):
        complete = file + b"--" + BOUNDARY.encode() + b"\r\n"
        assert (await read(form_of(wire_body, [complete, cut])))[2] == b"content"
        assert (await read(form_of(wire_body, complete + cut)))[2] == b"content"


@pytest.mark.parametrize(
    ("filename", "kept"),
    [
        ("photo.png", "photo.png"),
        ("C:\\Program Files\\directory1\\file.txt", "file.txt"),
        ("/home/me/ü 漢.txt", "ü 漢.txt"),
        ("folder/", ""),
        ("", ""),
        ("a;b=c.txt", "a;b=c.txt"),
        ("..", ".."),
    ],
)
async def test_the_file_name_is_filled_in(wire_body: Any, filename: str, kept: str) -> None:
    body = form({"key": "user/${filename}", "x-amz-meta-name": "${filename}, ${filename}"}, b"", filename)
    fields, name, _ = await read(form_of(wire_body, body))
    assert (fields["key"], fields["x-amz-meta-name"], name) == (f"user/{kept}", f"{kept}, {kept}", kept)


async def test_a_file_needs_no_name(wire_body: Any) -> None:
    body = part("key", "x${filename}y") + part("file", "text") + end()
    assert await read(form_of(wire_body, body)) == ({"key": "xy"}, "", b"text")


@pytest.mark.parametrize(
    "content_type",
    [
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data;boundary={BOUNDARY}",
        f"multipart/form-data; charset=utf-8; boundary={BOUNDARY}",
    ],
)
async def test_content_types_of_forms(wire_body: Any, content_type: str) -> None:
    assert (await read(form_of(wire_body, form({"key": "k"}, b"c"), content_type)))[2] == b"c"


async def test_lines_before_the_first_boundary_and_spaces_after_it(wire_body: Any) -> None:
    assert (await read(form_of(wire_body, b"\r\n" + form({"key": "k"}, b"c"))))[2] == b"c"


NEAR = [
    *(b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n-", b"\r\n--", BOUNDARY.encode(), BOUNDARY.encode()[:-1]),
    *(b"--" + BOUNDARY.encode(), b"\n--" + BOUNDARY.encode(), b"\r--" + BOUNDARY.encode() + b"--\r\n"),
    *(b"\r\n--" + BOUNDARY.encode()[:-1], b"\r\n--" + BOUNDARY.encode()[:-1] + b"X--", b"a", b"\x00", b"\xff" * 40),
]


@given(
    pieces=st.lists(st.sampled_from(NEAR) | st.binary(max_size=8), max_size=12),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
    view_nbytes=st.integers(1, 300),
)
def test_whatever_is_in_the_file_arrives_however_it_is_split(
    wire_body: Any, pieces: list[bytes], cuts: list[int], view_nbytes: int
) -> None:
    content = b"".join(pieces).replace(f"\r\n--{BOUNDARY}".encode(), b"?")
    if content.startswith(f"--{BOUNDARY}".encode()):  # with the line end before it, this would be a delimiter
        content = b"?" + content

    async def arrives() -> None:
        opened = form_of(wire_body, split(form({"key": "k", "near": "\r\n--x"}, content), cuts))
        await opened.read_fields()
        assert opened.fields == {"key": "k", "near": "\r\n--x"}
        assert await read_file(opened, view_nbytes) == content

    asyncio.run(arrives())


async def test_every_split_of_a_form(wire_body: Any) -> None:
    near = f"\r\n--{BOUNDARY[:-1]}\r\r\n-\r\n--".encode()
    body = form({"key": "k"}, near * 2, "f")
    for cut in range(len(body)):
        assert await read(form_of(wire_body, [body[:cut], body[cut:]])) == ({"key": "k"}, "f", near * 2)
    assert (await read(form_of(wire_body, [body[i : i + 1] for i in range(len(body))])))[2] == near * 2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "cause"),
    [
        ("", "enclosure-type"),
        ("application/x-www-form-urlencoded", "enclosure-type"),
        ("multipart/mixed; boundary=x", "enclosure-type"),
        ("multipart/form-data", "boundary"),
        ("multipart/form-data; boundary=", "boundary"),
        ('multipart/form-data; boundary=""', "boundary"),
        ("multipart/form-data; boundary=" + "x" * 71, "boundary"),
        ("multipart/form-data; boundary=\x01", "boundary"),
        ("multipart/form-data; boundary=é", "enclosure-type"),
        ("multipart/form-data; boundary=\udcff", "enclosure-type"),
        ("multipart/form-data; boundary*=utf-8''x", "boundary"),
    ],
)
def test_what_is_no_form_is_refused(wire_body: Any, content_type: str, cause: str) -> None:
    with pytest.raises(MalformedForm, match=cause):
        form_of(wire_body, b"", content_type)


async def test_every_truncation_is_refused(wire_body: Any) -> None:
    body = form({"key": "k"}, b"content").removesuffix(b"--\r\n")
    for length in range(len(body) + 1):
        with pytest.raises(MalformedForm):
            await read(form_of(wire_body, body[:length]))


HEAD = f"--{BOUNDARY}\r\n".encode()


@pytest.mark.parametrize(
    "body",
    [
        b"not a form",
        b"--other\r\n" + form({"key": "k"}, b"")[len(HEAD) :],
        HEAD + b"\r\nno headers\r\n" + end(),
        HEAD + b"Content-Type: text/plain\r\n\r\nno disposition\r\n" + end(),
        HEAD + b"Content-Disposition: form-data\r\n\r\nno name\r\n" + end(),
        HEAD + b'Content-Disposition: attachment; name="key"\r\n\r\nno form-data\r\n' + end(),
        HEAD + b"Content-Disposition: form-data; name*=utf-8''key\r\n\r\nextended\r\n" + end(),
        HEAD + b'Content-Disposition: form-data; name="\xff"\r\n\r\nnot UTF-8\r\n' + end(),
        HEAD + b'Content Disposition: form-data; name="key"\r\n\r\na space\r\n' + end(),
        HEAD + b': form-data; name="key"\r\n\r\nno header name\r\n' + end(),
        part("key", b"\xff") + part("file", "", "f") + end(),
        part("key", b"k").replace(b"name=", b'filename="\xff"; name=').replace(b'"key"', b'"file"') + end(),
    ],
)
async def test_malformed_forms_are_refused(wire_body: Any, body: bytes) -> None:
    with pytest.raises(MalformedForm):
        await read(form_of(wire_body, body))


async def test_a_form_needs_a_file(wire_body: Any) -> None:
    for body in (part("key", "k") + end(), end()):
        with pytest.raises(InvalidArgument, match="exactly one file"):
            await read(form_of(wire_body, body))


async def test_a_field_given_twice_is_refused(wire_body: Any) -> None:
    for second in ("key", "KEY"):
        with pytest.raises(InvalidArgument, match="'key' is given twice"):
            await read(form_of(wire_body, part("key", "a") + form({second: "a"}, b"")))


async def test_fields_are_bounded_together(wire_body: Any) -> None:
    content = bytes(100_000)
    overhead = len(form({"key": ""}, content)) - len(content) - len(b"\r\n" + end())
    room = MAX_FIELDS_NBYTES - overhead
    fields, _, received = await read(form_of(wire_body, form({"key": "k" * room}, content)))
    assert (fields, received) == ({"key": "k" * room}, content)
    with pytest.raises(FormTooLarge):
        await read(form_of(wire_body, form({"key": "k" * (room + 1)}, content)))


@pytest.mark.parametrize(
    "endless",
    [
        part("key", "").removesuffix(b"\r\n") + b"k" * (1 << 20),
        HEAD + b"x" * (1 << 20),
        HEAD + b"x-header: " + b"y" * (1 << 20),
        HEAD + b"a: b\r\n" * (1 << 18),
        b"\r\n" * (1 << 19),
        b"".join(part(f"name{number}", "") for number in range(10_000)),
    ],
)
async def test_no_more_than_the_bound_is_read_before_the_file(wire_body: Any, endless: bytes) -> None:
    body = wire_body([endless])
    with pytest.raises(MalformedForm):
        await read(Form(Request("POST", "/b", headers=Headers([("content-type", CONTENT_TYPE)]), body=body)))
    assert sum(map(len, body.pieces)) >= len(endless) - MAX_FIELDS_NBYTES


async def test_filled_in_file_names_are_bounded(wire_body: Any) -> None:
    with pytest.raises(FormTooLarge, match="filename"):
        await read(form_of(wire_body, form({"key": "${filename}" * 100}, b"", "n" * 3000)))


PIECES = st.sampled_from(
    [
        *(
            HEAD,
            end(),
            b"\r\n",
            b"--",
            b"Content-Disposition: form-data; ",
            b'name="key"',
            b'name="file"',
            b"filename=",
        ),
        *(b'"', b";", b"\\", b"=", b"\xff", b"'", b"*", b"${filename}", BOUNDARY.encode(), b": ", b" "),
    ]
)


@given(st.lists(PIECES | st.binary(max_size=4), max_size=20), st.lists(st.integers(0, 400), max_size=5))
def test_whatever_is_sent_is_read_or_refused_in_the_words_of_the_domain(
    wire_body: Any, pieces: list[bytes], cuts: list[int]
) -> None:
    async def outcome(sent: Sequence[bytes]) -> object:
        try:
            return await read(form_of(wire_body, sent))
        except InvalidRequest as error:
            return type(error)

    body = b"".join(pieces)
    whole = asyncio.run(outcome([body]))
    assert asyncio.run(outcome(split(body, cuts))) == whole


@given(st.text(max_size=60).map(lambda text: text.replace("\n", "")))
def test_whatever_content_type_is_sent_is_read_or_refused(wire_body: Any, text: str) -> None:
    for content_type in (text, f"multipart/form-data; {text}", f"multipart/form-data; boundary={text}"):
        try:
            form_of(wire_body, b"", content_type)
        except MalformedForm:
            continue
        assert "boundary" in content_type
