"""Who the S3 tier is: a key pair of the configuration, or what AWS's tools would find on this machine."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any, NamedTuple

from awscrt.auth import AwsCredentialsProvider

from kvgate.auth.sigv4 import Credential
from kvgate.errors import TierError

_KEEP_S = 30.0
"""How long what was found, or that nothing was, is taken for granted; the providers refresh what expires in time."""

_FIND_S = 10.0


class Identity(NamedTuple):
    """What requests are signed with. `session_token` is empty unless the key pair is a temporary one."""

    credential: Credential
    session_token: str

    def __repr__(self) -> str:
        return f"Identity({self.credential.access_key!r})"


class FixedIdentity:
    """The key pair of the configuration."""

    def __init__(self, access_key: str, secret_key: str, session_token: str) -> None:
        self._identity = Identity(Credential(access_key, secret_key), session_token)

    def get(self) -> Identity:
        """See FoundIdentity."""
        return self._identity

    def forget(self) -> None:
        """See FoundIdentity."""


class FoundIdentity:
    """What AWS's tools would use: the environment, the shared files, or the role of this machine or container."""

    def __init__(self, profile: str | None) -> None:
        """profile: of the shared files; None looks everywhere, in the order above."""
        self._profile = profile
        self._provider: AwsCredentialsProvider | None = None
        self._lock = threading.Lock()
        self._found: Identity | None = None
        self._looked_at = -_KEEP_S

    def get(self) -> Identity:
        """The key pair of this moment. Blocks. Raises TierError when there is none."""
        with self._lock:  # one thread looks, the others wait for what it finds
            if time.monotonic() - self._looked_at >= _KEEP_S:
                self._found = self._look()
                self._looked_at = time.monotonic()
            if self._found is None:
                raise TierError(
                    "no AWS credentials were found; set access_key and secret_key of this tier, AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, a profile in ~/.aws/credentials, or give this machine a role"
                )
            return self._found

    def forget(self) -> None:
        """Look anew the next time: the store does not take what was found any more. From any thread."""
        with self._lock:
            self._looked_at = -_KEEP_S

    def _look(self) -> Identity | None:
        try:
            if self._provider is None:
                new = AwsCredentialsProvider
                self._provider = (
                    new.new_profile(profile_name=self._profile) if self._profile else new.new_default_chain()
                )
            asked: Future[Any] = self._provider.get_credentials()
            found = asked.result(_FIND_S)
        except Exception:  # awscrt says it in many ways, and its words may quote the files
            return None
        return Identity(Credential(found.access_key_id, found.secret_access_key), found.session_token or "")
