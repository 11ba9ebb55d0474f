"""A small proxy between clients and vLLM servers of which some prefill and some decode.

    python examples/pd/proxy.py --port 8000 --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200

Every completion is first sent to a prefill server, to be computed up to its first token, and then, with what came back
about its KV, to a decode server, whose answer is streamed to the client. The KV itself goes from one to the other by
the servers' KV connector. A prefill server that fails costs only time: the decode server then computes the prompt.

An example to start from: it keeps no health of its servers and balances them in turn.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import web

_log = logging.getLogger("proxy")

PATHS = ("/v1/completions", "/v1/chat/completions")
MAX_BODY_NBYTES = 64 << 20
TO_PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


class Proxy:
    """Routes completions. `prefill_timeout_s`: how long the first half of a request may take."""

    def __init__(self, prefill: list[str], decode: list[str], prefill_timeout_s: float) -> None:
        self._prefill = itertools.cycle(prefill)
        self._decode = itertools.cycle(decode)
        self._prefill_timeout = aiohttp.ClientTimeout(total=prefill_timeout_s)

    def application(self) -> web.Application:
        """What serves the proxy's paths."""
        application = web.Application(client_max_size=MAX_BODY_NBYTES)
        application.cleanup_ctx.append(self._session_of)
        for path in PATHS:
            application.router.add_post(path, self.complete)
        return application

    async def _session_of(self, application: web.Application) -> Any:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as self._session:
            yield

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """One completion, through both servers."""
        wanted = await request.json()
        if not isinstance(wanted, dict):
            raise web.HTTPBadRequest(text="a completion is a JSON object")
        headers = {name: value for name, value in request.headers.items() if name.lower() == "authorization"}
        handed_over = await self._prefilled(request.path, wanted, headers)
        if handed_over:
            wanted = wanted | {"kv_transfer_params": handed_over}
        url = next(self._decode) + request.path
        try:
            async with self._session.post(url, json=wanted, headers=headers) as answer:
                response = web.StreamResponse(status=answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except aiohttp.ClientConnectorError as error:
            raise web.HTTPBadGateway(text=f"no decode server at {url}: {error}") from error

    async def _prefilled(
        self, path: str, wanted: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Mapping[str, Any] | None:
        """What the decode server is to be told; None when no prefill server has done its part."""
        half = {**wanted, "max_tokens": 1, "stream": False, "kv_transfer_params": TO_PREFILL}
        if "max_completion_tokens" in half:
            half["max_completion_tokens"] = 1
        half.pop("stream_options", None)
        url = next(self._prefill) + path
        try:
            async with self._session.post(url, json=half, headers=headers, timeout=self._prefill_timeout) as answer:
                answer.raise_for_status()
                params = (await answer.json()).get("kv_transfer_params")
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("%s did not prefill (%s); the decode server computes the prompt", url, error)
            return None
        return params if isinstance(params, dict) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="where to listen (%(default)s)")
    parser.add_argument("--prefill", action="append", required=True, metavar="URL", help="a vLLM server that prefills")
    parser.add_argument("--decode", action="append", required=True, metavar="URL", help="a vLLM server that decodes")
    parser.add_argument(
        "--prefill-timeout", type=float, default=60.0, metavar="SECONDS", help="for the first half (%(default)s)"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    proxy = Proxy(options.prefill, options.decode, options.prefill_timeout)
    web.run_app(proxy.application(), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
