"""The S3 protocol: requests to typed operations on the store, and results to responses. Knows no HTTP server."""
