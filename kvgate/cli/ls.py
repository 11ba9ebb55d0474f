"""`kvgate ls`: the buckets of a tenant, or the objects of one."""

from __future__ import annotations

import argparse
import dataclasses
import json

from kvgate.cli import connection
from kvgate.cli.address import Address, bucket_address
from kvgate.cli.terminal import human_size, printable
from kvgate.client.sync import Client

DESCRIPTION = """\
List the buckets that the credential may see, or the keys of one bucket that begin with a prefix. Keys are rolled up at
the next `/`, as in a folder, unless --recursive is given.
"""

EXAMPLES = """\
examples:
  kvgate ls                                every bucket
  kvgate ls s3://chunks/                   what is at the top of the bucket chunks
  kvgate ls s3://chunks/kv/                the spaces of its chunks
  kvgate ls --recursive s3://chunks/logs/  every key that begins with logs/
  kvgate ls --recursive --json s3://chunks/ | jq -s 'map(.nbytes) | add'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("address", nargs="?", type=bucket_address, metavar="s3://BUCKET[/PREFIX]", help="what to list")
    parser.add_argument("--recursive", action="store_true", help="every key, not rolled up")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    connection.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print as the pages arrive, so that a long listing can be cut short."""
    with connection.connect(options) as client:
        if options.address is None:
            _buckets(client, as_json=options.json)
        else:
            _keys(client, options.address, "" if options.recursive else "/", as_json=options.json)
    return 0


def _buckets(client: Client, *, as_json: bool) -> None:
    for bucket in client.list_buckets():
        print(json.dumps(dataclasses.asdict(bucket)) if as_json else f"{bucket.created:24}  s3://{bucket.name}/")


def _keys(client: Client, address: Address, delimiter: str, *, as_json: bool) -> None:
    objects = nbytes = 0
    for entry in client.list(address.bucket, address.key, delimiter):
        if as_json:
            print(json.dumps(dataclasses.asdict(entry)))
        elif entry.is_prefix:
            print(f"{'':24}  {'':>10}  {printable(entry.key)}")
        else:
            print(f"{entry.modified:24}  {human_size(entry.nbytes):>10}  {printable(entry.key)}")
        objects += not entry.is_prefix
        nbytes += entry.nbytes
    if not as_json:
        print(f"{objects} object{'' if objects == 1 else 's'}, {human_size(nbytes)}")
