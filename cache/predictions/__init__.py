"""What every exit predicted for every image of a split.

May import: errors, cache, cache.pairs, common.
"""
