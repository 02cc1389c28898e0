"""The run directory, and what is read from it: tables, costs, policies, fronts.

May import: errors, config, exits, cache, cache.pairs, cache.predictions, common, compute, data,
networks, runtime, search.answers, search.exact, search.guarantees, search.problem, signals.
"""
