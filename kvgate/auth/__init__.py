"""Who is calling: AWS Signature V4, the tenants and their credentials. No I/O."""
