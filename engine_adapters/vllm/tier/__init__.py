"""kvgate below vLLM's CPU tier: `manager` is an entry of `secondary_tiers`, `connector` the connector that it needs."""
