"""Searches that sample, unproven; the only place that knows Optuna.

May import: errors, common, search.problem.
"""
