"""Configuration in words: every key is explained, nothing secret is shown, and both texts are YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kvgate.cli.reference import reference, resolved
from kvgate.config import GiB, MiB, Seconds, Secret, Size, build, option


@dataclass(frozen=True)
class Tenant:
    secret_key: Secret = option(help="the secret half of the key pair")
    quota: Size | None = option(default=None, help="bytes that the tenant may store")


@dataclass(frozen=True)
class Disk:
    path: Path = option(help="folder of the tier")
    kind: Literal["fast", "safe"] = option(default="fast", help="which of both")


@dataclass(frozen=True)
class Gateway:
    capacity: Size = option(default=4 * GiB, help="bytes of host memory for chunks.")
    grace: Seconds = option(default=Seconds(0.5), help="time to end")
    disk: Disk | None = option(default=None, help="the disk tier")
    tiers: tuple[Disk, ...] = option(default=(Disk(Path("/a")), Disk(Path("/b"), "safe")), help="more tiers")
    peers: tuple[str, ...] = option(default=(), help="URLs of peers")
    tenants: Mapping[str, Tenant] = option(default_factory=dict, help="tenants by name")
    options: Mapping[str, Any] = option(default_factory=dict, help="what a plug-in takes")


REFERENCE = """\
# bytes of host memory for chunks (size)
capacity: 4GiB

# time to end (duration)
grace: 500ms

# the disk tier (mapping, default none)
disk:
  # folder of the tier (path, required)
  path:
  # which of both (one of fast, safe)
  kind: fast

# more tiers (list of mapping)
tiers:
  - # folder of the tier (path)
    path: /a
    # which of both (one of fast, safe)
    kind: fast
  - # folder of the tier (path)
    path: /b
    # which of both (one of fast, safe)
    kind: safe

# URLs of peers (list of text, default empty)
peers: []

# tenants by name (mapping of text to mapping, default empty)
tenants:
  NAME:
    # the secret half of the key pair (secret text, required)
    secret_key:
    # bytes that the tenant may store (size, default none)
    quota: null

# what a plug-in takes (mapping of text to anything, default empty)
options: {}
"""


def test_the_reference_explains_every_key_and_shows_its_default() -> None:
    assert reference(Gateway) == REFERENCE


def test_the_entries_that_plug_ins_define_are_explained_under_their_key() -> None:
    text = reference(Gateway, {"options": {"disk": (Disk,)}})
    assert text.endswith(
        """\
# what a plug-in takes (mapping, default empty)
options:
  disk:
    # folder of the tier (path, required)
    path:
    # which of both (one of fast, safe)
    kind: fast
"""
    )
    values = yaml.safe_load(resolved(Gateway(), {"options": {"disk": (Disk(Path("/a")),)}}))
    assert values["options"] == {"disk": {"path": "/a", "kind": "fast"}}


def test_the_reference_is_yaml() -> None:
    values = yaml.safe_load(REFERENCE)
    assert values["tiers"] == [{"path": "/a", "kind": "fast"}, {"path": "/b", "kind": "safe"}]
    assert values["tenants"] == {"NAME": {"secret_key": None, "quota": None}}


def test_resolved_values_read_back_as_the_same_configuration() -> None:
    config = build(Gateway, {"disk": {"path": "/srv"}, "grace": "90s", "options": {"a": [1, None, True]}})
    assert build(Gateway, yaml.safe_load(resolved(config))) == config


def test_resolved_values_show_no_secret() -> None:
    config = build(
        Gateway,
        {
            "tenants": {"acme": {"secret_key": "hush", "quota": MiB}},
            "peers": ["redis://me:hush@host:1/0", "http://host", "rediss://:hush@host"],
            "options": {"url": "redis://:hush@host"},
        },
    )
    text = resolved(config)
    assert "hush" not in text
    values = yaml.safe_load(text)
    assert values["tenants"] == {"acme": {"secret_key": "***", "quota": "1MiB"}}
    assert values["peers"] == ["redis://me:***@host:1/0", "http://host", "rediss://:***@host"]
