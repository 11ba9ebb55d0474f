"""The KV-aware calls under /_kv/v1/: match, explain, release, stats and tenant, in msgpack or JSON. Knows no server."""
