"""Versions of objects in buckets that keep one: it is the one that S3 names "null".

https://docs.aws.amazon.com/AmazonS3/latest/userguide/Versioning.html
"""

from __future__ import annotations

from collections.abc import Mapping

from kvgate.errors import InvalidArgument, NoSuchVersion

NULL = "null"
PARAMETER = "versionId"


def check_version(query: Mapping[str, str]) -> None:
    """Accept a request for the version that there is. Raises NoSuchVersion, InvalidArgument for an empty version id."""
    version = query.get(PARAMETER)
    if version == "":
        raise InvalidArgument("a version id cannot be empty")
    if version not in (None, NULL):
        raise NoSuchVersion(f"buckets keep one version of each object, which is {NULL!r}")
