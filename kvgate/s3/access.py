"""Who may do what with which bucket.

A caller's own buckets are named plainly, and the caller may do everything that their policy does not deny. Another
tenant's bucket is named `<tenant>_<bucket>`, and only what its owner lets the caller read is there: by the bucket's
policy, its ACL, or an object's ACL. Whatever else a name may stand for, the answer is the same refusal, so that nothing
is learnt of what a caller may not see.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from kvgate.auth.acl import PRIVATE, grants_read
from kvgate.auth.actions import OBJECT_ACTIONS
from kvgate.auth.policy import Effect, Policy
from kvgate.auth.tenants import Tenant, Tenants
from kvgate.chunk.key import split_owner
from kvgate.errors import AccessDenied, NoSuchBucket, NoSuchKey
from kvgate.s3.representation import ACL, TAGGING
from kvgate.s3.tagging import decode_tags
from kvgate.s3.versions import PARAMETER as VERSION

if TYPE_CHECKING:
    from kvgate.store.store import Store
    from kvgate.tiers.base import Record

BUCKET_ACL = "acl"
"""The setting of a bucket that names its canned ACL, unless it is private."""

_NONE: Mapping[str, str] = MappingProxyType({})
_MENDED_BY_OWNER = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})
"""What no policy can deny to the owner, who could not undo it."""

_BUCKET_ACL_GRANTS = frozenset({"s3:ListBucket", "s3:ListBucketVersions"})
_OBJECT_ACL_GRANTS = frozenset({"s3:GetObject", "s3:GetObjectAttributes"})


class Access:
    """What one caller may do. `caller` is None for an unsigned request."""

    def __init__(self, store: Store, tenants: Tenants, caller: Tenant | None, unsigned: Tenant | None) -> None:
        """unsigned: whose buckets a caller without a name means by a plain name"""
        self._store = store
        self._tenants = tenants
        self._unsigned = unsigned
        self.caller = caller

    def resolve(self, name: str) -> tuple[Tenant, str]:
        """The owner of the bucket that the caller calls `name`, and the bucket's plain name. Neither need exist.

        Raises AccessDenied.
        """
        owner_name, bucket = split_owner(name)
        owner = self._tenants.get(owner_name) if owner_name else self.caller or (self._unsigned if name else None)
        if owner is None:
            raise _refusal(self.caller)
        return owner, bucket

    def settings(self, owner: Tenant, bucket: str) -> Mapping[str, str]:
        """What the owner of a bucket has set for it; nothing where there is no such bucket."""
        try:
            return self._store.buckets.get(owner.name, bucket).settings
        except NoSuchBucket:
            return _NONE

    def check(self, owner: Tenant, bucket: str, key: str, action: str, query: Mapping[str, str]) -> None:
        """Raises AccessDenied unless the caller may do `action` with the object, or with the bucket if `key` is empty.

        action: as policies name it, such as s3:GetObject
        query:  of the request; one that names a version needs the action on versions too, such as s3:GetObjectVersion
        """
        if not self._may(owner, bucket, key, action, query):
            raise _refusal(self.caller)

    def conceal(self, owner: Tenant, bucket: str, key: str, error: Exception) -> Exception:
        """What to answer instead of `error`: only who may list a bucket learns that an object is not there."""
        hidden = isinstance(error, NoSuchBucket | NoSuchKey) and self.caller is not owner
        if hidden and not self._may(owner, bucket, "", "s3:ListBucket", {"prefix": key}):
            return _refusal(self.caller)
        return error

    def _may(self, owner: Tenant, bucket: str, key: str, action: str, query: Mapping[str, str]) -> bool:
        is_owner = self.caller is owner
        try:
            settings = self._store.buckets.get(owner.name, bucket).settings
        except NoSuchBucket:
            return is_owner
        if "policy" in settings:
            caller = self.caller.name if self.caller else None
            context = {f"s3:{name}": query[name] for name in ("prefix", "delimiter") if name in query}
            context |= {f"s3:ExistingObjectTag/{name}": tag for name, tag in self._tags(owner, bucket, key).items()}
            policy = policy_of(settings["policy"], owner.name, bucket)
            effects = [policy.effect(caller, each, key, context) for each in _actions(action, query)]
            if Effect.DENY in effects:
                return is_owner and action in _MENDED_BY_OWNER
            if all(effect is Effect.ALLOW for effect in effects):
                return True
        return is_owner or self._acl_grants(owner, bucket, key, action, settings.get(BUCKET_ACL, PRIVATE))

    def _acl_grants(self, owner: Tenant, bucket: str, key: str, action: str, bucket_acl: str) -> bool:
        caller = self.caller.name if self.caller else None
        if not key:
            return action in _BUCKET_ACL_GRANTS and grants_read(bucket_acl, caller)
        record = self._record(owner, bucket, key)
        return (
            action in _OBJECT_ACL_GRANTS
            and record is not None
            and grants_read(record.attributes.get(ACL, PRIVATE), caller)
        )

    def _tags(self, owner: Tenant, bucket: str, key: str) -> dict[str, str]:
        record = self._record(owner, bucket, key) if key else None
        return decode_tags(record.attributes.get(TAGGING, "")) if record else {}

    def _record(self, owner: Tenant, bucket: str, key: str) -> Record | None:
        try:
            return self._store.stat(owner.name, bucket, key)
        except NoSuchKey:
            return None


def _actions(action: str, query: Mapping[str, str]) -> list[str]:
    """An action, and if the request names a version, the same action on versions."""
    on_version = action.replace("Object", "ObjectVersion", 1)
    return [action, on_version] if VERSION in query and on_version in OBJECT_ACTIONS else [action]


@functools.lru_cache(maxsize=1024)
def policy_of(document: str, owner: str, bucket: str) -> Policy:
    """The policy of a bucket; the most recently used are kept."""
    return Policy.parse(document.encode(), owner=owner, bucket=bucket)


def _refusal(caller: Tenant | None) -> AccessDenied:
    if caller is None:
        return AccessDenied("the request is not signed, and what it asks for is not shared with everyone")
    return AccessDenied("what the request asks for is not shared with its tenant")
