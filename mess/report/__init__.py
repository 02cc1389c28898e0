"""Pages about a run, each one self-contained file.

May import: errors, exits, cache, common, runs, search.problem, sentences,
signals.
"""
