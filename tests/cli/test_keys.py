"""The key pair of a first start: made once, whole, and for its owner alone."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from kvgate.cli.keys import load_or_create
from kvgate.errors import ConfigError

URL = "http://127.0.0.1:9000"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kvgate" / "credentials.yaml"


def test_the_first_start_makes_a_pair_and_the_next_reads_it(path: Path) -> None:
    keys, created = load_or_create(path, URL)
    assert created
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_or_create(path, URL) == (keys, False)
    assert os.listdir(path.parent) == ["credentials.yaml"]


def test_the_pair_is_long_and_random(path: Path, tmp_path: Path) -> None:
    keys, _ = load_or_create(path, URL)
    other, _ = load_or_create(tmp_path / "other.yaml", URL)
    assert len(keys.access_key) == 20
    assert len(keys.secret_key) == 40
    assert len(keys.salt) == 64
    assert not {keys.access_key, keys.secret_key, keys.salt} & {other.access_key, other.secret_key, other.salt}
    assert keys.secret_key not in repr(keys)


def test_the_file_is_plain_yaml_of_four_fields(path: Path) -> None:
    keys, _ = load_or_create(path, URL)
    fields = yaml.safe_load(path.read_text())
    assert fields == {"url": URL, "access_key": keys.access_key, "secret_key": keys.secret_key, "salt": keys.salt}
    assert all(type(value) is str for value in fields.values())


def test_another_port_changes_the_url_and_keeps_the_pair(path: Path) -> None:
    keys, _ = load_or_create(path, URL)
    moved, created = load_or_create(path, "http://127.0.0.1:9100")
    assert not created
    assert (moved.url, moved.secret_key, moved.salt) == ("http://127.0.0.1:9100", keys.secret_key, keys.salt)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create(path, moved.url) == (moved, False)


def test_of_many_first_starts_one_makes_the_pair_and_all_use_it(path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: load_or_create(path, URL), range(64)))
    assert sum(created for _, created in answers) == 1
    assert len({keys for keys, _ in answers}) == 1
    assert os.listdir(path.parent) == ["credentials.yaml"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_reach_is_refused(path: Path, mode: int) -> None:
    keys, _ = load_or_create(path, URL)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*chmod 600") as caught:
        load_or_create(path, URL)
    assert keys.secret_key not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("url: x\n", "access_key: this key is required"), ("url: [\n", "line 2"), ("nonsense", "expected a mapping")],
)
def test_a_file_that_holds_no_keys_is_refused_and_kept(path: Path, text: str, message: str) -> None:
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_or_create(path, URL)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_made_names_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="; set XDG_DATA_HOME to a folder that can be written"):
        load_or_create(tmp_path / "file" / "credentials.yaml", URL)
