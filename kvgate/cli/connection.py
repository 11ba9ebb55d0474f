"""How the verbs that ask a gateway reach it."""

from __future__ import annotations

import argparse

from kvgate.cli.address import Address
from kvgate.cli.terminal import printable
from kvgate.client.credentials import find_credentials
from kvgate.client.sync import Client
from kvgate.client.values import ObjectInfo
from kvgate.errors import GatewayError

_DEADLINE_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option of every verb that asks a gateway; the key pair is never an argument, which others could read."""
    group = parser.add_argument_group(
        "connection",
        "The key pair comes from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, else from the file that the\n  first "
        "`kvgate serve` wrote.",
    )
    group.add_argument(
        "--url", help="the gateway (default: KVGATE_URL, else the gateway that `kvgate serve` runs here)"
    )


def connect(options: argparse.Namespace) -> Client:
    """A client of the gateway. Raises ConfigError when no key pair or URL can be found."""
    found = find_credentials(url=options.url)
    return Client(found.url, found.access_key, found.secret_key, deadline_s=_DEADLINE_S)


def head(client: Client, address: Address) -> ObjectInfo:
    """What the gateway says of an object.

    Raises GatewayError naming the object when there is none: the answer to HEAD has no room for words.
    """
    try:
        return client.head(address.bucket, address.key)
    except GatewayError as error:
        if error.status == 404:
            raise GatewayError(f"there is no object {printable(str(address))}", status=404, code=error.code) from None
        raise
