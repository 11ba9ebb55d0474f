"""Configuration: frozen dataclasses from YAML, with errors that name the key and the nearest known one.

A component declares its options beside its code:

    @dataclass(frozen=True)
    class HostConfig:
        capacity: Size = option(default=4 * GiB, help="bytes of host memory for chunks")

and the composition root nests these into one. Sizes and durations are written with units (`4GiB`, `500MB`, `30s`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NewType, TypeVar

from kvgate.errors import ConfigError

T = TypeVar("T")

Size = NewType("Size", int)
"""A number of bytes; in YAML an integer or a string with a unit: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB."""

Seconds = NewType("Seconds", float)
"""A duration in seconds; in YAML a number or a string with a unit: ms, s, m, h, d."""

KiB, MiB, GiB, TiB = Size(1 << 10), Size(1 << 20), Size(1 << 30), Size(1 << 40)

_SIZE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_TIME_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def option(*, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING, help: str) -> Any:
    """A dataclass field for one configuration key, with the sentence that `kvgate config` prints for it."""
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def parse_size(value: object) -> Size:
    """Bytes from an integer or a string such as ``4GiB``. Raises ValueError saying what is accepted."""
    return Size(int(_quantity(value, _SIZE_UNITS, "a size such as 512MiB or 4GiB")))


def parse_seconds(value: object) -> Seconds:
    """Seconds from a number or a string such as ``500ms``. Raises ValueError saying what is accepted."""
    return Seconds(_quantity(value, _TIME_UNITS, "a duration such as 500ms or 30s"))


def _quantity(value: object, units: Mapping[str, float], accepted: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in units:
        raise ValueError(f"expected {accepted}, got {value!r}")
    number = float(match[1]) if "." in match[1] else int(match[1])
    return number * units[match[2].lower()]


def build(cls: type[T], values: object, where: str = "") -> T:
    """An instance of the dataclass `cls` from plain YAML values; `where` prefixes the key names in errors.

    Raises ConfigError for an unknown key (naming the nearest known one), a missing key, or a value of another type.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'}: expected a mapping, got {_describe(values)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"{path}: unknown key; {mend}")
        arguments[key] = _convert(hints[key], value, path)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(f"{where}.{name}: this key is required".lstrip("."))
    try:
        return cls(**arguments)
    except ConfigError as error:  # a dataclass's own check, in __post_init__
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _convert(hint: Any, value: object, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _convert(hint, value, path)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{path}: expected one of {', '.join(map(str, args))}, got {_describe(value)}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{path}: expected a list, got {_describe(value)}")
        return tuple(_convert(args[0], item, f"{path}[{position}]") for position, item in enumerate(value))
    if origin in (dict, Mapping):
        raise TypeError(f"{path}: use a mapping of dataclasses")
    try:
        return _scalar(hint, value)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _scalar(hint: Any, value: object) -> Any:
    if hint is Size:
        return parse_size(value)
    if hint is Seconds:
        return parse_seconds(value)
    if hint is Path:
        if isinstance(value, str) and value:
            return Path(value).expanduser()
        raise ValueError(f"expected a path, got {_describe(value)}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"expected {hint.__name__}, got {_describe(value)}")
    return value


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r}" if isinstance(value, int | float | bool) else type(value).__name__
