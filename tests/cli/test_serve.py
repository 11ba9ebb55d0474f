"""The gateway starts without a configuration, keeps its key pair to its owner, and says what keeps it from starting."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.gateways import default_config, free_port

if TYPE_CHECKING:
    from .conftest import Kvgate

Serve = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start `kvgate serve ARGUMENTS` and wait until it is ready; its log is in `serve.log`."""
    started = []

    def start(*arguments: object, stdout: int | None = None) -> subprocess.Popen[bytes]:
        admin_port = free_port()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("KVGATE", "AWS", "XDG"))
        }
        environment["XDG_DATA_HOME"] = str(tmp_path / "data")
        with (tmp_path / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "kvgate.cli", "serve", "--admin-port", str(admin_port), *map(str, arguments)],
                env=environment,
                stdout=log if stdout is None else stdout,
                stderr=log,
            )
        started.append(process)
        for _ in range(1000):
            assert process.poll() is None, (tmp_path / "serve.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=2).close()
            except OSError:
                time.sleep(0.01)
            else:
                return process
        raise AssertionError((tmp_path / "serve.log").read_text())

    yield start
    for process in started:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=30)


def test_without_a_configuration_the_other_verbs_find_the_gateway_and_its_bucket(serve: Serve, kvgate: Kvgate) -> None:
    process = serve("--port", free_port())
    answer = kvgate("ls")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.endswith("  s3://chunks/\n")
    assert stop(process) == 0
    answer = kvgate("ls")
    assert answer.returncode == 1
    assert answer.stderr.startswith("kvgate: ")
    assert answer.stderr.count("\n") == 1


def test_objects_and_the_key_pair_survive_a_restart_on_another_port(
    serve: Serve, kvgate: Kvgate, tmp_path: Path
) -> None:
    credentials = tmp_path / "data" / "kvgate" / "credentials.yaml"
    first = serve("--port", free_port())
    before = yaml.safe_load(credentials.read_text())
    assert credentials.stat().st_mode & 0o777 == 0o600
    assert stop(first) == 0
    port = free_port()
    serve("--port", port)
    after = yaml.safe_load(credentials.read_text())
    assert after == before | {"url": f"http://127.0.0.1:{port}"}
    assert kvgate("ls").stdout.endswith("  s3://chunks/\n")


def test_a_new_key_pair_is_shown_once_to_a_person_and_never_to_a_log(serve: Serve, tmp_path: Path) -> None:
    shown = []
    for _ in range(2):
        ours, theirs = pty.openpty()
        process = serve("--port", free_port(), stdout=theirs)
        os.close(theirs)
        assert stop(process) == 0
        text = b""
        try:
            while piece := os.read(ours, 65536):
                text += piece
        except OSError:  # EIO: the other end is closed, and nothing is left
            pass
        os.close(ours)
        shown.append(text.decode())
    secret = yaml.safe_load((tmp_path / "data" / "kvgate" / "credentials.yaml").read_text())["secret_key"]
    assert f"AWS_SECRET_ACCESS_KEY={secret}" in shown[0]
    assert shown[1] == ""
    log = (tmp_path / "serve.log").read_text()
    assert secret not in log
    assert "credentials.yaml" in log


def test_a_log_gets_the_name_of_the_file_and_not_the_key_pair(serve: Serve, tmp_path: Path) -> None:
    serve("--port", free_port())
    path = tmp_path / "data" / "kvgate" / "credentials.yaml"
    log = (tmp_path / "serve.log").read_text()
    assert f"key pair: {path}" in log
    keys = yaml.safe_load(path.read_text())
    assert keys["secret_key"] not in log
    assert keys["salt"] not in log


def test_by_default_no_other_machine_reaches_it(serve: Serve) -> None:
    port = free_port()
    serve("--port", port)
    with socket.create_connection(("127.0.0.1", port), timeout=5), pytest.raises(OSError):  # noqa: SIM117
        # Another address of this machine's loopback: reachable only for a socket that is bound to every address.
        with socket.create_connection(("127.0.0.2", port), timeout=5):
            pass


def test_data_moves_the_chunks_elsewhere(serve: Serve, tmp_path: Path) -> None:
    process = serve("--port", free_port(), "--data", tmp_path / "elsewhere")
    assert stop(process) == 0
    assert (tmp_path / "elsewhere" / "disk").is_dir()
    assert os.listdir(tmp_path / "data" / "kvgate") == ["credentials.yaml"]


def test_a_configuration_file_is_found_through_the_environment(kvgate: Kvgate, tmp_path: Path, gateway: object) -> None:
    file = tmp_path / "kvgate.yaml"
    file.write_text("tenants: {}\n")
    answer = kvgate("serve", env={"KVGATE_CONFIG": str(file)})
    assert answer.returncode == 2
    assert answer.stderr == f"kvgate: {file}: tenants: expected at least one\n"
    answer = kvgate("serve", "--config", tmp_path / "other.yaml", env={"KVGATE_CONFIG": str(file)})
    assert answer.stderr == f"kvgate: {tmp_path}/other.yaml: no such file or directory\n"


def test_the_command_line_overrides_the_file(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "kvgate.yaml"
    config = default_config(tmp_path)
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    serve("--config", file, "--port", port)
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert not (tmp_path / "data").exists(), "a key pair was made that nobody needs"


def test_data_with_a_configuration_file_is_refused(kvgate: Kvgate, tmp_path: Path) -> None:
    file = tmp_path / "kvgate.yaml"
    file.write_text(yaml.safe_dump(default_config(tmp_path)))
    answer = kvgate("serve", "--config", file, "--data", tmp_path)
    assert answer.returncode == 2
    assert f"set tiers.disk.path in {file}" in answer.stderr


def test_a_port_that_is_taken_is_said(kvgate: Kvgate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = kvgate("serve", "--port", port, "--admin-port", free_port())
    assert answer.returncode == 2
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("kvgate: ")
    assert f"127.0.0.1:{port}" in last
    assert "Traceback" not in answer.stderr


def test_a_port_out_of_range_is_said(kvgate: Kvgate) -> None:
    answer = kvgate("serve", "--port", 70000)
    assert (answer.returncode, answer.stderr) == (2, "kvgate: port: expected 0 to 65535, got 70000\n")


def test_a_second_gateway_on_the_same_data_is_said(serve: Serve, kvgate: Kvgate) -> None:
    serve("--port", free_port())
    answer = kvgate("serve", "--port", free_port(), "--admin-port", free_port())
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].startswith("kvgate: ")
    assert "Traceback" not in answer.stderr


def test_a_key_pair_that_others_can_read_is_refused(kvgate: Kvgate, tmp_path: Path) -> None:
    path = tmp_path / "data" / "kvgate" / "credentials.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("url: x\naccess_key: y\nsecret_key: hush\nsalt: z\n")
    path.chmod(0o644)
    for verb in ("serve", "ls"):
        answer = kvgate(verb)
        assert answer.returncode == 2
        assert f"chmod 600 {path}" in answer.stderr
        assert "hush" not in answer.stderr
