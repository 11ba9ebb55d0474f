"""An S3 store that ignores conditions: a proxy before a real one, which signs each request anew without them."""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from kvgate.auth.sigv4 import Credential, sign
from tests.stores import Store

_NOT_PASSED_ON = {
    "if-none-match",
    "if-match",
    "authorization",
    "x-amz-date",
    "x-amz-content-sha256",
    "host",
    "connection",
}


class Unconditional:
    """A context manager. `requests` are the methods of those that came, in their order."""

    def __init__(self, store: Store) -> None:
        self.requests: list[str] = []
        self._target = urlsplit(store.endpoint).netloc
        self._credential = Credential(store.access_key, store.secret_key)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.pass_on(self)

            do_PUT = do_POST = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.store = Store(
            f"http://127.0.0.1:{self._server.server_port}", store.bucket, store.access_key, store.secret_key
        )

    def pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.command)
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        payload_hash = headers["x-amz-content-sha256"]
        headers = {name: value for name, value in headers.items() if name not in _NOT_PASSED_ON}
        headers["host"] = self._target
        path, _, query = handler.path.partition("?")
        headers |= sign(
            self._credential,
            handler.command,
            path,
            query,
            headers,
            region="us-east-1",
            now=time.time(),
            payload_hash=payload_hash,
        )
        connection = http.client.HTTPConnection(self._target, timeout=20)
        try:
            connection.request(handler.command, handler.path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        handler.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                handler.send_header(name, value)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
