"""Plain YAML values become frozen dataclasses, and what is wrong with them is said without showing secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.config import (
    MAX_YAML_NBYTES,
    GiB,
    MiB,
    Seconds,
    Secret,
    Size,
    build,
    format_seconds,
    format_size,
    load_yaml,
    option,
    parse_seconds,
    parse_size,
)
from kvgate.errors import ConfigError


@dataclass(frozen=True)
class Tenant:
    secret_key: Secret = option(help="the secret half of the key pair")
    quota: Size = option(default=GiB, help="bytes that the tenant may store")
    buckets: tuple[str, ...] = option(default=(), help="buckets made at the start")

    def __post_init__(self) -> None:
        if self.quota < MiB:
            raise ConfigError("quota: a tenant needs at least 1MiB")


@dataclass(frozen=True)
class Tier:
    kind: Literal["host", "disk"] = option(default="host", help="where the bytes are")
    capacity: Size = option(default=4 * GiB, help="bytes of the tier")
    folder: Path | None = option(default=None, help="folder of a disk tier")


@dataclass(frozen=True)
class Gateway:
    port: int = option(default=9000, help="TCP port")
    ratio: float = option(default=0.5, help="a share")
    verbose: bool = option(default=False, help="say more")
    timeout: Seconds = option(default=Seconds(30.0), help="a deadline")
    span: tuple[int, int] = option(default=(0, 1), help="first and last")
    tier: Tier = option(default_factory=Tier, help="the fastest tier")
    tiers: tuple[Tier, ...] = option(default=(), help="the other tiers")
    tenants: Mapping[str, Tenant] = option(default_factory=dict, help="tenants by name")
    labels: dict[str, str] = option(default_factory=dict, help="free text")
    options: Mapping[str, Any] = option(default_factory=dict, help="what a plug-in takes")
    computed: int = field(default=0, init=False)


def error_of(values: object, cls: type = Gateway) -> str:
    with pytest.raises(ConfigError) as caught:
        build(cls, values)
    return str(caught.value)


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_nothing_gives_the_defaults() -> None:
    assert build(Gateway, None) == build(Gateway, {}) == Gateway()


def test_nested_mapping_and_tuple_types() -> None:
    gateway = build(
        Gateway,
        {
            "port": 1,
            "ratio": 1,
            "span": [3, 4],
            "tier": {"kind": "disk", "folder": "~/kv", "capacity": "10GB"},
            "tiers": [{"kind": "host"}, {"kind": "disk", "folder": None}],
            "tenants": {"acme": {"secret_key": "hush", "buckets": ["kv", "logs"]}},
            "labels": {"zone": "a"},
            "options": {"anything": [1, {"x": None}]},
        },
    )
    assert gateway.tier == Tier("disk", Size(10**10), Path.home() / "kv")
    assert gateway.tiers == (Tier(), Tier("disk"))
    assert gateway.tenants["acme"] == Tenant(Secret("hush"), buckets=("kv", "logs"))
    assert isinstance(gateway.tenants["acme"].secret_key, Secret)
    assert isinstance(gateway.ratio, float)
    assert gateway.span == (3, 4)
    assert gateway.options == {"anything": [1, {"x": None}]}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [(0, 0), ("512", 512), ("1B", 1), ("1kB", 1000), ("1 KiB", 1024), ("1.5GiB", 3 << 29), ("2tb", 2 * 10**12)],
)
def test_sizes(text: object, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    ("text", "seconds"), [(2, 2.0), (0.5, 0.5), ("500ms", 0.5), ("30s", 30), ("2m", 120), ("1d", 86400)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds
    assert isinstance(parse_seconds(text), float)


@pytest.mark.parametrize(
    "value", [-1, 1.5, True, None, float("inf"), float("nan"), "-1", "4 GB B", "4Gb/s", "", "9" * 30, [], {}]
)
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="expected a size such as 512MiB or 4GiB"):
        parse_size(value)


@pytest.mark.parametrize("value", [-1, True, float("inf"), float("nan"), "soon", "1y", None])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 500ms or 30s"):
        parse_seconds(value)


@given(st.integers(0, 1 << 60))
def test_a_printed_size_reads_back_as_itself(nbytes: int) -> None:
    assert parse_size(format_size(nbytes)) == nbytes


@given(st.integers(0, 10**9) | st.integers(0, 10**6).map(lambda ms: ms / 1e3))
def test_a_printed_duration_reads_back_as_itself(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=1e-12)


# --- what is refused, and how it is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prot": 1}, "prot: unknown key; did you mean 'port'?"),
        ({"tier": {"capacty": 1}}, "tier.capacty: unknown key; did you mean 'capacity'?"),
        ({"tiers": [{}, {"zzz": 1}]}, "tiers[1].zzz: unknown key; known keys: capacity, folder, kind"),
        ({7: 1}, "7: unknown key; known keys:"),
        ({"computed": 1}, "computed: unknown key"),
        ({"tenants": {"acme": {}}}, "tenants.acme.secret_key: this key is required"),
        ({"tenants": {"acme": {"secret_key": "s", "quota": 5}}}, "tenants.acme: quota: a tenant needs at least 1MiB"),
        ({"tenants": []}, "tenants: expected a mapping, got a list"),
        ({"tenants": {3: {}}}, "tenants, key 3: expected text, got a whole number; put it in quotes"),
        ({"tier": "host"}, "tier: expected a mapping, got text"),
        ({"tiers": {}}, "tiers: expected a list, got a mapping"),
        ({"span": [1]}, "span: expected a list of 2, got 1"),
        ({"span": [1, "x"]}, "span[1]: expected a whole number, got 'x'"),
        ({"port": "9000"}, "port: expected a whole number, got '9000'"),
        ({"port": True}, "port: expected a whole number, got true"),
        ({"port": None}, "port: expected a whole number, got nothing"),
        ({"ratio": "x"}, "ratio: expected a number, got 'x'"),
        ({"ratio": float("nan")}, "ratio: expected a number, got nan"),
        ({"verbose": 1}, "verbose: expected true or false, got 1"),
        ({"tier": {"kind": "disc"}}, "tier.kind: expected one of host, disk, got 'disc'"),
        ({"tier": {"capacity": "4 bananas"}}, "tier.capacity: expected a size such as 512MiB or 4GiB, got '4 bananas'"),
        ({"tier": {"folder": ""}}, "tier.folder: expected a path, got text"),
        ({"timeout": "soon"}, "timeout: expected a duration such as 500ms or 30s, got 'soon'"),
        ([], "the configuration: expected a mapping, got a list"),
    ],
)
def test_the_error_names_the_key_and_what_is_accepted(values: object, message: str) -> None:
    assert error_of(values).startswith(message)


def test_a_choice_is_compared_with_its_type() -> None:
    @dataclass(frozen=True)
    class Level:
        level: Literal[0, 1] = option(default=0, help="a level")

    with pytest.raises(ConfigError, match="expected one of 0, 1, got true"):
        build(Level, {"level": True}, "here")


HUSH = 271828182845904523536


@pytest.mark.parametrize(
    "values",
    [
        {"tenants": {"acme": {"secret_key": HUSH}}},
        {"tenants": {"acme": {"secret_key": [str(HUSH)]}}},
        {"tenants": {"acme": {"secret_key": {str(HUSH): 1}}}},
        {"tenants": {"acme": str(HUSH)}},
        {"tenants": str(HUSH)},
        {"tenants": {"acme": {"secret_key": str(HUSH), "quota": 1}}},
        {"tenants": {"acme": {"secret_key": str(HUSH), "quoat": 1}}},
        {"labels": {"zone": HUSH}},
        {"tier": {"capacity": f"x{HUSH}-a-longer-secret"}},
    ],
)
def test_errors_never_show_a_value_that_may_be_secret(values: object) -> None:
    assert str(HUSH) not in error_of(values)


def test_a_secret_hides_itself_in_a_repr() -> None:
    tenant = Tenant(Secret("hush"))
    assert "hush" not in repr(tenant)
    assert "hush" not in f"{tenant!s} {tenant.secret_key!r}"
    assert tenant.secret_key == "hush"


# --- files ------------------------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "kvgate.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def file_error(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_a_file_gives_plain_values(tmp_path: Path) -> None:
    path = write(tmp_path, "port: 1\ntiers:\n  - &base {kind: host}\n  - {<<: *base, capacity: 4GiB}\n")
    assert load_yaml(path) == {"port": 1, "tiers": [{"kind": "host"}, {"kind": "host", "capacity": "4GiB"}]}


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path, "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")
    assert load_yaml(path)["c"] == {"x": 3}


@pytest.mark.parametrize("text", ["", "# nothing but words\n"])
def test_an_empty_file_is_an_empty_mapping(tmp_path: Path, text: str) -> None:
    assert load_yaml(write(tmp_path, text)) == {}


def test_a_missing_file(tmp_path: Path) -> None:
    assert file_error(tmp_path / "none.yaml") == ": no such file or directory"
    assert file_error(tmp_path) == ": is a directory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", ", line 3, column 2: "),
        ("a: 1\n\tb: 2\n", ", line 2, column 1: "),
        ("a: 1\nb: 2\na: 3\n", ", line 3, column 1: the key a stands twice in one mapping, first on line 1"),
        ("t: {a: 1, a: 2}\n", ", line 1, column 11: the key a stands twice"),
        ("t:\n  - b: {x: 1, 'x': 2}\n", ", line 2, column 15: the key x stands twice"),
        ("- 1\n", ": expected a mapping of keys to values, got a list"),
        ("a: 2026-99-99\n", ": holds a number or a date that cannot be read; put it in quotes"),
        ("a: " + "[" * 5000 + "]" * 5000, ": nested too deeply"),
        (
            "a: !!python/object/apply:os.getpid []\n",
            ", line 1, column 4: could not determine a constructor for the tag",
        ),
        (b"a: \xff\xfe\n", ": holds bytes that are no YAML text"),
        ("#" * (MAX_YAML_NBYTES + 1), ": longer than 1MiB, so not a configuration file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert file_error(write(tmp_path, text)).startswith(message)


@pytest.mark.parametrize("value", ["*hush", "!hush", "!hush!x y", "'hush", "[hush", "hush: x", "@hush", '"\\hush"'])
def test_a_syntax_error_does_not_quote_the_file(tmp_path: Path, value: str) -> None:
    message = file_error(write(tmp_path, f"b: 1\nsecret_key: {value}\n"))
    assert "hush" not in message
    assert "line" in message
