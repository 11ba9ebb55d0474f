"""kvgate for vLLM: a KV connector, and a tier for vLLM's own offloading."""
