"""The compiled inner loops of the searches.

May import: search.problem.
"""
