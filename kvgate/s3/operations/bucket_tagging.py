"""The tags of a bucket.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketTagging.html
"""

from __future__ import annotations

from kvgate.errors import NoSuchTagSet
from kvgate.s3.bucket_settings import BucketSetting
from kvgate.s3.tagging import (
    MAX_BODY_NBYTES,
    MAX_BUCKET_TAGS,
    decode_tags,
    encode_tags,
    parse_tagging,
    render_tagging,
)


def _parse(content: bytes, owner: str, bucket: str) -> str:
    return encode_tags(parse_tagging(content, MAX_BUCKET_TAGS))


def _render(text: str) -> bytes:
    return render_tagging(decode_tags(text))


_tagging = BucketSetting("tagging", MAX_BODY_NBYTES, _parse, _render, NoSuchTagSet)

get = _tagging.get("GetBucketTagging", "GetBucketTagging")
put = _tagging.put("PutBucketTagging", "PutBucketTagging", 204)
delete = _tagging.delete("DeleteBucketTagging", "PutBucketTagging")
