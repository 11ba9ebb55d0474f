"""`kvgate explain`: where chunks or objects are, or why they are not here."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvgate.chunk.key import ChunkKey, check_bucket, parse_key
from kvgate.chunk.space import Space
from kvgate.cli import connection
from kvgate.cli.address import Address, bucket_address
from kvgate.cli.hashes import HASH, read_hashes
from kvgate.cli.terminal import human_duration, human_size, printable
from kvgate.client.sync import Client
from kvgate.client.values import Explained, Explanation
from kvgate.errors import ConfigError

DESCRIPTION = """\
Say where a chunk or an object is: tiers, pins, leases, size and age; or why it is not here: evicted from which tier and
when, deleted, expired, refused, corrupt, or never written, and then which other space of the bucket is nearest. Given
the hashes of a prompt, say where the first gap is. Asking uses nothing: the order of eviction stays.
"""

EXAMPLES = """\
examples:
  kvgate explain s3://chunks/kv/<space>/<hash>                                     one chunk
  kvgate explain s3://chunks/report.txt                                            any other object
  kvgate explain s3://chunks/ --space <space> --hashes-from prompt.txt             a hash a line; - is standard input
  kvgate explain s3://chunks/ --space <space> --hashes-from prompt.txt --json | jq -r '.objects[].status'
  kvgate explain s3://chunks/ --manifest engine.json --hashes-from prompt.txt      a space that may not be here
"""

_PER_CALL = 1024
_PRESENT = "present"
_UNWRITTEN = ("never-written", "not-written")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("address", type=bucket_address, metavar="s3://BUCKET[/KEY]", help="an object, or a bucket")
    parser.add_argument("--space", metavar="ID", help="the space of the hashes, 64 hex digits")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="the manifest of the space, where the bucket may not have it"
    )
    parser.add_argument("--hashes-from", metavar="FILE", help="chunk hashes of one prompt in order, one a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    connection.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print what the gateway knows; 0 when everything is present, 1 when something is not."""
    address: Address = options.address
    check_bucket(address.bucket)
    space = _space(options)
    with connection.connect(options) as client:
        if options.hashes_from is None:
            if not address.key:
                raise ConfigError(f"{address} names a bucket; add a key, or --space and --hashes-from")
            explained = _one(client, address, space)
        elif address.key or space is None:
            raise ConfigError("--hashes-from needs a bucket alone, s3://BUCKET/, and --space or --manifest")
        else:
            explained = _many(client, address.bucket, space, read_hashes(options.hashes_from))
    if options.json:
        print(json.dumps(dataclasses.asdict(explained), indent=2))
    else:
        _print(explained)
    return 0 if all(each.status == _PRESENT for each in explained.objects) else 1


def _space(options: argparse.Namespace) -> tuple[str, dict[str, Any] | None] | None:
    """The id of the space that is meant, and its manifest if there is one. Raises ConfigError, InvalidManifest."""
    if options.manifest is not None:
        try:
            space = Space.from_json(options.manifest.read_bytes())
        except OSError as error:
            raise ConfigError(f"{options.manifest}: {(error.strerror or 'cannot be read').lower()}") from error
        if options.space not in (None, space.id):
            raise ConfigError(f"--manifest: it is the manifest of space {space.id}, and --space names another")
        return space.id, space.manifest()
    if options.space is not None and not HASH.fullmatch(options.space):
        raise ConfigError("--space: expected 64 lower-case hex digits")
    return None if options.space is None else (options.space, None)


def _one(client: Client, address: Address, space: tuple[str, dict[str, Any] | None] | None) -> Explained:
    key = parse_key(address.key)
    if isinstance(key, ChunkKey):
        manifest = space[1] if space is not None and space[0] == key.space else None
        return client.explain(address.bucket, key.space, [bytes.fromhex(key.hash)], manifest=manifest)
    return client.explain_keys(address.bucket, [address.key])


def _many(client: Client, bucket: str, space: tuple[str, dict[str, Any] | None], hashes: Sequence[bytes]) -> Explained:
    """The answers of as many calls as it takes, as one."""
    answers = [
        client.explain(bucket, space[0], hashes[start : start + _PER_CALL], manifest=space[1])
        for start in range(0, len(hashes), _PER_CALL)
    ]
    objects = tuple(each for answer in answers for each in answer.objects)
    return dataclasses.replace(answers[-1], objects=objects)


def _print(explained: Explained) -> None:
    for number, each in enumerate(explained.objects):
        name = each.key.rpartition("/")[2][:16] if each.key.startswith("kv/") else each.key
        print(f"{number:>5}  {printable(name):16}  {each.status:20}  {printable(_detail(each, explained.now_ms))}")
        if each.elsewhere:
            print(f"{'':7}a chunk of this hash is in the space {each.elsewhere[:16]}…")
    print(printable(summary(explained)))
    if explained.away:
        print(printable(f"These tiers are away: {', '.join(explained.away)}."))
    if any(each.status in _UNWRITTEN for each in explained.objects):
        _print_spaces(explained)


def _print_spaces(explained: Explained) -> None:
    if explained.nearest is None:
        if any(each.key.startswith("kv/") for each in explained.objects):
            print("The bucket does not hold the manifest of this space; with --manifest, near spaces can be told.")
        return
    for near in explained.nearest:
        print(
            f"The bucket also has the space {near.space[:16]}… ({near.chunks} chunks), which differs in "
            f"{', '.join(near.differs)}."
        )
    print(
        "Chunks of another tenant salt, or of other tokens, have other hashes: they cannot be told from unwritten ones."
    )


def summary(explained: Explained) -> str:
    """One line about all objects, in which the first gap is what counts."""
    objects, now_ms = explained.objects, explained.now_ms
    gap = next((number for number, each in enumerate(objects) if each.status != _PRESENT), None)
    if len(objects) == 1:
        each = objects[0]
        return f"{'here' if each.status == _PRESENT else 'not here'}: {_detail(each, now_ms)}"
    if gap is None:
        return f"all {len(objects)} chunks are here, {human_size(sum(each.nbytes for each in objects))}"
    present = sum(each.status == _PRESENT for each in objects)
    return f"first gap at chunk {gap} of {len(objects)}, {present} of them are here: {_detail(objects[gap], now_ms)}"


def _detail(each: Explanation, now_ms: int) -> str:
    def ago(at_ms: int) -> str:
        return f"{human_duration((now_ms - at_ms) / 1000)} ago"

    if each.status == _PRESENT:
        words = [each.reason, human_size(each.nbytes), f"written {ago(each.modified_ms)}"]
        words += [f"ends in {human_duration((each.expires_ms - now_ms) / 1000)}"] if each.expires_ms else []
        words += [f"{each.pin} pin"] if each.pin != "none" else []
        words += [f"{each.leases} lease{'' if each.leases == 1 else 's'}"] if each.leases else []
        words += [f"another body was replaced {ago(each.at_ms)}"] if each.at_ms else []
        return ", ".join(words)
    return f"{each.reason}, {ago(each.at_ms)}" if each.at_ms else each.reason
