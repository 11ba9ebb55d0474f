"""The CORS rules of a bucket: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketCors.html"""

from __future__ import annotations

from kvgate.errors import NoSuchCors
from kvgate.s3.bucket_settings import BucketSetting
from kvgate.s3.cors import MAX_BODY_NBYTES, SETTING, parse_cors, render_cors


def _parse(content: bytes, owner: str, bucket: str) -> str:
    return render_cors(parse_cors(content)).decode()


_cors = BucketSetting(SETTING, MAX_BODY_NBYTES, _parse, str.encode, NoSuchCors)

get = _cors.get("GetBucketCors", "GetBucketCORS")
put = _cors.put("PutBucketCors", "PutBucketCORS", 200)
delete = _cors.delete("DeleteBucketCors", "PutBucketCORS")
