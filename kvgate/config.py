"""Configuration: frozen dataclasses from YAML, with errors that name the key and the nearest known one.

A component declares its options beside its code:

    @dataclass(frozen=True)
    class HostConfig:
        capacity: Size = option(default=4 * GiB, help="bytes of host memory for chunks")

and the composition root nests these into one. Sizes and durations are written with units (`4GiB`, `500MB`, `30s`).

Errors show a value only where a number, a size, a duration or a choice was expected. A value that stands where text
belongs may be a secret and is never shown, nor is the text around a YAML syntax error.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NewType, TypeVar

import yaml

from kvgate.errors import ConfigError

T = TypeVar("T")

Size = NewType("Size", int)
"""A number of bytes; in YAML an integer or a string with a unit: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB."""

Seconds = NewType("Seconds", float)
"""A duration in seconds; in YAML a number or a string with a unit: ms, s, m, h, d."""


class Secret(str):
    """Text that no log, error or summary may show; its repr hides it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


KiB, MiB, GiB, TiB = Size(1 << 10), Size(1 << 20), Size(1 << 30), Size(1 << 40)

MAX_YAML_NBYTES = MiB
"""No configuration file is longer: a larger one is some other file."""

_SIZE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_TIME_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d{1,24}(?:\.\d{1,24})?)\s*([A-Za-z]*)\s*", re.ASCII)


def option(*, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING, help: str) -> Any:
    """A dataclass field for one configuration key, with the sentence that `kvgate config reference` prints for it."""
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


# --- quantities -------------------------------------------------------------------------------------------------------


def parse_size(value: object) -> Size:
    """Bytes from an integer or a string such as ``4GiB``. Raises ValueError saying what is accepted."""
    accepted = "a size such as 512MiB or 4GiB"
    if isinstance(value, float):
        raise ValueError(f"expected {accepted}, got {_describe(value)}")  # noqa: TRY004
    return Size(int(_quantity(value, _SIZE_UNITS, accepted)))


def parse_seconds(value: object) -> Seconds:
    """Seconds from a number or a string such as ``500ms``. Raises ValueError saying what is accepted."""
    return Seconds(float(_quantity(value, _TIME_UNITS, "a duration such as 500ms or 30s")))


def format_size(nbytes: int) -> str:
    """The shortest text that `parse_size` reads back as exactly `nbytes`, in binary units."""
    for unit, name in ((TiB, "TiB"), (GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if nbytes and nbytes % unit == 0:
            return f"{nbytes // unit}{name}"
    return str(nbytes)


def format_seconds(seconds: float) -> str:
    """Text that `parse_seconds` reads back as the same duration."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds and seconds % unit == 0:
            return f"{seconds // unit:.0f}{name}"
    milliseconds = round(seconds * 1e3, 6)
    if 0 < seconds < 1 and milliseconds.is_integer():
        return f"{milliseconds:.0f}ms"
    return f"{seconds:.15g}s"


def _quantity(value: object, units: Mapping[str, float], accepted: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and math.isfinite(value):
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in units:
        raise ValueError(f"expected {accepted}, got {_describe(value)}")
    number = float(match[1]) if "." in match[1] else int(match[1])
    return number * units[match[2].lower()]


# --- dataclasses from plain values ------------------------------------------------------------------------------------


def build(cls: type[T], values: object, where: str = "") -> T:
    """An instance of the dataclass `cls` from plain YAML values; `where` prefixes the key names in errors.

    Raises ConfigError for an unknown key (naming the nearest known one), a missing key, a value of another type, or
    one that the dataclass itself refuses.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'}: expected a mapping, got {_kind(values)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{_join(where, key)}: unknown key; {_nearest(str(key), fields)}")
        arguments[key] = _convert(hints[key], value, _join(where, key))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(f"{_join(where, name)}: this key is required")
    try:
        return cls(**arguments)
    except ValueError as error:  # a dataclass's own check, in __post_init__
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _nearest(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known)) or 'none'}"


def _convert(hint: Any, value: object, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _convert(hint, value, path)
    if origin is typing.Literal:
        if not any(type(value) is type(choice) and value == choice for choice in args):
            raise ConfigError(f"{path}: expected one of {', '.join(map(str, args))}, got {_describe(value)}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, path)
    if origin is tuple:
        return tuple(_items(args, value, path))
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {_kind(value)}")
        return {
            _convert(args[0], name, f"{path}, key {name}"): _convert(args[1], item, _join(path, name))
            for name, item in value.items()
        }
    try:
        return _scalar(hint, value)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _items(args: tuple[Any, ...], value: object, path: str) -> Iterator[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{path}: expected a list, got {_kind(value)}")
    if args[-1] is Ellipsis:
        args = args[:1] * len(value)
    if len(args) != len(value):
        raise ConfigError(f"{path}: expected a list of {len(args)}, got {len(value)}")
    for position, (hint, item) in enumerate(zip(args, value, strict=True)):
        yield _convert(hint, item, f"{path}[{position}]")


def _scalar(hint: Any, value: object) -> Any:
    if hint is Size:
        return parse_size(value)
    if hint is Seconds:
        return parse_seconds(value)
    if hint is Path:
        if isinstance(value, str) and value:
            return Path(value).expanduser()
        raise ValueError(f"expected a path, got {_kind(value)}")
    if hint is str or hint is Secret:
        if isinstance(value, str):
            return hint(value)
        mend = "; put it in quotes" if isinstance(value, bool | int | float) else ""
        raise ValueError(f"expected text, got {_kind(value)}{mend}")
    if hint is float and type(value) in (int, float) and math.isfinite(typing.cast("float", value)):
        return float(typing.cast("float", value))
    if type(value) is not hint or hint is float:
        raise ValueError(f"expected {_WORDS.get(hint, hint.__name__)}, got {_describe(value)}")
    return value


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    type(None): "nothing",
}


def _kind(value: object) -> str:
    return _WORDS.get(type(value), type(value).__name__)


def _describe(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 24):
        return repr(value)
    return _kind(value)


# --- files ------------------------------------------------------------------------------------------------------------


def load_yaml(path: Path) -> Mapping[str, object]:
    """The top-level mapping of a YAML file; an empty file is an empty mapping.

    Raises ConfigError with the path and, where there is one, the line: for a file that cannot be read, is longer than
    MAX_YAML_NBYTES, is not YAML, holds a key twice in one mapping, or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_YAML_NBYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error
    if len(text) > MAX_YAML_NBYTES:
        raise ConfigError(f"{path}: longer than {format_size(MAX_YAML_NBYTES)}, so not a configuration file")
    try:
        values = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: {_redact(error.problem or 'not YAML')}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{path}: holds bytes that are no YAML text") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError:
        raise ConfigError(f"{path}: holds a number or a date that cannot be read; put it in quotes") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {_kind(values)}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """Plain values only, and no key twice in one mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    problem = f"the key {key.value} stands twice in one mapping, first on line {lines[key.value]}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                lines[key.value] = key.start_mark.line + 1
        return node


def _redact(problem: str) -> str:
    """A YAML problem without the words of the file that it quotes: `secret: *x` would show x."""
    return re.sub(r"(alias|tag|anchor|handle) (['\"]).*\2", r"\1", problem)
