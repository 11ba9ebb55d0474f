"""What `kvgate replay` is made of: traces, the simulated cache, and what is drawn of it."""
