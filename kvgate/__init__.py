"""kvgate: an S3-compatible gateway that keeps LLM attention KV as content-addressed objects."""

__version__ = "0.1.0"
