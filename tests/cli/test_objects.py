"""`ls`, `stat` and `rm` against a real gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kvgate.chunk.chain import chain_hashes, root
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from tests.gateways import ALPHA, RunningGateway

if TYPE_CHECKING:
    from .conftest import Kvgate

BUCKET = "alpha-bucket"
SPACE = Space.from_manifest(
    {
        "model": "meta-llama/Llama-3.1-8B",
        "weights": "0e9e39f249a16976918f6564b8830bc894c89659",
        "tokenizer": "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        "dtype": "BF16",
        "layers": 3,
        "kv_heads": 4,
        "head_dim": 8,
        "attention": "gqa",
        "rope": {"rope_type": "llama3", "rope_theta": 500000.0},
        "lora": "none",
        "multimodal": "none",
        "chunk_tokens": 4,
        "hash_scheme": "kvgate-sha256-chain-v1",
        "layout_version": 1,
    }
)


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[Client]:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        yield client


@pytest.fixture
def alpha(gateway: RunningGateway) -> dict[str, str]:
    """The environment of a user who has alpha's key pair."""
    pair = {"AWS_ACCESS_KEY_ID": ALPHA.access_key, "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key}
    return pair | {"KVGATE_URL": gateway.url}


@pytest.fixture
def chunk(client: Client) -> ChunkKey:
    """The second chunk of a sequence, in a bucket that knows its space."""
    salt = client.tenant().salt
    first, second = chain_hashes(root(SPACE.digest, salt), range(8), 4)
    key = ChunkKey(SPACE.id, second.hex())
    client.put(BUCKET, str(ManifestKey(SPACE.id)), SPACE.canonical_json())
    body = ChunkHeader.encode(SPACE, second, first, 4) + bytes(SPACE.layout.nbytes)
    client.put(BUCKET, str(key), body)
    return key


# --- ls ---------------------------------------------------------------------------------------------------------------


def test_ls_lists_the_buckets_of_the_tenant_alone(kvgate: Kvgate, alpha: dict[str, str]) -> None:
    answer = kvgate("ls", env=alpha)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"  s3://{BUCKET}/\n" in answer.stdout
    assert "beta" not in answer.stdout
    names = [json.loads(line)["name"] for line in kvgate("ls", "--json", env=alpha).stdout.splitlines()]
    assert BUCKET in names


def test_ls_rolls_keys_up_unless_told_otherwise(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    for key in ("ls/a/1", "ls/a/2", "ls/b"):
        client.put(BUCKET, key, b"four")
    lines = kvgate("ls", f"s3://{BUCKET}/ls/", env=alpha).stdout.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == ["ls/a/", "ls/b"]
    assert lines[-1] == "1 object, 4 B"
    lines = kvgate("ls", "--recursive", f"s3://{BUCKET}/ls/", env=alpha).stdout.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == ["ls/a/1", "ls/a/2", "ls/b"]
    assert lines[-1] == "3 objects, 12 B"


def test_ls_as_json_is_one_object_a_line(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    key = "json/a \x1b[2J\u00fc\u65e5"
    client.put(BUCKET, key, b"four")
    lines = kvgate("ls", "--json", f"s3://{BUCKET}/json/", env=alpha).stdout.splitlines()
    (entry,) = map(json.loads, lines)
    assert (entry["key"], entry["nbytes"], entry["is_prefix"]) == (key, 4, False)
    assert "\x1b" not in kvgate("ls", f"s3://{BUCKET}/json/", env=alpha).stdout


def test_ls_of_a_bucket_that_is_not_there_fails_in_one_line(kvgate: Kvgate, alpha: dict[str, str]) -> None:
    answer = kvgate("ls", "s3://no-such-bucket/", env=alpha)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("kvgate: ")
    assert answer.stderr.count("\n") == 1


# --- stat -------------------------------------------------------------------------------------------------------------


def test_stat_of_an_ordinary_object(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    client.put(BUCKET, "stat/report.txt", b"four", content_type="text/plain", metadata={"author": "me"})
    answer = kvgate("stat", "--json", f"s3://{BUCKET}/stat/report.txt", env=alpha)
    facts = json.loads(answer.stdout)
    assert (facts["nbytes"], facts["content_type"], facts["metadata"]) == (4, "text/plain", {"author": "me"})
    assert "space" not in facts
    text = kvgate("stat", f"s3://{BUCKET}/stat/report.txt", env=alpha).stdout
    assert text.startswith(f"s3://{BUCKET}/stat/report.txt\n")
    assert "4 (4 B)" in text


def test_stat_of_a_chunk_says_which_tokens_of_which_model(
    kvgate: Kvgate, alpha: dict[str, str], chunk: ChunkKey
) -> None:
    facts = json.loads(kvgate("stat", "--json", f"s3://{BUCKET}/{chunk}", env=alpha).stdout)
    assert facts["chunk"]["hash"] == chunk.hash
    assert (facts["chunk"]["first_token"], facts["chunk"]["tokens"]) == (4, 4)
    assert facts["chunk"]["data_start"] == 4096
    assert facts["tensors"] == {"kv": {"dtype": "BF16", "shape": [3, 2, 4, 4, 8]}}
    assert facts["space"] == SPACE.manifest()
    text = kvgate("stat", f"s3://{BUCKET}/{chunk}", env=alpha).stdout
    assert "meta-llama/Llama-3.1-8B" in text
    assert "rope_theta" in text


def test_stat_of_a_manifest_says_what_the_space_is(kvgate: Kvgate, alpha: dict[str, str], chunk: ChunkKey) -> None:
    facts = json.loads(kvgate("stat", "--json", f"s3://{BUCKET}/{ManifestKey(chunk.space)}", env=alpha).stdout)
    assert facts["space"]["model"] == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize("key", ["stat/none", "kv/" + "0" * 64 + "/" + "1" * 64])
def test_stat_of_nothing_fails_in_one_line(kvgate: Kvgate, alpha: dict[str, str], key: str) -> None:
    answer = kvgate("stat", f"s3://{BUCKET}/{key}", env=alpha)
    assert (answer.returncode, answer.stderr) == (1, f"kvgate: there is no object s3://{BUCKET}/{key}\n")


def test_stat_of_a_key_that_kvgate_refuses_fails_in_one_line(kvgate: Kvgate, alpha: dict[str, str]) -> None:
    answer = kvgate("stat", f"s3://{BUCKET}/kv/nonsense", env=alpha)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1


# --- rm ---------------------------------------------------------------------------------------------------------------


def keys(client: Client, prefix: str) -> list[str]:
    return [entry.key for entry in client.list(BUCKET, prefix)]


def test_rm_deletes_one_object_and_not_what_begins_alike(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    for key in ("rm/a", "rm/a/b", "rm/ab"):
        client.put(BUCKET, key, b"four")
    answer = kvgate("rm", f"s3://{BUCKET}/rm/a", env=alpha)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "1 object, 4 B deleted\n", "")
    assert keys(client, "rm/") == ["rm/a/b", "rm/ab"]


def test_rm_of_nothing_fails_in_one_line(kvgate: Kvgate, alpha: dict[str, str]) -> None:
    answer = kvgate("rm", f"s3://{BUCKET}/rm/none", env=alpha)
    assert (answer.returncode, answer.stderr) == (1, f"kvgate: there is no object s3://{BUCKET}/rm/none\n")


def test_rm_deletes_everything_under_a_prefix_even_if_it_takes_long(
    kvgate: Kvgate, alpha: dict[str, str], client: Client
) -> None:
    wanted = [f"many/{number:04}" for number in range(600)]
    for key in [*wanted, "manx"]:
        client.put(BUCKET, key, b"x")
    dry = kvgate("rm", "--recursive", "--dry-run", f"s3://{BUCKET}/many/", env=alpha)
    assert dry.stdout.splitlines()[-1] == "600 objects, 600 B would be deleted"
    assert f"s3://{BUCKET}/many/0599" in dry.stdout
    assert keys(client, "many/") == wanted
    answer = kvgate("rm", "--recursive", f"s3://{BUCKET}/many/", env=alpha)
    assert (answer.stdout, answer.stderr) == ("600 objects, 600 B deleted\n", "")
    assert keys(client, "man") == ["manx"]


def test_rm_of_a_whole_bucket_must_be_asked_for(kvgate: Kvgate, alpha: dict[str, str]) -> None:
    answer = kvgate("rm", f"s3://{BUCKET}", env=alpha)
    assert answer.returncode == 2
    assert "--recursive" in answer.stderr


# --- reaching the gateway ---------------------------------------------------------------------------------------------


def test_without_a_key_pair_the_mend_is_named(kvgate: Kvgate) -> None:
    answer = kvgate("ls")
    assert answer.returncode == 2
    assert "kvgate serve" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_wrong_secret_fails_in_one_line_that_does_not_show_it(kvgate: Kvgate, alpha: dict[str, str]) -> None:
    answer = kvgate("ls", env=alpha | {"AWS_SECRET_ACCESS_KEY": "not-the-secret-of-alpha"})
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "not-the-secret" not in answer.stderr


def test_the_url_of_the_command_line_comes_first(
    kvgate: Kvgate, alpha: dict[str, str], gateway: RunningGateway
) -> None:
    answer = kvgate("ls", "--url", gateway.url, env=alpha | {"KVGATE_URL": "http://127.0.0.1:1"})
    assert answer.returncode == 0, answer.stderr
    answer = kvgate("ls", "--url", "ftp://127.0.0.1", env=alpha)
    assert answer.returncode == 2
