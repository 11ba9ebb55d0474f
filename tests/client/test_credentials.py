from __future__ import annotations

from pathlib import Path

import pytest

from kvgate.client.credentials import find_credentials
from kvgate.errors import ConfigError

FILE = "url: http://127.0.0.1:9000\naccess_key: KVFILE\nsecret_key: secret-of-the-file\nsalt: not-for-clients\n"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of this user's gateway, in a clean environment."""
    for name in ("KVGATE_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = tmp_path / "kvgate" / "credentials.yaml"
    path.parent.mkdir()
    path.write_text(FILE)
    path.chmod(0o600)
    return path


def test_file_of_the_local_gateway_is_found(path) -> None:
    found = find_credentials()
    assert (found.url, found.access_key, found.secret_key) == ("http://127.0.0.1:9000", "KVFILE", "secret-of-the-file")


def test_environment_goes_before_the_file(path, monkeypatch) -> None:
    monkeypatch.setenv("KVGATE_URL", "http://elsewhere:1")
    assert (find_credentials().url, find_credentials().access_key) == ("http://elsewhere:1", "KVFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KVENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-environment")
    path.unlink()
    found = find_credentials()
    assert (found.url, found.access_key, found.secret_key) == (
        "http://elsewhere:1",
        "KVENV",
        "secret-of-the-environment",
    )


def test_a_file_that_is_named_goes_before_the_environment(path, monkeypatch) -> None:
    for name in ("KVGATE_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "http://elsewhere:1")
    found = find_credentials(path=path)
    assert (found.url, found.access_key) == ("http://127.0.0.1:9000", "KVFILE")
    assert find_credentials("http://here:2", path=path).url == "http://here:2"


def test_arguments_go_before_everything(path, monkeypatch) -> None:
    monkeypatch.setenv("KVGATE_URL", "http://elsewhere:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KVENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-environment")
    found = find_credentials("http://here:2", "KVARG", "secret-of-the-arguments")
    assert (found.url, found.access_key, found.secret_key) == ("http://here:2", "KVARG", "secret-of-the-arguments")


def test_half_a_key_pair_is_refused(path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="only one of the arguments"):
        find_credentials(access_key="KVARG")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KVENV")
    with pytest.raises(ConfigError, match="only one of AWS_ACCESS_KEY_ID"):
        find_credentials()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_file_that_others_can_read_is_refused(path, mode) -> None:
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        find_credentials()


def test_absent_file_is_told_with_the_mend(path) -> None:
    path.unlink()
    with pytest.raises(ConfigError, match="kvgate serve"):
        find_credentials()
    with pytest.raises(ConfigError, match="no key pair"):
        find_credentials("http://here:2")


@pytest.mark.parametrize(
    "text", ["", "url: http://127.0.0.1:9000\n", FILE + "more: 1\n", FILE.replace("KVFILE", "[1]")]
)
def test_file_that_holds_no_credential_is_refused(path, text) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        find_credentials()
    assert "secret-of-the-file" not in str(raised.value)


def test_secret_is_not_shown(path) -> None:
    assert "secret-of-the-file" not in repr(find_credentials())
