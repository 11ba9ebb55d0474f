"""The route table: from method, resource and subresource to an operation.

Nothing is silently ignored: a subresource, query parameter or header that would change what the request means, and that
the operation does not read, is refused by name.
"""

from __future__ import annotations

import enum
from typing import Any

from kvgate.errors import MethodNotAllowed, RDMANotOffered, UnsupportedOperation
from kvgate.messages import Headers
from kvgate.s3.call import Call
from kvgate.s3.copying import COPY_SOURCE
from kvgate.s3.operations import (
    abort_multipart_upload,
    bucket_acl,
    bucket_cors,
    bucket_lifecycle,
    bucket_policy,
    bucket_tagging,
    complete_multipart_upload,
    copy_object,
    create_bucket,
    create_multipart_upload,
    delete_bucket,
    delete_object,
    delete_objects,
    get_bucket_location,
    get_bucket_versioning,
    get_chunk_slice,
    get_object,
    get_object_attributes,
    head_bucket,
    head_object,
    list_buckets,
    list_multipart_uploads,
    list_object_versions,
    list_objects,
    list_objects_v2,
    list_parts,
    object_acl,
    object_tagging,
    post_object,
    put_object,
    upload_part,
    upload_part_copy,
)
from kvgate.s3.operations.base import Operation
from kvgate.s3.ordinary import ORDINARY_HEADERS


class Resource(enum.StrEnum):
    """What a path addresses."""

    SERVICE = "service"
    BUCKET = "bucket"
    OBJECT = "object"


ROUTES: dict[tuple[str, Resource, str], Operation[Any]] = {
    ("GET", Resource.SERVICE, ""): list_buckets.operation,
    ("PUT", Resource.BUCKET, ""): create_bucket.operation,
    ("HEAD", Resource.BUCKET, ""): head_bucket.operation,
    ("DELETE", Resource.BUCKET, ""): delete_bucket.operation,
    ("GET", Resource.BUCKET, ""): list_objects.operation,
    ("GET", Resource.BUCKET, "list-type"): list_objects_v2.operation,
    ("GET", Resource.BUCKET, "versions"): list_object_versions.operation,
    ("GET", Resource.BUCKET, "location"): get_bucket_location.operation,
    ("GET", Resource.BUCKET, "versioning"): get_bucket_versioning.operation,
    ("GET", Resource.BUCKET, "uploads"): list_multipart_uploads.operation,
    ("POST", Resource.BUCKET, "delete"): delete_objects.operation,
    ("POST", Resource.BUCKET, ""): post_object.operation,
    ("GET", Resource.BUCKET, "acl"): bucket_acl.get,
    ("PUT", Resource.BUCKET, "acl"): bucket_acl.put,
    ("GET", Resource.BUCKET, "cors"): bucket_cors.get,
    ("PUT", Resource.BUCKET, "cors"): bucket_cors.put,
    ("DELETE", Resource.BUCKET, "cors"): bucket_cors.delete,
    ("GET", Resource.BUCKET, "lifecycle"): bucket_lifecycle.get,
    ("PUT", Resource.BUCKET, "lifecycle"): bucket_lifecycle.put,
    ("DELETE", Resource.BUCKET, "lifecycle"): bucket_lifecycle.delete,
    ("GET", Resource.BUCKET, "policy"): bucket_policy.get,
    ("PUT", Resource.BUCKET, "policy"): bucket_policy.put,
    ("DELETE", Resource.BUCKET, "policy"): bucket_policy.delete,
    ("GET", Resource.BUCKET, "policyStatus"): bucket_policy.get_status,
    ("GET", Resource.BUCKET, "tagging"): bucket_tagging.get,
    ("PUT", Resource.BUCKET, "tagging"): bucket_tagging.put,
    ("DELETE", Resource.BUCKET, "tagging"): bucket_tagging.delete,
    ("PUT", Resource.OBJECT, ""): put_object.operation,
    ("GET", Resource.OBJECT, ""): get_object.operation,
    ("GET", Resource.OBJECT, "layers"): get_chunk_slice.of_layers,
    ("GET", Resource.OBJECT, "heads"): get_chunk_slice.of_heads,
    ("HEAD", Resource.OBJECT, ""): head_object.operation,
    ("GET", Resource.OBJECT, "attributes"): get_object_attributes.operation,
    ("DELETE", Resource.OBJECT, ""): delete_object.operation,
    ("GET", Resource.OBJECT, "acl"): object_acl.get,
    ("PUT", Resource.OBJECT, "acl"): object_acl.put,
    ("GET", Resource.OBJECT, "tagging"): object_tagging.get,
    ("PUT", Resource.OBJECT, "tagging"): object_tagging.put,
    ("DELETE", Resource.OBJECT, "tagging"): object_tagging.delete,
    ("POST", Resource.OBJECT, "uploads"): create_multipart_upload.operation,
    ("PUT", Resource.OBJECT, "uploadId"): upload_part.operation,
    ("GET", Resource.OBJECT, "uploadId"): list_parts.operation,
    ("POST", Resource.OBJECT, "uploadId"): complete_multipart_upload.operation,
    ("DELETE", Resource.OBJECT, "uploadId"): abort_multipart_upload.operation,
}

COPY_ROUTES: dict[tuple[str, Resource, str], Operation[Any]] = {
    ("PUT", Resource.OBJECT, ""): copy_object.operation,
    ("PUT", Resource.OBJECT, "uploadId"): upload_part_copy.operation,
}
"""What a request with the header COPY_SOURCE asks for."""

_NOT_OFFERED = frozenset({("PUT", Resource.BUCKET, "versioning")})
"""What S3 has for a resource that is offered with other methods."""

_SUBRESOURCES = {
    resource: frozenset({subresource for _, of, subresource in ROUTES if of is resource and subresource})
    for resource in Resource
}

_HARMLESS_PARAMETERS = frozenset(
    {
        *("X-Amz-Algorithm", "X-Amz-Content-Sha256", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires"),
        *("X-Amz-Signature", "X-Amz-SignedHeaders", "AWSAccessKeyId", "Expires", "Signature"),
        *("x-id", "x-amz-checksum-mode", "x-amz-sdk-checksum-algorithm", "x-amz-user-agent"),
    }
)
"""What presigning and SDKs add to a query without changing its meaning."""

_UNSUPPORTED_HEADERS = (
    "x-amz-copy-source",
    "x-amz-rename-source",
    "x-amz-server-side-encryption",
    "x-amz-grant-",
    "x-amz-tagging",
    "x-amz-object-lock-",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
    "x-amz-if-match-",
    "x-amz-mfa",
)
"""Headers, or beginnings of headers, that ask for more than the operation would do."""

_RDMA = frozenset({"x-rdma-info", "x-amz-rdma-token"})

ACCEPTED_VALUES = {
    "x-amz-acl": {"private", "bucket-owner-full-control"},
    "x-amz-storage-class": {"STANDARD"},
    "x-amz-object-ownership": {"BucketOwnerEnforced"},
    "x-amz-bucket-object-lock-enabled": {"false", "False"},
}
"""Headers that are accepted where they ask for what is the case anyway."""


def route(call: Call) -> Operation[Any]:
    """The operation that a call asks for. Raises UnsupportedOperation naming what is not offered, MethodNotAllowed."""
    bucket, key, query = call.target
    resource = Resource.OBJECT if key else Resource.BUCKET if bucket else Resource.SERVICE
    method, headers = call.request.method, call.request.headers
    asked = [name for name in query if name not in _HARMLESS_PARAMETERS] if query else []
    subresource = next((name for name in asked if name in _SUBRESOURCES[resource]), "") if asked else ""
    asked_for = method, resource, subresource
    operation = (COPY_ROUTES.get(asked_for) if COPY_SOURCE in headers else None) or ROUTES.get(asked_for)
    if asked:
        known = operation.parameters if operation else frozenset()
        unknown = [name for name in asked if name != subresource and name not in known]
        if unknown:
            raise UnsupportedOperation(
                f"the query parameter {unknown[0][:64]!r} of {method} on the {resource.value} is not offered"
            )
    if operation is None and asked_for in _NOT_OFFERED:
        raise UnsupportedOperation(f"?{subresource} of the {resource.value} cannot be set: it is not offered")
    if operation is None:
        of = f"?{subresource} of the {resource.value}" if subresource else f"the {resource.value}"
        raise MethodNotAllowed(f"{method[:16]} is not a method of {of}")
    _check_headers(headers, operation)
    return operation


def _check_headers(headers: Headers, operation: Operation[Any]) -> None:
    if headers.all_among(ORDINARY_HEADERS):
        return
    if headers.has_any(_RDMA):  # the sender keeps the body for its network card
        raise RDMANotOffered("bodies are carried by HTTP alone here; send this one without RDMA")
    for name, value in headers.items():
        if not name.startswith("x-amz-") or name in operation.headers:
            continue
        if name.startswith(_UNSUPPORTED_HEADERS):
            raise UnsupportedOperation(f"the header {name} is not offered")
        if name in ACCEPTED_VALUES and value not in ACCEPTED_VALUES[name]:
            raise UnsupportedOperation(
                f"the header {name} is accepted as {' or '.join(sorted(ACCEPTED_VALUES[name]))} only"
            )
