"""What other gateways of the cluster ask: POST /_kv/v1/peer/records and GET /_kv/v1/peer/object.

Only what lies on this gateway itself is told and given (`Store.local`), and only of tenants in its configuration. Any
other name has nothing here, whatever may still lie there of a tenant that is gone.
"""

from __future__ import annotations

from kvgate.errors import AccessDenied, InvalidArgument, NoSuchKey
from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields
from kvgate.messages import Response
from kvgate.tiers.peer_records import MAX_ANSWER_NBYTES, MAX_KEYS, pack_record, packed_nbytes

_MAX_NBYTES = 1 << 53


async def _records(context: Context, fields: Fields) -> Members:
    """{tenant, bucket, keys} → {records}: one for each key in their order, null where it is not here."""
    tenant = _tenant(context, fields.text("tenant"))
    bucket, keys = fields.text("bucket"), fields.texts("keys", MAX_KEYS)
    described = await context.store.local.describe(tenant, bucket, keys) if tenant else [None] * len(keys)
    left_nbytes = MAX_ANSWER_NBYTES
    records: list[object] = []
    for each in described:
        left_nbytes -= packed_nbytes(*each) if each else 0
        records.append(pack_record(*each) if each and left_nbytes >= 0 else None)
    return {"records": records}


async def _object(context: Context, fields: Fields) -> Response:
    """?tenant&bucket&key&nbytes&crc64nvme&start&stop → the bytes [start, stop) of the object with exactly that body."""
    tenant = _tenant(context, fields.text("tenant"))
    version = fields.number("nbytes", _MAX_NBYTES), int(fields.digits("crc64nvme", 16), 16)
    start, stop = fields.number("start", _MAX_NBYTES), fields.number("stop", _MAX_NBYTES)
    if not start <= stop <= version[0]:
        raise InvalidArgument("start, stop: expected a range within the object")
    if not tenant:
        raise NoSuchKey("there is no such object on this gateway")
    with context.store.local.open_read(tenant, fields.text("bucket"), fields.unquoted("key"), version) as read:
        body = await read.load(start, stop)
    return Response(200, {"Content-Type": "application/octet-stream"}, body)


def _tenant(context: Context, name: str) -> str:
    """The name again if it is a tenant's of this gateway; empty if not."""
    if context.cluster is None:
        raise AccessDenied("this gateway is in no cluster")
    tenant = context.cluster.tenant(name)
    return tenant.name if tenant else ""


records = Call("PeerRecords", ("tenant", "bucket", "keys"), _records, for_peers=True)
object_ = Call(
    "PeerObject",
    ("tenant", "bucket", "key", "nbytes", "crc64nvme", "start", "stop"),
    _object,
    in_query=True,
    for_peers=True,
)
