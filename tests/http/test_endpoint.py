from __future__ import annotations

import pytest

from kvgate.errors import ConfigError
from kvgate.http.endpoint import parse_endpoint


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1", 9000, "127.0.0.1:9000"),
        ("http://gateway/", "gateway", 80, "gateway"),
        ("http://gateway:80", "gateway", 80, "gateway"),
        ("https://gateway:443", "gateway", 443, "gateway"),
        ("https://Gateway:80", "gateway", 80, "gateway:80"),
        ("http://[::1]:9000", "::1", 9000, "[::1]:9000"),
    ],
)
def test_endpoint_has_the_authority_that_is_signed(url, host, port, authority) -> None:
    endpoint = parse_endpoint(url)
    assert (endpoint.host, endpoint.port, endpoint.authority) == (host, port, authority)
    assert str(endpoint) == f"{endpoint.scheme}://{authority}"


@pytest.mark.parametrize(
    "url",
    [
        *("", "gateway", "gateway:9000", "ftp://gateway", "http://", "http://:9000", "http://gateway:0x50"),
        *("http://gateway:99999", "http://gateway/path", "http://gateway?query", "http://gateway#part"),
        *("http://user:secret@gateway", "http://[::1", "http://gate way", "http://gatewäy", "http://a\r\nb"),
    ],
)
def test_other_urls_are_refused_without_being_shown(url) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_endpoint(url)
    assert "secret" not in str(raised.value)
