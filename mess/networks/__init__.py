"""The overprovisioned network: candidate exits, heads, their MACs, weights.

May import: errors, config, exits, common, networks.backbones.
"""
