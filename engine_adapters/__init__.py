"""Engine adapters: what an inference engine loads to reuse KV through a kvgate gateway."""
