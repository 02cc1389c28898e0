"""The overprovisioned network: backbones, candidate exits, heads, costs, weights."""
