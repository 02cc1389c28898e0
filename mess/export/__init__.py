"""Parts of a network as programs, and the bundle of an instance.

May import: errors, config, exits, common, networks, networks.backbones, runtime, signals.
"""
