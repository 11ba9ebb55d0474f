"""The HTTP/1.1 of plain connections: what is common is done here, whatever is unusual is handed to aiohttp."""
