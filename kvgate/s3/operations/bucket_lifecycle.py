"""The lifecycle rules of a bucket: when its objects expire.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketLifecycleConfiguration.html
"""

from __future__ import annotations

from kvgate.errors import NoSuchLifecycle
from kvgate.s3.bucket_settings import BucketSetting
from kvgate.s3.lifecycle import MAX_BODY_NBYTES, parse_lifecycle, render_lifecycle
from kvgate.store.lifecycle import SETTING, dumps, loads


def _parse(content: bytes, owner: str, bucket: str) -> str:
    return dumps(parse_lifecycle(content))


def _render(text: str) -> bytes:
    return render_lifecycle(loads(text))


_lifecycle = BucketSetting(SETTING, MAX_BODY_NBYTES, _parse, _render, NoSuchLifecycle)

get = _lifecycle.get("GetBucketLifecycleConfiguration", "GetLifecycleConfiguration")
put = _lifecycle.put("PutBucketLifecycleConfiguration", "PutLifecycleConfiguration", 200)
delete = _lifecycle.delete("DeleteBucketLifecycle", "PutLifecycleConfiguration")
