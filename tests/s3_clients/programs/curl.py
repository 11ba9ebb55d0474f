"""curl --aws-sigv4: the requests by hand, a multipart upload among them.

S3 refuses requests without x-amz-content-sha256, which curl sends by itself only from version 8 on. curl signs the path
and the query as they are given to it, so that both are in their canonical form here.
"""

import re
import tempfile
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from answering import ACCESS_KEY, BUCKET, CA_BUNDLE, ENDPOINT, REGION, SECRET_KEY, answer, run

PART_NBYTES = 5 << 20
SAFE = "-_.~"


def request(target: str, *options: str) -> str:
    return run(
        *("curl", "--silent", "--show-error", "--fail-with-body", "--path-as-is"),
        *("--aws-sigv4", f"aws:amz:{REGION}:s3", "--user", f"{ACCESS_KEY}:{SECRET_KEY}"),
        *(("--cacert", CA_BUNDLE) if CA_BUNDLE else ()),
        *("--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"),
        *options,
        f"{ENDPOINT}/{BUCKET}{target}",
    )


def path_of(key: str) -> str:
    return "/" + quote(key, safe=f"/{SAFE}")


def put(key: str, path: str) -> None:
    request(path_of(key), "--upload-file", path)


def get(key: str, path: str) -> None:
    request(path_of(key), "--output", path)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    request(path_of(key), "--range", f"{start}-{stop - 1}", "--output", path)


def list_under(prefix: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    token = ""
    while True:
        after = f"continuation-token={quote(token, safe=SAFE)}&" if token else ""
        page = ElementTree.fromstring(request(f"?{after}list-type=2&prefix={quote(prefix, safe=SAFE)}"))
        found += [
            (item.findtext("{*}Key", ""), int(item.findtext("{*}Size", ""))) for item in page.findall("{*}Contents")
        ]
        token = page.findtext("{*}NextContinuationToken", "")
        if not token:
            return found


def upload(key: str, path: str) -> None:
    begun = ElementTree.fromstring(request(f"{path_of(key)}?uploads=", "--request", "POST"))
    upload_id = quote(begun.findtext("{*}UploadId", ""), safe=SAFE)
    body = Path(path).read_bytes()
    parts = ""
    with tempfile.TemporaryDirectory() as folder:
        part, headers = Path(folder, "part"), Path(folder, "headers")
        for number, start in enumerate(range(0, len(body), PART_NBYTES), 1):
            part.write_bytes(body[start : start + PART_NBYTES])
            target = f"{path_of(key)}?partNumber={number}&uploadId={upload_id}"
            request(target, "--upload-file", str(part), "--dump-header", str(headers))
            found = re.search(r'(?im)^etag: *("[^"]*")', headers.read_text())
            assert found, headers.read_text()
            parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{found[1]}</ETag></Part>"
    document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
    done = request(f"{path_of(key)}?uploadId={upload_id}", "--data-binary", document)
    assert "<CompleteMultipartUploadResult" in done, done


def copy(key: str, to: str) -> None:
    done = request(path_of(to), "--request", "PUT", "--header", f"x-amz-copy-source: /{BUCKET}{path_of(key)}")
    assert "<CopyObjectResult" in done, done


def delete(key: str) -> None:
    request(path_of(key), "--request", "DELETE")


answer(" ".join(run("curl", "--version").split()[:2]), put, get, get_range, list_under, upload, copy, delete)
