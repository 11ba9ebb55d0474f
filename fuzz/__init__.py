"""Fuzzing of everything that a caller's bytes reach: `make fuzz`, or `python -m fuzz --help`."""
