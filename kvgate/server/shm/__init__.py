"""Memory for engines on the same host: a unix socket that hands on segments once, and then grants."""
