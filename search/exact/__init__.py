"""Searches that cover their whole space, and the bound that lets them.

May import: errors, search.kernels, search.problem.
"""
