"""What a search tells: the answer, why, and what a limit costs.

May import: errors, search.exact, search.problem, search.sampled.
"""
