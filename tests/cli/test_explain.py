"""`explain` against a real gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvgate.chunk.key import ManifestKey
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.chunks import SPACE, chunk, chunk_hash
from tests.gateways import ALPHA, BETA, RunningGateway

if TYPE_CHECKING:
    from .conftest import Kvgate

BUCKET = "alpha-bucket"


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[Client]:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
        yield client


@pytest.fixture
def alpha(gateway: RunningGateway) -> dict[str, str]:
    return environment(gateway)


def environment(gateway: RunningGateway) -> dict[str, str]:
    """Of a user who has alpha's key pair."""
    pair = {"AWS_ACCESS_KEY_ID": ALPHA.access_key, "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key}
    return pair | {"KVGATE_URL": gateway.url}


def put_chunks(client: Client, *numbers: int) -> None:
    for number in numbers:
        key, body = chunk(number)
        client.put(BUCKET, key, body)


def hashes_file(folder: Path, *numbers: int) -> Path:
    path = folder / "hashes.txt"
    path.write_text("".join(f"{chunk_hash(number).hex()}\n" for number in numbers))
    return path


def test_explain_of_a_present_chunk_says_where_it_is(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    put_chunks(client, 1000)
    answer = kvgate("explain", f"s3://{BUCKET}/{chunk(1000)[0]}", env=alpha)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert chunk_hash(1000).hex()[:16] in answer.stdout
    assert "present" in answer.stdout
    assert "host" in answer.stdout


def test_explain_of_a_prompt_says_where_the_first_gap_is_and_why(
    kvgate: Kvgate, alpha: dict[str, str], client: Client, tmp_path: Path
) -> None:
    put_chunks(client, *range(1010, 1015))
    client.delete(BUCKET, chunk(1012)[0])
    path = hashes_file(tmp_path, *range(1010, 1016))
    asked = ("explain", f"s3://{BUCKET}/", "--space", SPACE.id, "--hashes-from", path)
    answer = kvgate(*asked, env=alpha)
    assert answer.returncode == 1
    lines = answer.stdout.splitlines()
    expected = ["present", "present", "deleted", "present", "present", "not-written"]
    assert [line.split()[2] for line in lines[:6]] == expected
    assert lines[6].startswith("first gap at chunk 2 of 6, 4 of them are here: deleted by a request, ")
    facts = json.loads(kvgate(*asked, "--json", env=alpha).stdout)
    assert [each["status"] for each in facts["objects"]] == expected


def test_explain_of_an_unwritten_chunk_names_the_nearest_space_and_what_differs(
    kvgate: Kvgate, alpha: dict[str, str], client: Client, tmp_path: Path
) -> None:
    put_chunks(client, 1020)
    other = Space.from_manifest(SPACE.manifest() | {"weights": "sha256:" + "9" * 64})
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(other.canonical_json())
    path = hashes_file(tmp_path, 1020)
    without = kvgate("explain", f"s3://{BUCKET}/", "--space", other.id, "--hashes-from", path, env=alpha)
    assert "--manifest" in without.stdout
    answer = kvgate("explain", f"s3://{BUCKET}/", "--manifest", manifest, "--hashes-from", path, env=alpha)
    assert answer.returncode == 1
    assert f"a chunk of this hash is in the space {SPACE.id[:16]}" in answer.stdout
    assert "which differs in weights." in answer.stdout


def test_explain_of_an_evicted_chunk_says_from_which_tier_and_by_which_policy(
    kvgate: Kvgate, start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    gateway = start_gateway(
        tiers={"host": {"capacity": "16MiB"}, "disk": {"path": str(tmp_path / "d"), "capacity": "24MiB"}}
    )
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        for number in range(60):
            client.put(BUCKET, f"k{number}", bytes(1 << 20))
    answer = kvgate("explain", f"s3://{BUCKET}/k0", env=environment(gateway))
    assert answer.returncode == 1
    assert "evicted from the disk tier by its policy, lru, to make room" in answer.stdout
    gateway.restart()
    answer = kvgate("explain", f"s3://{BUCKET}/k0", env=environment(gateway))
    assert "not-written" in answer.stdout
    assert "as far back as the gateway remembers" in answer.stdout


def test_explain_tells_another_tenant_nothing(gateway: RunningGateway, client: Client) -> None:
    client.put("shared-name", "secret", b"body")
    client.delete("shared-name", "secret")
    with Client(gateway.url, BETA.access_key, BETA.secret_key) as beta:
        (explained,) = beta.explain_keys("shared-name", ["secret"]).objects
        assert explained.status == "not-written"
        with pytest.raises(GatewayError, match="NoSuchBucket"):
            beta.explain_keys(BUCKET, ["secret"])
    (explained,) = client.explain_keys("shared-name", ["secret"]).objects
    assert explained.status == "deleted"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["s3://alpha-bucket/"], "--hashes-from"),
        (["s3://alpha-bucket/k", "--space", "0" * 64, "--hashes-from", "/dev/null"], "a bucket alone"),
        (["s3://alpha-bucket/", "--hashes-from", "/dev/null"], "--space or --manifest"),
        (["s3://alpha-bucket/", "--space", "xyz", "--hashes-from", "/dev/null"], "64 lower-case hex digits"),
        (["s3://alpha-bucket/", "--space", "0" * 64, "--hashes-from", "/dev/null"], "holds no hash"),
        (["s3://alpha-bucket/", "--space", "0" * 64, "--hashes-from", "/no/such/file"], "cannot be read"),
        (["s3://alpha-bucket/", "--manifest", "/no/such/file", "--hashes-from", "/dev/null"], "no such file"),
    ],
)
def test_explain_names_what_is_wrong_with_its_command_line(
    kvgate: Kvgate, alpha: dict[str, str], arguments: list[str], named: str
) -> None:
    answer = kvgate("explain", *arguments, env=alpha)
    assert answer.returncode == 2
    assert named in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_explain_names_the_line_that_holds_no_hash(kvgate: Kvgate, alpha: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "hashes"
    path.write_text("0" * 64 + "\n\nnot a hash\n")
    answer = kvgate("explain", "s3://alpha-bucket/", "--space", "0" * 64, "--hashes-from", path, env=alpha)
    assert (answer.returncode, "line 3" in answer.stderr) == (2, True)
