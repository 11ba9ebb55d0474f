"""Configuration in words: every key of a dataclass explained, and the values of an instance without its secrets.

Both texts are YAML, so that what is printed can be pasted into a file.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from kvgate.config import Seconds, Secret, Size, format_seconds, format_size

_NONE: Mapping[str, Any] = MappingProxyType({})
_INDENT = "  "
_WIDTH = 110
_END = "...\n"  # what YAML puts after a document that is one bare scalar
_NAMES = {
    Size: "size",
    Seconds: "duration",
    Secret: "secret text",
    Path: "path",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "anything",
    object: "anything",
}


def reference(cls: type, entries: Mapping[str, Mapping[str, tuple[type, ...]]] = _NONE) -> str:
    """Every key of the dataclass `cls`: its sentence and type in a comment, then the key with its default.

    entries: for a key whose entries plug-ins define, the dataclasses of each by its name; their keys stand together
    Where the default is nothing or empty, the comment says so and the shape of one entry follows, in a mapping under
    the name NAME.
    """
    return "".join(f"{line}\n" for line in _spaced(_explain(cls, None, entries)))


def resolved(config: Any, entries: Mapping[str, Mapping[str, tuple[Any, ...]]] = _NONE) -> str:
    """The values of a configuration, given or default. A secret, or a password in a URL, is printed as ***.

    entries: for a key whose entries plug-ins define, the dataclass instances by name
    """
    values = _plain(type(config), config)
    values |= {
        key: {
            name: {key: value for part in parts for key, value in _plain(type(part), part).items()}
            for name, parts in named.items()
        }
        for key, named in entries.items()
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=_WIDTH)


def _spaced(lines: Iterable[str]) -> Iterator[str]:
    """An empty line before the comment of every key at the top."""
    before = "#"
    for line in lines:
        if line.startswith("#") and not before.startswith("#"):
            yield ""
        yield line
        before = line


# --- every key --------------------------------------------------------------------------------------------------------


def _explain(cls: type, instance: Any, entries: Mapping[str, Mapping[str, tuple[type, ...]]] = _NONE) -> Iterator[str]:
    """Lines for the keys of `cls`, with the values of `instance`, or the defaults where there is none."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint = hints[field.name]
        value = _default(field) if instance is None else getattr(instance, field.name)
        sentence = field.metadata.get("help", "").strip().rstrip(".")
        kind = _type_name(hint) + _note(value)
        if field.name in entries:
            kind = f"mapping, default {', '.join(value) or 'empty'}"
        for line in textwrap.wrap(f"{sentence} ({kind})", _WIDTH):
            yield f"# {line}"
        if field.name in entries:
            yield f"{field.name}:"
            yield from _named(entries[field.name].items())
        else:
            yield from _entry(field.name, hint, value)


def _named(entries: Iterable[tuple[str, tuple[type, ...]]]) -> Iterator[str]:
    for name, parts in entries:
        yield f"{_INDENT}{name}:"
        for cls in parts:
            yield from _indented(_indented(_explain(cls, None)))


def _entry(key: str, hint: Any, value: Any) -> Iterator[str]:
    hint = _without_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    missing = value is dataclasses.MISSING
    if dataclasses.is_dataclass(hint):
        yield f"{key}:"
        yield from _indented(_explain(typing.cast("type", hint), None if missing else value))
    elif origin is tuple and dataclasses.is_dataclass(args[0]):
        yield f"{key}:"
        for element in (() if missing else value) or (None,):
            first, *rest = _explain(typing.cast("type", args[0]), element)
            yield f"{_INDENT}- {first}"
            yield from (f"{_INDENT}  {line}" for line in rest)
    elif origin in (dict, collections.abc.Mapping) and dataclasses.is_dataclass(args[1]):
        yield f"{key}:"
        for name, element in ({} if missing else value or {}).items() or (("NAME", None),):
            yield f"{_INDENT}{name}:"
            yield from _indented(_indented(_explain(typing.cast("type", args[1]), element)))
    elif missing:
        yield f"{key}:"
    else:
        text = yaml.safe_dump(_plain(hint, value), default_flow_style=True, width=float("inf"))
        yield f"{key}: {text.removesuffix(_END).strip()}"


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (_INDENT + line for line in lines)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _note(default: Any) -> str:
    if default is dataclasses.MISSING:
        return ", required"
    if default is None:
        return ", default none"
    if isinstance(default, tuple | Mapping) and not default:
        return ", default empty"
    return ""


def _without_none(hint: Any) -> Any:
    """The type that an optional one wraps."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    return hint


def _type_name(hint: Any) -> str:
    hint = _without_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"list of {_type_name(args[0])}"
    if origin in (dict, collections.abc.Mapping):
        return f"mapping of {_type_name(args[0])} to {_type_name(args[1])}"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


# --- plain values -----------------------------------------------------------------------------------------------------


def _plain(hint: Any, value: Any) -> Any:
    """The value as YAML has it: sizes and durations with their units, secrets hidden."""
    hint = _without_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: _plain(hints[name], getattr(value, name)) for name in fields}
    if hint is Secret or isinstance(value, Secret):
        return "***"
    if hint is Size:
        return format_size(value)
    if hint is Seconds:
        return format_seconds(value)
    if isinstance(value, Mapping):
        element = args[1] if args else Any
        return {str(name): _plain(element, item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        each = args if origin is tuple and args[-1] is not Ellipsis else (args[:1] or (Any,)) * len(value)
        return [_plain(*pair) for pair in zip(each, value, strict=True)]
    if isinstance(value, str):
        return _without_password(value)
    return value if isinstance(value, bool | int | float) else str(value)


def _without_password(text: str) -> str:
    parts = urlsplit(text) if "://" in text and "@" in text else None
    if parts is None or not parts.password:
        return text
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))
