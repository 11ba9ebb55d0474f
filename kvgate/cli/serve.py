"""`kvgate serve`: run the gateway until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import sys
from pathlib import Path

from kvgate.cli.config import read_config
from kvgate.cli.defaults import BUCKET, data_folder, default_config
from kvgate.cli.keys import Keys, load_or_create
from kvgate.errors import ConfigError
from kvgate.server import gateway
from kvgate.server.config import GatewayConfig, ListenConfig

DESCRIPTION = """\
Run the gateway until SIGTERM or Ctrl-C, and end after the requests that are under way.

The configuration is --config, else the file that KVGATE_CONFIG names. With neither, the gateway fits itself to this
machine: it listens on 127.0.0.1, takes a quarter of the free memory and a tenth of the disk, and has one tenant with
the bucket `kv`, whose key pair is made at the first start.
"""

EXAMPLES = """\
examples:
  kvgate serve                                   on this machine only
  kvgate serve --port 9100 --data /mnt/nvme/kv   another port, another disk
  kvgate serve --host 0.0.0.0                    other machines may connect; put TLS in front of it
  kvgate serve --config conf/kvgate.yaml         tenants, quotas and sizes of your own
"""

_LEVELS = ("debug", "info", "warning", "error")
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a client on this machine connects to instead

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a YAML file; see `kvgate config reference`")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of the S3 endpoint, 0 for a free one (default: 9000)")
    parser.add_argument("--admin-port", type=int, metavar="PORT", help="port of metrics and health (default: 9001)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder for chunks, when there is no configuration file"
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info", help="what is logged (default: info)")


def run(options: argparse.Namespace) -> int:
    """Serve. Raises ConfigError before anything is opened."""
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(gateway.serve(_config(options)))
    return 0


def _config(options: argparse.Namespace) -> GatewayConfig:
    file = options.config or (Path(os.environ["KVGATE_CONFIG"]) if os.environ.get("KVGATE_CONFIG") else None)
    if file is None:
        listen = _listen(options, ListenConfig())
        path = data_folder() / "credentials.yaml"
        keys, created = load_or_create(path, _url(listen))
        _greet(keys, path, created=created)
        config = default_config(keys, options.data or data_folder())
    elif options.data is not None:
        raise ConfigError(f"--data is for a gateway without a configuration file; set tiers.disk.path in {file}")
    else:
        config = read_config(file)
        listen = _listen(options, config.listen)
    return dataclasses.replace(config, listen=listen)


def _listen(options: argparse.Namespace, listen: ListenConfig) -> ListenConfig:
    given = {key: getattr(options, key) for key in ("host", "port", "admin_port") if getattr(options, key) is not None}
    return dataclasses.replace(listen, **given)


def _url(listen: ListenConfig) -> str | None:
    """Where a client on this machine finds the gateway; None while the port is not known."""
    host = _ANY_HOST.get(listen.host, listen.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{listen.port}" if listen.port else None


def _greet(keys: Keys, path: Path, *, created: bool) -> None:
    """Show a new key pair once, to a person; where the output is kept, say only which file holds it."""
    if not (created and sys.stdout.isatty()):
        logger.info("key pair: %s", path)
        return
    print(
        f"A new gateway with the bucket {BUCKET!r}. Its key pair is shown this once, and kept in {path}:\n\n"
        f"  export AWS_ACCESS_KEY_ID={keys.access_key}\n"
        f"  export AWS_SECRET_ACCESS_KEY={keys.secret_key!s}\n"
        f"  export AWS_DEFAULT_REGION=us-east-1\n"
        f"  aws --endpoint-url {keys.url} s3 ls s3://{BUCKET}/\n",
        flush=True,
    )
