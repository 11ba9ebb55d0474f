"""boto3's transfer manager on the AWS Common Runtime.

boto3 would choose it by itself on large EC2 instances, and then speaks HTTPS to the system's authorities only; so this
makes the same objects as boto3.crt does, with the scheme of the endpoint.
"""

import boto3
from answering import BUCKET, CA_BUNDLE, REGION, SCHEME, answer
from awscrt import __version__
from botocore.session import Session
from s3transfer.crt import (
    BotocoreCRTCredentialsWrapper,
    BotocoreCRTRequestSerializer,
    CRTTransferManager,
    create_s3_crt_client,
)

session = Session()
credentials = BotocoreCRTCredentialsWrapper(session.get_credentials())
client = create_s3_crt_client(
    region=REGION,
    use_ssl=SCHEME == "https",
    verify=CA_BUNDLE,
    crt_credentials_provider=credentials.to_crt_credentials_provider(),
)
serializer = BotocoreCRTRequestSerializer(session, {"region_name": REGION, "endpoint_url": None})


def put(key: str, path: str) -> None:
    with CRTTransferManager(client, serializer) as manager:
        manager.upload(path, BUCKET, key).result()


def get(key: str, path: str) -> None:
    with CRTTransferManager(client, serializer) as manager:
        manager.download(BUCKET, key, path).result()


def upload(key: str, path: str) -> None:
    put(key, path)


answer(f"boto3 {boto3.__version__} with awscrt {__version__}", put, get, upload)
