"""What engine adapters use: a blocking and an asyncio client of a gateway, over one protocol without I/O.

`from kvgate.client.sync import Client`, `from kvgate.client.aio import AsyncClient`; only the latter needs aiohttp.
"""
