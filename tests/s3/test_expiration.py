from __future__ import annotations

import pytest

from tests.gateways import RunningGateway
from tests.wire import send


@pytest.mark.parametrize(("days", "year"), [(1, "20"), (2**31 - 1, "9999")])
def test_an_object_tells_when_it_expires_however_late(gateway: RunningGateway, days: int, year: str) -> None:
    rules = (
        f"<LifecycleConfiguration><Rule><ID>r</ID><Prefix>expiring-{days}</Prefix><Status>Enabled</Status><Expiration>"
        f"<Days>{days}</Days></Expiration></Rule></LifecycleConfiguration>"
    ).encode()
    length = {"content-length": str(len(rules))}
    assert send(gateway, "PUT", "/alpha-bucket", length, rules, query="lifecycle")[0] == 200
    try:
        status, headers, _ = send(gateway, "PUT", f"/alpha-bucket/expiring-{days}", {"content-length": "1"}, b"x")
        assert status == 200
        assert f" {year}" in headers["x-amz-expiration"]
        assert send(gateway, "HEAD", f"/alpha-bucket/expiring-{days}")[0] == 200
    finally:
        assert send(gateway, "DELETE", "/alpha-bucket", query="lifecycle")[0] == 204
