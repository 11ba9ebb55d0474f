"""`kvgate stat`: what one object is, of a chunk also which tokens of which model it holds; or what a tenant uses."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.key import ChunkKey, ManifestKey, parse_key
from kvgate.chunk.safetensors import decode_header
from kvgate.chunk.space import MAX_MANIFEST_NBYTES, Space
from kvgate.cli import connection, usage
from kvgate.cli.address import Address, object_address
from kvgate.cli.terminal import human_size, printable
from kvgate.client.sync import Client
from kvgate.errors import GatewayError

DESCRIPTION = """\
Say what one object is. Of a chunk, a key kv/<space>/<hash>, the header is fetched too (its first 4,096 bytes) and the
manifest of its space: which tokens, of which model, in which shape. The KV itself stays where it is. Without an object,
say what the tenant of the key pair has in every tier, what it may have, and how often it was refused.
"""

EXAMPLES = """\
examples:
  kvgate stat                                          what you have, and may have
  kvgate stat s3://chunks/report.txt
  kvgate stat s3://chunks/kv/<space>/<hash>            a chunk
  kvgate stat s3://chunks/kv/<space>/manifest.json     a space
  kvgate stat --json s3://chunks/kv/<space>/<hash> | jq -r .space.model
"""

_HEADER_NBYTES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("address", nargs="?", type=object_address, metavar="s3://BUCKET/KEY", help="the object")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    connection.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print what the gateway and the object itself say."""
    with connection.connect(options) as client:
        if options.address is None:
            return _print_usage(client, as_json=options.json)
        facts = _facts(client, options.address)
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print(printable(str(options.address)))
        _print(facts | {"nbytes": f"{facts['nbytes']} ({human_size(facts['nbytes'])})"})
    return 0


def _print_usage(client: Client, *, as_json: bool) -> int:
    stats = asdict(client.stats())
    if as_json:
        print(json.dumps(stats, indent=2))
    else:
        usage.print_stats(stats, client.tenant().name)
    return 0


def _facts(client: Client, address: Address) -> dict[str, Any]:
    info = connection.head(client, address)
    facts: dict[str, Any] = {
        "bucket": address.bucket,
        "key": address.key,
        "nbytes": info.nbytes,
        "modified": info.modified,
        "etag": info.etag,
        "content_type": info.content_type,
        "crc64nvme": None if info.crc64nvme is None else f"{info.crc64nvme:016x}",
        "metadata": dict(info.metadata),
    }
    match parse_key(address.key):
        case ChunkKey(space=space):
            return facts | _chunk(client, address, info.nbytes) | {"space": _space(client, address.bucket, space)}
        case ManifestKey(space=space):
            return facts | {"space": _space(client, address.bucket, space)}
    return facts


def _chunk(client: Client, address: Address, nbytes: int) -> dict[str, Any]:
    """The chunk's own account of itself. Raises InvalidChunk for a body that is none."""
    prefix = client.get(address.bucket, address.key, start=0, stop=min(_HEADER_NBYTES, nbytes)).body
    header = decode_header(prefix or b"", nbytes)
    chunk = ChunkHeader.from_metadata(header.metadata)
    tensors = {name: {"dtype": info.dtype, "shape": list(info.shape)} for name, info in header.tensors.items()}
    return {"chunk": asdict(chunk) | {"data_start": header.data_start}, "tensors": tensors}


def _space(client: Client, bucket: str, space: str) -> dict[str, Any] | None:
    """The manifest of a space, or None when the bucket has none: its chunks cannot be told apart any more."""
    try:
        body = client.get(bucket, str(ManifestKey(space)), start=0, stop=MAX_MANIFEST_NBYTES).body
    except GatewayError as error:
        if error.status == 404:
            return None
        raise
    return Space.from_canonical_json(body or b"").manifest()


def _print(facts: Mapping[str, Any], indent: str = "  ") -> None:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            if value:
                print(f"{indent}{printable(name)}")
                _print(value, indent + "  ")
        else:
            print(f"{indent}{printable(name):14}  {'-' if value is None else printable(str(value))}")
