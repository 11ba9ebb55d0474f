"""The operations of the S3 API, one a file: a typed input, and a function that carries it out on the store."""
