"""The members of a request: each with its type, and no other."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.chunk.layout import parse_range
from kvgate.errors import InvalidArgument, InvalidRequest, LayoutError
from kvgate.kvapi.encoding import Members

_HEX_HASH = re.compile(rf"[0-9a-f]{{{2 * HASH_NBYTES}}}")
_HEX_DIGITS = re.compile(r"[0-9a-f]+")
_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)
_MAX_TEXT_CHARS = 1024
_MAX_S = 1e9


class Fields:
    """Each method gives one member. All raise InvalidArgument, which names the member and what is accepted."""

    def __init__(self, members: Members, known: Sequence[str]) -> None:
        """Raises InvalidArgument for a member that is not among the `known`, naming the nearest one."""
        self._members = members
        for name in members:
            if name not in known:
                near = difflib.get_close_matches(name[:64], known, n=1)
                mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
                raise InvalidArgument(f"{name[:64]!r}: unknown field; {mend}")

    def text(self, name: str) -> str:
        value = self._given(name)
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT_CHARS:
            raise InvalidArgument(f"{name}: expected text of 1 to {_MAX_TEXT_CHARS} characters, got {_kind(value)}")
        return value

    def optional_text(self, name: str) -> str:
        """As `text`; empty when it is not given."""
        return self.text(name) if self._members.get(name) is not None else ""

    def optional_label(self, name: str, most: int) -> str:
        """1 to `most` printable characters; empty when it is not given."""
        value = self._members.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
            raise InvalidArgument(f"{name}: expected 1 to {most} printable characters, got {_kind(value)}")
        return value

    def has(self, name: str) -> bool:
        """Whether a member is given."""
        return self._members.get(name) is not None

    def texts(self, name: str, most: int) -> list[str]:
        """At most `most` texts, each as `text` takes it."""
        value = self._given(name)
        if not isinstance(value, list) or len(value) > most:
            raise InvalidArgument(f"{name}: expected a list of at most {most} texts, got {_kind(value)}")
        for position, item in enumerate(value):
            if not isinstance(item, str) or not 0 < len(item) <= _MAX_TEXT_CHARS:
                raise InvalidArgument(
                    f"{name}[{position}]: expected text of 1 to {_MAX_TEXT_CHARS} characters, got {_kind(item)}"
                )
        return value

    def optional_map(self, name: str) -> Mapping[str, object] | None:
        """A map with text keys; None when it is not given."""
        value = self._members.get(name)
        if value is not None and not (isinstance(value, dict) and all(type(key) is str for key in value)):
            raise InvalidArgument(f"{name}: expected a map with text keys, got {_kind(value)}")
        return value

    def unquoted(self, name: str) -> str:
        """Text from a query, its escapes undone."""
        value = self._given(name)
        try:
            text = unquote(value, errors="strict") if isinstance(value, str) else ""
        except UnicodeDecodeError:
            text = ""
        if not 0 < len(text) <= _MAX_TEXT_CHARS:
            raise InvalidArgument(f"{name}: expected 1 to {_MAX_TEXT_CHARS} characters in UTF-8, got {_kind(value)}")
        return text

    def number(self, name: str, most: int) -> int:
        """A whole number from a query, in decimal digits."""
        value = self._given(name)
        if not isinstance(value, str) or not _DIGITS.fullmatch(value) or int(value) > most:
            raise InvalidArgument(f"{name}: expected an integer from 0 to {most}, got {_kind(value)}")
        return int(value)

    def digits(self, name: str, count: int) -> str:
        """So many lower-case hex digits."""
        value = self._given(name)
        if not isinstance(value, str) or len(value) != count or not _HEX_DIGITS.fullmatch(value):
            raise InvalidArgument(f"{name}: expected {count} lower-case hex digits, got {_kind(value)}")
        return value

    def hex_digest(self, name: str) -> str:
        value = self._given(name)
        if not isinstance(value, str) or not _HEX_HASH.fullmatch(value):
            raise InvalidArgument(f"{name}: expected {2 * HASH_NBYTES} lower-case hex digits, got {_kind(value)}")
        return value

    def seconds(self, name: str, default_s: float) -> float:
        value = self._given(name, default_s)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _MAX_S:
            raise InvalidArgument(f"{name}: expected seconds, above 0 and at most {_MAX_S:.0f}, got {_kind(value)}")
        return float(value)

    def optional_seconds(self, name: str) -> float | None:
        """Seconds, 0 included; None when it is not given."""
        value = self._members.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_S:
            raise InvalidArgument(f"{name}: expected seconds, 0 to {_MAX_S:.0f}, got {_kind(value)}")
        return float(value)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of some words; empty when it is not given."""
        value = self._members.get(name)
        if value is None:
            return ""
        if value not in choices:
            raise InvalidArgument(f"{name}: expected {' or '.join(choices)}, got {_kind(value)}")
        return str(value)

    def prefix(self, name: str) -> str:
        """As `text`, but it may be empty."""
        return "" if self._given(name) == "" else self.text(name)

    def optional_ms(self, name: str) -> float | None:
        """A time in milliseconds, as seconds; None when it is not given."""
        value = self._members.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_S:
            raise InvalidArgument(f"{name}: expected milliseconds, 0 to {_MAX_S:.0f}, got {_kind(value)}")
        return value / 1000

    def count(self, name: str, most: int) -> int:
        value = self._given(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise InvalidArgument(f"{name}: expected an integer from 0 to {most}, got {_kind(value)}")
        return value

    def hash(self, name: str) -> bytes:
        """One hash: 32 bytes or 64 hex digits."""
        return _hash(name, self._given(name))

    def hashes(self, name: str, most: int) -> list[bytes]:
        """Chunk hashes as `hash_run` takes them, 32 bytes each."""
        run = self.hash_run(name, most)
        return [run[start : start + HASH_NBYTES] for start in range(0, len(run), HASH_NBYTES)]

    def indices(self, name: str, limit: int) -> range | None:
        """A range such as `0-15`, or an index, below `limit`; None when it is not given, which is all."""
        text = self.optional_text(name)
        try:
            return parse_range(text, limit) if text else None
        except LayoutError as error:
            raise InvalidArgument(f"{name}: {error}") from None

    def hash_run(self, name: str, most: int) -> bytes:
        """At most `most` chunk hashes, one after the other: given so, or as a list of 32 bytes or 64 hex digits."""
        value = self._given(name)
        if isinstance(value, bytes):
            count, rest = divmod(len(value), HASH_NBYTES)
            if rest:
                raise InvalidArgument(f"{name}: expected {HASH_NBYTES} bytes each, got {len(value)} bytes in one run")
        elif isinstance(value, list):
            count = len(value)
        else:
            raise InvalidArgument(f"{name}: expected a list of hashes, got {_kind(value)}")
        if count > most:
            raise InvalidArgument(f"{name}: at most {most} hashes are accepted, got {count}")
        if isinstance(value, bytes):
            return value
        return b"".join([_hash(f"{name}[{position}]", item) for position, item in enumerate(value)])

    def _given(self, name: str, default: object = None) -> object:
        value = self._members.get(name, default)
        if value is None:
            raise InvalidArgument(f"{name}: this field needs a value")
        return value


def query_members(raw_query: str) -> Members:
    """The parameters of a query, without those that presigning adds; a name without a value has an empty one.

    Raises InvalidRequest for one that comes twice. Values are not decoded: none that there is needs escapes.
    """
    members: dict[str, object] = {}
    for parameter in raw_query.split("&"):
        name, _, value = parameter.partition("=")
        if not name and not value:
            continue
        if name.startswith("X-Amz-"):
            continue
        if name in members:
            raise InvalidRequest(f"the query parameter {name[:64]!r} comes twice")
        members[name] = value
    return members


def _hash(where: str, item: object) -> bytes:
    if isinstance(item, bytes) and len(item) == HASH_NBYTES:
        return item
    if isinstance(item, str) and _HEX_HASH.fullmatch(item):
        return bytes.fromhex(item)
    raise InvalidArgument(
        f"{where}: expected {HASH_NBYTES} bytes or {2 * HASH_NBYTES} lower-case hex digits, got {_kind(item)}"
    )


def _kind(value: object) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, str | bytes | list) else type(value).__name__
