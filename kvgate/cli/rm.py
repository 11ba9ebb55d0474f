"""`kvgate rm`: delete one object, or every one under a prefix."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from kvgate.cli import connection
from kvgate.cli.address import Address, bucket_address
from kvgate.cli.terminal import Progress, human_size, printable
from kvgate.client.sync import Client
from kvgate.client.values import Entry
from kvgate.errors import ConfigError, GatewayError

DESCRIPTION = """\
Delete one object, or with --recursive every object whose key begins with a prefix. There is no way back: deleted KV has
to be computed again. Run it with --dry-run first.
"""

EXAMPLES = """\
examples:
  kvgate rm s3://chunks/report.txt
  kvgate rm --recursive --dry-run s3://chunks/kv/<space>/   what would go: all chunks of one model
  kvgate rm --recursive s3://chunks/kv/<space>/             let it go
  kvgate rm --recursive s3://chunks/                        empty the bucket
"""

_BATCH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument(
        "address", type=bucket_address, metavar="s3://BUCKET/KEY", help="an object, or a prefix of keys"
    )
    parser.add_argument("--recursive", action="store_true", help="delete every key that begins with KEY")
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    connection.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Delete, and say how much it was."""
    address: Address = options.address
    if not options.recursive and not address.key:
        raise ConfigError(f"{address} names a bucket; add a key, or --recursive to delete everything in it")
    with connection.connect(options) as client:
        if options.recursive:
            entries = client.list(address.bucket, address.key)
        else:
            entries = iter([Entry(address.key, connection.head(client, address).nbytes)])
        if options.dry_run:
            objects, nbytes = _show(address.bucket, entries)
        else:
            objects, nbytes = _delete(client, address.bucket, entries)
    done = "would be deleted" if options.dry_run else "deleted"
    print(f"{objects} object{'' if objects == 1 else 's'}, {human_size(nbytes)} {done}")
    return 0


def _show(bucket: str, entries: Iterator[Entry]) -> tuple[int, int]:
    objects = nbytes = 0
    for entry in entries:
        print(f"{human_size(entry.nbytes):>10}  {printable(str(Address(bucket, entry.key)))}")
        objects, nbytes = objects + 1, nbytes + entry.nbytes
    return objects, nbytes


def _delete(client: Client, bucket: str, entries: Iterator[Entry]) -> tuple[int, int]:
    """Delete while the listing goes on, a batch at a time; what was deleted before an error stays deleted."""
    objects = nbytes = 0
    progress = Progress()
    with ThreadPoolExecutor(client.max_connections) as threads:
        try:
            while batch := list(islice(entries, _BATCH)):
                for entry, _ in zip(
                    batch, threads.map(lambda entry: client.delete(bucket, entry.key), batch), strict=True
                ):
                    objects, nbytes = objects + 1, nbytes + entry.nbytes
                    progress.say(f"{objects} objects, {human_size(nbytes)} deleted")
        except GatewayError as error:
            said = f"{error}; {objects} objects had been deleted before"
            raise GatewayError(said, status=error.status, code=error.code) from error
        finally:
            progress.end()
    return objects, nbytes
