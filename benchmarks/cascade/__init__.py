"""Layer Cascade (MESS paper, §6.2), as something to compare with.

`python -m benchmarks.cascade.layer_cascade` from the repository's root measures and prints.
"""
