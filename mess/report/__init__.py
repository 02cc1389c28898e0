"""Pages about a run, each one self-contained file.

May import: errors, exits, cache, cache.predictions, common, runs, search.problem, signals.
"""
