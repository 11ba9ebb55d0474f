"""nginx with files in memory: sendfile for GET, the DAV module for PUT, a worker a core, and no authentication."""

from __future__ import annotations

import tempfile
from pathlib import Path

from driver import Exchange

from peers.base import OBJECTS, Program, key_of, program

CONFIG = """
daemon off;
worker_processes auto;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_max_body_size 1g;
    client_body_buffer_size 1m;
    client_body_temp_path {memory}/temporary;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {memory}/objects;
        location / {{ dav_methods PUT; }}
    }}
}}
"""


class Nginx(Program):
    name = "nginx"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._memory: tempfile.TemporaryDirectory[str] | None = None

    def command(self) -> list[str]:
        path = program("nginx", "Debian and Ubuntu: apt-get install nginx-light")
        in_memory = Path("/dev/shm")
        self._memory = tempfile.TemporaryDirectory(
            prefix="kvgate-bench-", dir=in_memory if in_memory.is_dir() else self.folder
        )
        memory = Path(self._memory.name)
        memory.chmod(0o755)  # its workers are nobody's
        for name in ("objects", "temporary"):
            (memory / name).mkdir()
            (memory / name).chmod(0o777)
        config = self.folder / "nginx.conf"
        config.write_text(CONFIG.format(folder=self.folder, memory=memory, port=self.port))
        return [path, "-p", str(self.folder), "-c", str(config)]

    def stop(self) -> None:
        super().stop()
        if self._memory is not None:
            self._memory.cleanup()

    def get(self, nbytes: int) -> Exchange:
        return Exchange(_heads("GET"), payload_nbytes=nbytes)

    def put(self, nbytes: int) -> Exchange:
        return Exchange(_heads("PUT", f"Content-Length: {nbytes}\r\n"), body_nbytes=nbytes)

    def head(self) -> Exchange:
        return Exchange(_heads("HEAD"), reply="head")


def _heads(method: str, more: str = "") -> list[bytes]:
    return [f"{method} /{key_of(number)} HTTP/1.1\r\nHost: bench\r\n{more}\r\n".encode() for number in range(OBJECTS)]
