"""The composition root: configuration, the HTTP front, and the life of the process."""
