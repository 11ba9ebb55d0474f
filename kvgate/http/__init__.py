"""One HTTP/1.1 exchange at a time on sockets of our own, blocking, under one deadline: for clients and for tiers."""
